"""What ``lit-depth importance`` tells of its result."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_depth.results.against_full_views import AGREEMENT_COLUMNS, agreement_sections, logged_agreement
from lit_depth.results.measures import cluster_noun, document_sections, metric_label, readings_sections
from lit_depth.results.report import Curves, Report, Section, Table
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.unit_names import ranges, skipping, unit_name, unit_places, units_noun
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
from lit_depth.studies.importance.analysis import THRESHOLD
from lit_depth.studies.importance.figures import (
    AGREEMENT,
    BY_TASK,
    MEAN,
    METHODS,
    against_full,
    agreement_name,
    drawn_in_place,
    importance_charts,
    importance_figures,
    lens_name,
    task_figure,
)
from lit_depth.studies.importance.lens_by_block import half_settled
from lit_depth.studies.shared.block_ranks import MOST_TASKS
from lit_depth.studies.shared.decision_views import (
    BEST_SINGLE,
    decision_figures,
    decision_section,
    decision_units,
    inclusion_column,
    regret_section,
)
from lit_depth.studies.shared.importance_scores import SCORES, plain_scores
from lit_depth.studies.shared.importance_views import agreement_section, headline
from lit_depth.studies.shared.question_types import question_type_sections

MEASURES = {"quality": "", "reference_logprob": "reference_logprob_"}
HEADERS = (
    *("drop", "interval", "p (Holm)", "rank", "may be"),
    *("log-prob drop", "interval", "p (Holm)", "rank", "may be", "skip"),
)
MASK_HEADERS = ("method", "active blocks", "quality", "interval", "difference", "interval", "p (Holm)", "verdict")
_LIMITS = ("drop", "drop_ci_low", "drop_ci_high", "drop_simultaneous_ci_low", "drop_simultaneous_ci_high")
# of the tables that loggers keep
COLUMNS = (
    "block",
    *(f"{prefix}{column}" for prefix in MEASURES.values() for column in (*_LIMITS, "p_holm", "verdict")),
    *(f"{prefix}rank" for prefix in MEASURES.values()),
    *AGREEMENT_COLUMNS,
)
LEFT_OUT = (
    f"How closely each pair of tasks agrees is told of up to {MOST_TASKS} tasks, by lit-depth consistency too; here are"
)
_STEP = "block"
EXPLAIN = (
    "Every method against the accuracy drop. spearman: rank correlation as measured; noise-free: {confidence:.0%} "
    "interval of the one with a drop measured without noise (the method's own scores count as exact). least {k}: share "
    "of the {k} least important blocks that both name, by chance {chance:.2f}. forwards: time of one batch of "
    "{batch_size} samples over that of a plain forward ({forward_ms:.0f} ms); all methods in one pass cost "
    "{together:.1f}. A higher score counts as more important{but}."
)
EXPLAIN_MASKS = (
    "Masks of the most important blocks by each method, on {num_samples} samples of the validation split (full model "
    "{full:.3f}); 'difference' is to the accuracy drop's mask of that size, with {confidence:.0%} {simultaneous}; "
    "p-values are corrected over all masks that differ. " + LEGEND
)
EXPLAIN_LENS = (
    "The reference answers on {task} as the full model's final norm and head read them behind every block (logit "
    "lens, nostalgebraist 2020). rank: that of an answer's worst token, median and quartiles over the samples; "
    "log-prob: mean per token; settled: share of answers of rank 1 behind this block and all later ones; top: of rank "
    "1 here; {confidence:.0%} intervals by {cluster}. Early blocks do not write for that head, so a low share there "
    "does not show that the answer is unknown (Belrose et al. 2023). drop: quality lost without the block."
)
LENS_HEADERS = ("block", "rank", "quartiles", "log-prob", "interval", "settled", "interval", "top", "drop")
_READ = ("logprob", "top", "settled")


def report(result: dict[str, Any]) -> Report:
    """The report of the content of ``importance.json``."""
    tasks, mean = result["tasks"], _mean(result)
    measured = {task["task"]: task for task in tasks} | ({"macro": mean} if mean else {})
    refused = [reason for entry in measured.values() if (reason := refusal(entry, entry["task"]))]
    if "methods" in result and (reason := refusal(result["methods"]["validation"], "the validation split")):
        refused.append(reason)
    decisions = [(entry["task"], entry["decision"]) for entry in measured.values() if _is_decided(entry)]
    regrets = [] if refused else result.get("regret", [])
    units = decision_units(tasks[0]["blocks"])
    figures = importance_figures(result) | decision_figures(decisions, units, regrets, result["confidence"])
    sections = [_section(task, task["task"], [task_figure(task, tasks)], several=mean is not None) for task in tasks]
    if mean:
        sections += [
            _section(mean, "Mean over tasks", [MEAN, BY_TASK], several=True, constant=describe_constant(mean)),
            agreement_section("Agreement between tasks", result["agreement"], THRESHOLD, [AGREEMENT])
            if result["agreement"]
            else Section("Agreement between tasks", f"{LEFT_OUT} {len(tasks)}."),
        ]
    sections += decision_section(decisions, units, BEST_SINGLE, list(figures))
    sections += regret_section(regrets, figures=list(figures), noun=cluster_noun(result))
    if "methods" in result:
        sections += _method_sections(result["methods"])
    sections += [_lens_section(task, lens_name(task, tasks), result["confidence"]) for task in tasks if "lens" in task]
    for task in tasks:
        drawn = [name] if (name := agreement_name(task, tasks)) in figures else []
        where = task["task"] if mean else ""
        compared = against_full(task, result["confidence"])
        sections += agreement_sections(compared, result["confidence"], cluster_noun(task), where, drawn)
        sections += [*document_sections(task), *readings_sections(task, result)]
        worst = sorted(task["blocks"], key=lambda entry: -entry["quality"]["drop"])[:4]
        shown = {str(place): f"without {unit_name(entry)}" for place, entry in zip(unit_places(worst), worst)}
        sections += question_type_sections(task, shown, several=mean is not None)
    scalars = verdict_scalars([(task["task"], f"/{task['task']}", task) for task in tasks])
    scalars |= {f"full/quality/{task['task']}": task["full"]["quality"] for task in tasks}
    by_task = {f"layer_importance_scores_{task['task']}.json": plain_scores(task["blocks"]) for task in tasks}
    return Report(
        title="Importance of transformer blocks",
        headline="\n\n".join([*refused, *(headline(task, result) for task in tasks)]),
        sections=sections,
        kind="importance",
        figures=figures,
        files={SCORES: plain_scores((mean or tasks[0])["blocks"])} | (by_task if mean else {}),
        tables={f"importance/{name}": _logged(entry, result["confidence"]) for name, entry in measured.items()}
        | {f"importance/lens_{task['task']}": _logged_lens(task["lens"]) for task in tasks if "lens" in task},
        scalars=scalars,
        curves=_curves(measured),
        charts=importance_charts(measured, f"{result['split']} split{skipping(result)}", result["confidence"], tasks),
        drawn=drawn_in_place(tasks),
        masks=_masks(tasks[0]["blocks"], result.get("num_blocks")),
        metadata={"split": result["split"]},
    )


def _is_decided(entry: Mapping[str, Any]) -> bool:
    """Files of earlier versions tell no decision, and nothing is decided where the model does not do the task."""
    return entry.get("decision") is not None and refusal(entry) is None


def _masks(blocks: Sequence[Mapping[str, Any]], num_blocks: int | None) -> dict[str, list[str]]:
    """Of each block, or half, the mask that skips it alone; files of earlier versions do not say how many there are."""
    if num_blocks is None:
        return {}
    total = num_blocks if units_noun(blocks) == "block" else 2 * num_blocks
    places = dict(zip((str(unit_name(each)) for each in blocks), unit_places(blocks)))
    return {name: ["1" * place + "0" + "1" * (total - place - 1)] for name, place in places.items()}


def _mean(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mean over several tasks as if it were one."""
    if not result["macro"]:
        return None
    metric = " / ".join(dict.fromkeys(task["metric"] for task in result["tasks"]))
    known = {key: result[key] for key in ("full", "baseline")} | {"decision": result.get("decision")}
    return {"task": "the mean over tasks", "metric": metric, "blocks": result["macro"], **known}


