"""What ``lit-depth search`` tells of its result."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lit_depth.results.against_full_views import (
    AGREEMENT_COLUMNS,
    AgainstFull,
    agreement_sections,
    flips_figures,
    logged_agreement,
)
from lit_depth.results.measures import (
    cluster_noun,
    count_samples,
    describe_measure,
    metric_label,
    readings_sections,
)
from lit_depth.results.report import Curves, Report, Section, Table
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.verdicts import (
    LEGEND,
    SIMULTANEOUS,
    WITHHELD,
    describe_constant,
    differs,
    mark,
    refusal,
    verdict_scalars,
)
from lit_depth.studies.search import healing_report
from lit_depth.studies.search.figures import FINDERS, ablation_label, drop_figure, search_charts, tree_figure
from lit_depth.studies.search.level_decisions import MOST_CANDIDATES
from lit_depth.studies.search.verdict import verdict_section
from lit_depth.studies.shared.decision_views import decision_figures, mask_decision_section, mask_decisions
from lit_depth.studies.shared.prediction_errors import ERROR_HEADERS, error_rows, skill_sentence

HEADERS = (*("removed", "which", "drop", "interval", "p (Holm)"), *("interaction", "interval", "p (Holm)", "found by"))
LEVEL_HEADERS = ("removed", "looked at", "dropped early", "settled", "evaluations", "saved", "tied with the best")
_DIFFERENCES = tuple(
    f"{difference}{part}"
    for difference in ("drop", "interaction")
    for part in ("", "_ci_low", "_ci_high", "_simultaneous_ci_low", "_simultaneous_ci_high", "_p_holm")
)
COLUMNS = ("removed", "num_removed", "found_by", "quality", *_DIFFERENCES, *AGREEMENT_COLUMNS)
_STEP = "num_removed"
_MOST_TIES = 6  # named in the table


def report(result: Mapping[str, Any]) -> Report:
    """The report of the content of ``search.json``."""
    figures: dict[str, Callable[[], Any]] = {
        "search_tree": partial(tree_figure, result),
        "drop_vs_removed": partial(drop_figure, result),
    }
    refused, heals = refusal(result["report"], result["task"]), "healing" in result
    of_search = list(figures)
    title = f"Scores that change against the drop, {result['task']}, validation split"
    decided = mask_decisions(result, refused)
    figures |= decision_figures(decided, _units_by_index(result), [], result["confidence"])
    changes = flips_figures(
        compared := _against_full(result), title, result["confidence"], max_score=result.get("max_score")
    )
    figures |= changes
    tables = {"search/ablations": Table(COLUMNS, [_ablation_row(result, entry) for entry in result["ablations"]])}
    if heals:
        figures[healing_report.FIGURE] = partial(healing_report.healing_figure, result)
        tables["search/patched"] = healing_report.table(result)
    told = [*([refused] if refused else []), _headline(result)]
    return Report(
        title=f"Blocks to remove together, {result['task']}",
        headline="\n\n".join([*told, *([healing_report.describe_change(result)] if heals else [])]),
        sections=[
            *_prediction_sections(result),
            Section("Removed blocks", table=Table(HEADERS, _rows(result)), figures=of_search),
            Section("Search", _costs(result), Table(LEVEL_HEADERS, _level_rows(result))),
            *_all_ties(result),
            *agreement_sections(compared, result["confidence"], cluster_noun(result), figures=list(changes)),
            *_decision_sections(result, list(figures)),
            *verdict_section(result),
            *(healing_report.sections(result) if heals else []),
            *readings_sections(result, result),
        ],
        kind="search",
        figures=figures,
        tables=tables,
        scalars=_scalars(result) | (healing_report.scalars(result) if heals else {}),
        charts=search_charts(result),
        drawn={"search_quality": "drop_vs_removed"},
        masks=_masks(result),
        curves=_curves(result),
        metadata={"rank_by": result["rank_by"]},
    )


def _units_by_index(result: Mapping[str, Any]) -> dict[str, str]:
    return {str(index): name for index, name in enumerate(result["units"])}


def _decision_sections(result: Mapping[str, Any], figures: Sequence[str]) -> list[Section]:
    """How firmly the ablations of each size stand among those that were looked at."""
    early = sum(each["num_dropped_early"] for each in result.get("decisions", ()))
    looked_at = sum(each["num_candidates"] for each in result.get("decisions", ()))
    of = "accuracy" if result["rank_by"] == "accuracy" else "reference probability"
    note = (
        "Chosen among the ablations that this search looked at; a fresh one could look at others. What all of them "
        f"skip stands at 100%. Equal ones of a fresh sample keep the order of this one. Drops are in {of}."
    )
    if early:
        note += (
            f" {early} of {looked_at} were dropped early: they count by the samples that they got, as if a fresh "
            "sample were evaluated in full."
        )
    if any(each["num_candidates"] > MOST_CANDIDATES for each in result.get("decisions", ())):
        note += f" Of each size the best {MOST_CANDIDATES} count."
    if "healing" in result:
        note += " All masks as they are, before patching."
    return mask_decision_section(result, refusal(result["report"]), _units_by_index(result), note, figures)


def _against_full(result: Mapping[str, Any]) -> list[AgainstFull]:
    """The model without what was found beside the full one; results of earlier versions know nothing of it."""
    return [
        AgainstFull(
            ablation_label(each["removed"], result["units"]),
            f"{len(each['removed'])} removed",
            each["drop"],
            each["drop_ci"],
            differs(each["drop_p_holm"], result["confidence"]),
            each.get("agreement"),
        )
        for each in result["ablations"]
        if each["removed"]
    ]


def _masks(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of every ablation by its label, and by who found it at which number of active units."""
    total = len(result["units"])
    masks: dict[str, list[str]] = {}
    for entry in result["ablations"]:
        removed = set(entry["removed"])
        mask = "".join("0" if unit in removed else "1" for unit in range(total))
        names = [f"{finder}, {total - len(removed)}" for finder in entry["found_by"]]
        for name in [ablation_label(entry["removed"], result["units"]), *names]:
            masks.setdefault(name, []).append(mask)
    return masks


