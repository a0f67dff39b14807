"""What ``lit-depth interactions`` tells of its result."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lit_depth.results.against_full_views import (
    AGREEMENT_COLUMNS,
    agreement_sections,
    flips_figures,
    logged_agreement,
)
from lit_depth.results.measures import cluster_noun, readings_sections
from lit_depth.results.report import Report, Section, Table
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.verdicts import SIMULTANEOUS, differs, refusal, verdict_scalars
from lit_depth.studies.interactions.figures import (
    MAPS,
    PREDICTION,
    against_full,
    interaction_charts,
    interaction_figures,
    measure_label,
)
from lit_depth.studies.shared.importance_views import headline
from lit_depth.studies.shared.prediction_errors import ERROR_HEADERS, error_rows, skill_sentence

COLUMNS = ("a", "b", "measure", "drop", "interaction", "low", "high", "p_holm", "verdict", *AGREEMENT_COLUMNS)
_SHOWN = 6  # pairs of each measure in the terminal, the largest interactions
_HEADERS = ("measure", "pair", "drop", "interaction", "interval", "p (Holm)", "verdict")
_BEST_HEADERS = ("measure", "removed", "which", "sum of singles", "with pairs")
_STANDS_IN, _SHARES, _NONE = "stand in for one another", "share what they do", "not shown"


def report(result: dict[str, Any]) -> Report:
    """The report of the content of ``interactions.json``."""
    refused = refusal(result, result["task"])
    scalars = verdict_scalars([(result["task"], "", result)])
    scalars |= {f"passes/{key}": value for key, value in result["passes"]["all"].items()}
    for measure in MAPS:
        scalars[f"pairs/{measure}"] = sum(_verdict(pair, measure, result) != _NONE for pair in result["pairs"])
    compared = against_full(result)
    title = f"Scores that change against the drop, {result['task']}, {result['split']} split"
    # the many pairs lie below the singles
    changes = flips_figures(compared[::-1], title, result["confidence"], max_score=result.get("max_score"))
    told = [refused, headline(result, result, ranked=False), _passes(result), _width(result)]
    return Report(
        title="Interactions of transformer blocks",
        headline="\n\n".join(filter(None, told)),
        sections=[
            *_prediction_sections(result),
            Section("Pairs", _findings(result), Table(_HEADERS, _top_rows(result)), list(MAPS.values())),
            *_best_sections(result),
            *agreement_sections(compared, result["confidence"], cluster_noun(result), figures=list(changes)),
            *readings_sections(result, result),
        ],
        kind="interactions",
        figures=interaction_figures(result) | changes,
        tables={"interactions/pairs": Table(COLUMNS, _all_rows(result))},
        scalars=scalars,
        charts=interaction_charts(result),
        drawn={name: name for name in MAPS.values()},
        masks={_names(pair["removed"], result): [_mask(pair["removed"], result)] for pair in result["pairs"]},
        metadata={"split": result["split"]},
    )


def _mask(removed: Sequence[int], result: Mapping[str, Any]) -> str:
    return "".join("0" if unit in removed else "1" for unit in range(len(result["units"])))


def _names(removed: Sequence[int], result: Mapping[str, Any]) -> str:
    return ", ".join(result["units"][unit] for unit in removed)


def _passes(result: Mapping[str, Any]) -> str:
    """What the pass cost, as the trie counts it."""
    every, pairs = result["passes"]["all"], result["passes"]["singles_and_pairs"]
    if every["block_forwards"] == every["sequential_block_forwards"]:
        return f"{every['masks']} masks, one after another: {every['block_forwards']} block forwards on a prompt."
    return (
        f"{every['masks']} masks in one pass: {every['block_forwards']} block forwards on a prompt, "
        f"{every['sequential_block_forwards']} one after another. Of the full model, all singles and all pairs alone "
        f"({pairs['masks']} masks): {pairs['block_forwards']} of {pairs['sequential_block_forwards']} "
        f"({pairs['block_forwards'] / pairs['sequential_block_forwards']:.2f})."
    )


def _width(result: Mapping[str, Any]) -> str:
    """How wide the intervals of pairs are, and what narrower ones would take."""
    widths = []
    for measure in MAPS:
        limits = [pair[measure]["interaction_simultaneous_ci"] for pair in result["pairs"]]
        halves = sorted((high - low) / 2 for low, high in limits)
        widths.append(f"{statistics.median(halves):.3f} in {_short(measure)} (at most {halves[-1]:.3f})")
    return (
        f"With these samples the interval of a pair's interaction reaches {' and '.join(widths)} to either side, in "
        "the median over all pairs. Half of that takes twice the samples (--num_samples) where a pair changes no "
        "score, up to four times as many elsewhere, and as much more time."
    )


def _prediction_sections(result: Mapping[str, Any]) -> list[Section]:
    """How far the second-order model is off: told before anything that it predicts."""
    found = result["second_order"]
    if not found:
        return []
    rows = [[_short(measure), *row] for measure, errors in found["errors"].items() for row in error_rows(errors)]
    orders = []
    for measure, pair in found["spearman"].items():
        if None not in pair.values():
            orders.append(f"by {_short(measure)} {pair['additive']:.2f} and {pair['predicted']:.2f}")
    wrong = {
        measure: sum(differs(entry[measure]["p_holm"], result["confidence"]) for entry in found["held_out"])
        for measure in MAPS
    }
    text = (
        f"{len(found['held_out'])} random masks of three and more removed, measured in the same pass. Errors of the "
        "predicted drop, in size and (bias) with their sign: of the sum of the single drops, and of that with the "
        f"interactions of all pairs. Predictions with pairs that are shown to be off (Holm): {wrong['quality']} by "
        f"quality, {wrong['reference_logprob']} by log-prob."
    )
    if orders:
        text += f" Rank correlation of predicted and measured drops without and with pairs: {'; '.join(orders)}."
    skills = [skill_sentence(skill, _short(measure)) for measure, skill in found.get("skill", {}).items()]
    text = "\n\n".join([*skills, text])
    return [
        Section(
            "Do singles and pairs predict other masks?", text, Table(("measure", *ERROR_HEADERS), rows), [PREDICTION]
        )
    ]


def _short(measure: str) -> str:
    return "quality" if measure == "quality" else "log-prob"


def _verdict(pair: Mapping[str, Any], measure: str, result: Mapping[str, Any]) -> str:
    entry = pair[measure]
    if refusal(result) or not differs(entry["p_holm"], result["confidence"]):
        return _NONE
    return _STANDS_IN if entry["interaction"] > 0 else _SHARES


def _findings(result: Mapping[str, Any]) -> str:
    """Which pairs were shown to interact, in words, by either measure."""
    lines = [
        "interaction = drop of the pair - drop of the one - drop of the other. Above 0 each covers for the other; "
        "below 0 they share what they do. The table has those that were found, then the largest, with "
        f"{result['confidence']:.0%} {SIMULTANEOUS} over "
        f"all {len(result['pairs'])} pairs."
    ]
    if refusal(result):
        return lines[0]
    for measure in MAPS:
        for verdict in (_STANDS_IN, _SHARES):
            pairs = [pair for pair in _largest(result, measure) if _verdict(pair, measure, result) == verdict]
            named = "; ".join(_named(pair, measure, result) for pair in pairs[:_SHOWN])
            more = f" and {len(pairs) - _SHOWN} more pairs" if len(pairs) > _SHOWN else ""
            lines.append(f"{verdict}, by {measure_label(result, measure)}: {named or 'no pair shown'}{more}")
    return "\n\n".join(lines)


def _named(pair: Mapping[str, Any], measure: str, result: Mapping[str, Any]) -> str:
    """A pair with its interaction, as in a sentence."""
    entry = pair[measure]
    limits = format_interval(entry["interaction_simultaneous_ci"])
    return f"{_names(pair['removed'], result).replace(', ', ' and ')} ({entry['interaction']:+.3f} {limits})"


def _largest(result: Mapping[str, Any], measure: str) -> list[Mapping[str, Any]]:
    """Pairs by falling size of their interaction."""
    return sorted(result["pairs"], key=lambda pair: (-abs(pair[measure]["interaction"]), pair["removed"]))


def _top_rows(result: Mapping[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for measure in MAPS:
        found_first = sorted(_largest(result, measure), key=lambda pair: _verdict(pair, measure, result) == _NONE)
        for pair in found_first[:_SHOWN]:
            entry = pair[measure]
            numbers = (f"{entry['drop']:+.3f}", f"{entry['interaction']:+.3f}")
            limits = format_interval(entry["interaction_simultaneous_ci"])
            verdict = _verdict(pair, measure, result)
            named = _names(pair["removed"], result)
            rows.append([_short(measure), named, *numbers, limits, format_p_value(entry["p_holm"]), verdict])
    return rows


def _all_rows(result: Mapping[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for pair in result["pairs"]:
        names = [result["units"][unit] for unit in pair["removed"]]
        for measure in MAPS:
            entry = pair[measure]
            numbers = (entry["drop"], entry["interaction"], *entry["interaction_simultaneous_ci"], entry["p_holm"])
            # answers have no measure: they are told once
            agreement = logged_agreement(pair.get("agreement") if measure == "quality" else None)
            rows.append([*names, measure, *numbers, _verdict(pair, measure, result), *agreement])
    return rows


def _best_sections(result: Mapping[str, Any]) -> list[Section]:
    """The best predicted masks: a guess, which `lit-depth search --strategy pairwise` measures."""
    found = result["second_order"]
    known = {measure: best for measure, best in found["best"].items() if best} if found else {}
    if not known or refusal(result):
        return []
    rows: list[list[Cell]] = [
        [
            _short(measure),
            len(row["removed"]),
            f"without {_names(row['removed'], result)}",
            f"{row['additive']:+.3f}",
            f"{row['predicted']:+.3f}",
        ]
        for measure, best in known.items()
        for row in best
    ]
    text = (
        "Masks of the smallest predicted drop. They are the best of many predictions, on the samples that these were "
        "fitted to: the drops will be larger. lit-depth search --strategy pairwise measures them on other samples."
    )
    return [Section("Best predicted masks", text, Table(_BEST_HEADERS, rows))]