def _section(
    task: Mapping[str, Any], heading: str, figures: Sequence[str], several: bool, constant: str = ""
) -> Section:
    rows = _rows(task)
    lines = [f"{heading}.{constant}"] if several else []  # the terminal shows no headings
    if any(str(row[1]).endswith("*") for row in rows):
        lines.append(LEGEND)
    return Section(
        heading, "\n\n".join([*lines, *_findings(task)]), Table((units_noun(task["blocks"]), *HEADERS), rows), figures
    )


def _findings(task: Mapping[str, Any]) -> list[str]:
    """The least important blocks, by either measure."""
    blocks, lines = task["blocks"], []
    labels = {"quality": metric_label(task["metric"]), "reference_logprob": "reference log-probability"}
    for measure, label in labels.items():
        cheap = [unit_name(entry) for entry in blocks if entry[measure]["rank_ci"][1] == len(blocks)]
        whole = [name for name in cheap if isinstance(name, int)]
        which = ranges(whole, ", ") if whole else ", ".join(map(str, cheap))
        tied = " (tied)" if len(cheap) > 1 else ""
        lines.append(f"least important by {label}: {units_noun(blocks)}s {which}{tied}")
    return [] if refusal(task) else lines


def _rows(task: Mapping[str, Any]) -> list[list[Cell]]:
    """One row per block; where the model does not do the task, ranks would be no findings and are left out."""
    rows: list[list[Cell]] = []
    decision = task["decision"] if _is_decided(task) else None
    again = inclusion_column(decision, list(decision_units(task["blocks"])))
    for entry, probability in zip(task["blocks"], again):
        kept = task["full"]["quality"] - entry["quality"]["drop"]
        signs = {"quality": mark(kept, entry["num_distinct_answers"], task["baseline"])}
        row: list[Cell] = [unit_name(entry)]
        for measure in MEASURES:
            found = entry[measure]
            ranks = [None, None] if refusal(task) else [found["rank"], _span(found["rank_ci"])]
            drop, limits = f"{found['drop']:+.3f}{signs.get(measure, '')}", found["drop_simultaneous_ci"]
            row += [drop, format_interval(limits), format_p_value(found["p_holm"]), *ranks]
        rows.append([*row, probability])
    return rows