def _headline(result: Mapping[str, Any]) -> str:
    calibration, reported = result["calibration"], result["report"]
    full, noun = reported["full"], cluster_noun(result)
    kind = "Every combination" if result["exhaustive"] else f"A beam of {result['beam_width']}"
    if result.get("strategy") == "pairwise":
        kind = f"All single units and pairs, and the {result['beam_width']} best predicted of each larger size,"
    trained = " Released checkpoints were trained on these very questions." if result["in_training_mixture"] else ""
    return (
        f"{kind} on {calibration['num_samples']} calibration samples of {result['task']}, ranked by "
        f"{_ranked_by(result)}; {metric_label(result['metric'])} on the validation split, "
        f"{count_samples(result, reported)} ({reported['num_bad_samples']} bad), {result['confidence']:.0%} "
        f"{SIMULTANEOUS} by {noun}, over all drops and over all interactions. Full model {full['quality']:.3f} "
        f"{format_interval(full['quality_ci'], sign='')}."
        f"{describe_measure({**result, 'full': full})}{describe_constant(reported)} Interaction: the drop beyond "
        f"the sum of the drops of its parts alone.{trained} {LEGEND}"
    )


def _ranked_by(result: Mapping[str, Any]) -> str:
    """What ranks ablations; results of earlier versions ordered equal scores by their blocks."""
    second = result.get("equal_scores_by")
    return f"{result['rank_by']}, equal ones by {second.replace('_', ' ')}" if second else str(result["rank_by"])


def _prediction_sections(result: Mapping[str, Any]) -> list[Section]:
    """How far predictions of a pairwise search are off, told before what they led to; nothing of other searches."""
    found = result.get("second_order")
    if not found:
        return []
    of = "accuracy" if result["rank_by"] == "accuracy" else "reference probability"
    text = (
        f"{len(found['held_out'])} random ablations of three and more, on the calibration split. Errors of the "
        f"predicted drop in {of}, in size and (bias) with their sign: of the sum of the single drops, and of that with "
        "the interactions of all pairs."
    )
    if found["proposed"]:
        means = (sum(each[key] for each in found["proposed"]) / len(found["proposed"]) for key in ("predicted", "drop"))
        predicted, drop = means
        text += (
            f" The {len(found['proposed'])} best predicted, which look better than they are: {predicted:+.3f} "
            f"predicted, {drop:+.3f} measured on the same samples."
        )
    text = "\n\n".join(filter(None, [skill_sentence(found.get("skill"), of), text]))
    return [
        Section(
            "Do singles and pairs predict larger ablations?", text, Table(ERROR_HEADERS, error_rows(found["errors"]))
        )
    ]