def _span(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]}-{ranks[1]}"


def _curves(measured: Mapping[str, Mapping[str, Any]]) -> Curves:
    """The drop in quality and the ends of its interval along the blocks; of halves of blocks along these."""
    rows: dict[int, dict[str, float]] = {}
    for name, entry in measured.items():
        for each in entry.get("lens", ()):
            found = {f"lens_{key}/{name}": each[key] for key in ("rank", "logprob", "settled")}
            rows.setdefault(each["block"], {_STEP: each["block"]}).update(found)
        for place, each in zip(unit_places(entry["blocks"]), entry["blocks"]):
            low, high = each["quality"]["drop_simultaneous_ci"]
            found = {"drop": each["quality"]["drop"], "drop_low": low, "drop_high": high}
            rows.setdefault(place, {_STEP: place}).update({f"{key}/{name}": value for key, value in found.items()})
    return Curves(_STEP, list(rows.values()))


def _logged(task: Mapping[str, Any], confidence: float) -> Table:
    """One row per block or half, without rounding."""
    rows, refused = [], refusal(task) is not None
    for entry in task["blocks"]:
        row: list[Cell] = [unit_name(entry)]
        for measure in MEASURES:
            drop = entry[measure]
            verdict = WITHHELD if refused else "differs" if differs(drop["p_holm"], confidence) else "tie"
            row += [drop["drop"], *drop["drop_ci"], *drop["drop_simultaneous_ci"], drop["p_holm"], verdict]
        ranks = (None if refused else entry[measure].get("rank") for measure in MEASURES)
        rows.append([*row, *ranks, *logged_agreement(entry.get("agreement"))])
    return Table(COLUMNS, rows)


def _lens_section(task: Mapping[str, Any], figure: str, confidence: float) -> Section:
    lens, block = task["lens"], half_settled(task["lens"])
    lines = [EXPLAIN_LENS.format(task=task["task"], confidence=confidence, cluster=cluster_noun(task))]
    if block is not None:
        last = lens[-1]["settled"]
        lines.append(f"half of the answers that the last block settles ({last:.3f}) are settled behind block {block}")
    return Section("Where answers come from", "\n\n".join(lines), Table(LENS_HEADERS, _lens_rows(task)), [figure])


def _lens_rows(task: Mapping[str, Any]) -> list[list[Cell]]:
    """One row per block: what the lens reads, and beside it what skipping the block costs (of halves: both of them)."""
    drops: dict[int, list[str]] = {}
    for entry in task["blocks"]:
        drops.setdefault(entry["block"], []).append(f"{entry['quality']['drop']:+.3f}")
    rows: list[list[Cell]] = []
    for entry in task["lens"]:
        low, high = entry["rank_quartiles"]
        row: list[Cell] = [entry["block"], f"{entry['rank']:g}", f"{low:g}-{high:g}"]
        for name in ("logprob", "settled"):
            row += [f"{entry[name]:.3f}", format_interval(entry[f"{name}_ci"], "")]
        rows.append([*row, f"{entry['top']:.3f}", " / ".join(drops.get(entry["block"], ())) or None])
    return rows


def _logged_lens(lens: Sequence[Mapping[str, Any]]) -> Table:
    """One row per block, without rounding."""
    rows = [
        [entry["block"], entry["rank"], *entry["rank_quartiles"]]
        + [value for name in _READ for value in (entry[name], *entry[f"{name}_ci"])]
        for entry in lens
    ]
    ends = [f"{name}{end}" for name in _READ for end in ("", "_ci_low", "_ci_high")]
    return Table(("block", "rank", "rank_quartile_1", "rank_quartile_3", *ends), rows)


def _method_sections(methods: Mapping[str, Any]) -> list[Section]:
    entries, validation = methods["entries"], methods["validation"]
    num_blocks = len(entries[0]["scores"])
    k = max(1, num_blocks // 4)
    others = [f"; of {entry['method']}: {entry['direction']}" for entry in entries if entry["direction"] != "higher"]
    explained = EXPLAIN.format(
        confidence=methods["confidence"],
        k=k,
        chance=k / num_blocks,
        batch_size=methods["batch_size"],
        forward_ms=1000 * methods["forward_seconds"],
        together=methods["proxies_together_forwards"],
        but="".join(others),
    )
    masks = EXPLAIN_MASKS.format(
        num_samples=validation["num_samples"],
        full=validation["full"]["quality"],
        confidence=methods["confidence"],
        simultaneous=SIMULTANEOUS,
    )
    headers = ("method", "spearman", "noise-free", "p", f"least {k}", "forwards")
    return [
        Section("Methods", explained, Table(headers, _method_rows(entries, str(k))), [METHODS]),
        Section(
            "Masks of every method", masks + describe_constant(validation), Table(MASK_HEADERS, _mask_rows(methods))
        ),
    ]


def _method_rows(entries: Sequence[Mapping[str, Any]], k: str) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for entry in entries:
        limits = format_interval(entry["spearman_ci"])
        if limits is None and entry["method"] != "accuracy_drop":
            limits = "not estimable"
        correlation = [entry["spearman"], limits, format_p_value(entry["p_value"])]
        rows.append([entry["method"], *correlation, entry["overlap"].get(k), entry["forwards"]])
    return rows


def _mask_rows(methods: Mapping[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for masks in zip(*(entry["masks"] for entry in methods["entries"])):
        for entry, mask in zip(methods["entries"], masks):
            sign = mark(mask["quality"], mask["num_distinct_answers"], methods["validation"]["baseline"])
            limits, p_value = format_interval(mask["difference_simultaneous_ci"]), format_p_value(mask["p_holm"])
            # None: it is the accuracy drop's mask itself
            difference = [None if p_value is None else f"{mask['difference']:+.3f}", limits, p_value]
            quality = [f"{mask['quality']:.3f}{sign}", format_interval(mask["quality_ci"], "")]
            rows.append([entry["method"], mask["num_active_blocks"], *quality, *difference, mask["verdict"]])
    return rows