def _rows(result: Mapping[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for entry in result["ablations"]:
        if entry["found_by"]:
            drop, *rest = _difference(entry, "drop")
            sign = mark(entry["quality"], entry["num_distinct_answers"], result["report"]["baseline"])
            label, found_by = ablation_label(entry["removed"], result["units"]), ", ".join(entry["found_by"])
            extra = _difference(entry, "interaction")
            rows.append([len(entry["removed"]), label, f"{drop}{sign}", *rest, *extra, found_by])
    return rows


def _difference(entry: Mapping[str, Any], key: str) -> list[str | None]:
    """A difference, its simultaneous interval, and the p-value that goes with it."""
    if entry[key] is None:
        return [None] * 3
    interval = format_interval(entry[f"{key}_simultaneous_ci"])
    return [f"{entry[key]:+.3f}", interval, format_p_value(entry[f"{key}_p_holm"])]


def _ties(result: Mapping[str, Any], level: Mapping[str, Any]) -> list[str]:
    """Ablations tied with the best of their size."""
    return [ablation_label(removed, result["units"]) for removed in (level["tied"] or ())[1:]]


def _level_rows(result: Mapping[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for level in result["levels"]:
        dropped = sum(ablation["dropped_on"] is not None for ablation in level["ablations"])
        tied = _ties(result, level)
        more = f" and {len(tied) - _MOST_TIES} more" if len(tied) > _MOST_TIES else ""
        settled, shown = "yes" if level["settled"] else "no", "; ".join(tied[:_MOST_TIES]) + more or "none"
        if refusal(result["report"]) is not None:
            settled = shown = WITHHELD
        numbers = level["num_removed"], len(level["ablations"]), dropped
        rows.append([*numbers, settled, level["evaluations"], level["saved"], shown])
    return rows


def _all_ties(result: Mapping[str, Any]) -> list[Section]:
    """Where the table could not name every tie: all of them, on the page."""
    if refusal(result["report"]) is not None:
        return []
    lines = [
        f"{level['num_removed']} removed: {'; '.join(_ties(result, level))}"
        for level in result["levels"]
        if len(level["tied"]) - 1 > _MOST_TIES
    ]
    return [Section("All that are tied with the best", "\n\n".join(lines), printed=False)] if lines else []


def _costs(result: Mapping[str, Any]) -> str:
    totals = result["totals"]
    asked, saved = totals["evaluations"], totals["saved"]
    how = f"racing saved {saved} ({saved / (asked + saved):.0%})" if result["racing"] else "no racing"
    return (
        f"{asked} evaluations (mask and sample) on the calibration split, {how}; {totals['block_forwards']} block "
        f"forwards on a prompt, {totals['sequential_block_forwards']} without sharing. Tied with the best: not proven "
        f"worse than another ablation of that size; with {1 - result['delta']:.0%} confidence for all sizes together, "
        "the truly best of those looked at is among them. Dropped early: would hardly have ended as the best, by more "
        f"than {result['epsilon']:g}."
        f"{' All of this is of the masks as they are, before patching.' if 'healing' in result else ''}"
    )


def _unit_list(result: Mapping[str, Any], removed: Sequence[int]) -> str:
    return " ".join(result["units"][unit] for unit in removed)


def _ablation_row(result: Mapping[str, Any], entry: Mapping[str, Any]) -> list[Cell]:
    numbers: list[Cell] = []
    for key in ("drop", "interaction"):
        limits = (entry[f"{key}{kind}"] or (None, None) for kind in ("_ci", "_simultaneous_ci"))
        numbers += [entry[key], *(end for pair in limits for end in pair), entry[f"{key}_p_holm"]]
    removed = entry["removed"]
    found_by, agreement = ", ".join(entry["found_by"]), logged_agreement(entry.get("agreement"))
    return [_unit_list(result, removed), len(removed), found_by, entry["quality"], *numbers, *agreement]


def _curves(result: Mapping[str, Any]) -> Curves:
    """The drop and the ends of its interval along the number of removed blocks, by finder."""
    rows: dict[int, dict[str, float]] = {}
    for entry in result["ablations"]:
        size, (low, high) = len(entry["removed"]), entry["drop_simultaneous_ci"]
        found = {"drop": entry["drop"], "drop_low": low, "drop_high": high}
        for finder in (each for each in entry["found_by"] if each in FINDERS):
            rows.setdefault(size, {_STEP: size}).update({f"{key}/{finder}": value for key, value in found.items()})
    return Curves(_STEP, [rows[size] for size in sorted(rows)])


def _scalars(result: Mapping[str, Any]) -> dict[str, Any]:
    scalars = verdict_scalars([(result["task"], "", result["report"])])
    for entry in result["ablations"]:
        if "search" in entry["found_by"]:
            size = len(entry["removed"])
            scalars |= {
                f"search/removed_{size}": _unit_list(result, entry["removed"]),
                f"search/drop_{size}": entry["drop"],
            }
    return scalars | {f"search/{key}": result["totals"][key] for key in ("evaluations", "saved")}
