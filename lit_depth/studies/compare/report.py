"""What ``lit-depth compare`` tells of its result."""

from collections.abc import Collection, Sequence
from typing import Any

from lit_depth.results.against_full_views import (
    AGREEMENT_COLUMNS,
    AGREEMENT_FIGURE,
    agreement_sections,
    logged_agreement,
)
from lit_depth.results.flop_shares import FLOPS_NOTE, share_of_full, told_share
from lit_depth.results.measures import (
    cluster_noun,
    describe_measure,
    document_sections,
    metric_label,
    perplexity,
    readings_sections,
    sample_noun,
)
from lit_depth.results.report import Curves, Report, Scalar, Section, Table
from lit_depth.results.style import Stage
from lit_depth.results.table import Cell, format_interval
from lit_depth.results.verdicts import (
    LEGEND,
    WITHHELD,
    describe_constant,
    mark_strategy,
    refusal,
    verdict_scalars,
)
from lit_depth.studies.compare.figures import (
    IMPORTANCE,
    against_full,
    comparison_charts,
    comparison_figures,
    drawn_in_place,
    limits,
    regrets,
    task_figure,
)
from lit_depth.studies.compare.summary import summarize_policies
from lit_depth.studies.compare.used_importance import used_importance_section
from lit_depth.studies.shared.comparison_schema import Comparison, Latency, Strategy
from lit_depth.studies.shared.decision_views import (
    DECISIONS,
    MEAN_OF_SIZES,
    REGRET,
    mask_decision_section,
    regret_section,
)
from lit_depth.studies.shared.importance_scores import SCORES
from lit_depth.studies.shared.question_types import question_type_sections

QUESTIONS = {
    "importance_beats_prefix": "Does importance beat prefix?",
    "random_worse_than_prefix": "Is random worse than prefix?",
    "choice_of_blocks_matters": "How much does the choice of blocks matter at equal count?",
    "depth_is_a_scalar": "Is depth a scalar?",
}
STAGES: tuple[Stage, ...] = ("vision", "prefill", "decode_per_token", "total")
# of the table that loggers keep
COLUMNS = (
    *("policy", "num_active_blocks", "num_masks", "quality", "quality_ci_low", "quality_ci_high"),
    *("drop", "drop_ci_low", "drop_ci_high", "drop_simultaneous_ci_low", "drop_simultaneous_ci_high", "drop_p_holm"),
    *("reference_logprob", *(f"{stage}_P50_ms" for stage in STAGES), "flops_share"),
    *AGREEMENT_COLUMNS,
)
_STEP = "num_active_blocks"
EXPLAIN_DECISIONS = (
    "Of each size the best of all masks, whichever policy made it. It is chosen by the very samples that it is "
    "reported on: what to quote of it is 'corrected', or its drop in a run on other samples."
)


def report(comparison: Comparison) -> Report:
    """The report of the content of ``m5_mask_strategy_comparison.json``."""
    figures, tasks = comparison_figures(comparison), comparison.get("tasks", [])
    elsewhere = [IMPORTANCE, AGREEMENT_FIGURE, DECISIONS, REGRET, *map(task_figure, tasks)]
    own = [name for name in figures if name not in elsewhere]
    scores = comparison["importance"]["scores"]
    return Report(
        title=f"Depth-mask policies on {comparison['task']}",
        headline="\n\n".join([*_refusals(comparison), _headline(comparison)]),
        sections=[
            *_answers(comparison),
            *used_importance_section(comparison["importance"], IMPORTANCE),
            Section("Quality and latency of every policy", _remarks(comparison), _quality_table(comparison), own),
            *_decisions(comparison, list(figures)),
            *_agreement(comparison, figures),
            *_perplexities(comparison),
            *(Section(task["task"], _headline(task), _quality_table(task), [task_figure(task)]) for task in tasks),
            *(part for each in (tasks or [comparison]) for part in _by_type(each, bool(tasks))),
            *(part for each in (comparison, *tasks) for part in readings_sections(each, comparison)),
        ],
        kind="comparison",
        figures=figures,
        files={SCORES: scores} if scores else {},
        tables={
            "compare/strategies": Table(COLUMNS, [_strategy_row(each, comparison) for each in comparison["strategies"]])
        },
        scalars=_scalars(comparison),
        curves=_curves(comparison),
        charts=comparison_charts(comparison),
        drawn=drawn_in_place(comparison),
        masks=_masks(comparison),
        metadata={key: comparison[key] for key in ("task", "metric", "num_samples")},
    )


def _decisions(comparison: Comparison, figures: Sequence[str]) -> list[Section]:
    units = {str(block): str(block) for block in range(comparison["num_blocks"])}
    return [
        *mask_decision_section(comparison, refusal(comparison), units, EXPLAIN_DECISIONS, figures),
        *regret_section(regrets(comparison), MEAN_OF_SIZES, figures, cluster_noun(comparison)),
    ]


def _agreement(comparison: Comparison, figures: Collection[str]) -> list[Section]:
    drawn = [AGREEMENT_FIGURE] if AGREEMENT_FIGURE in figures else []
    return agreement_sections(
        against_full(comparison), comparison["confidence"], cluster_noun(comparison), figures=drawn
    )


def _masks(comparison: Comparison) -> dict[str, list[str]]:
    return {
        f"{each['policy']}, {each['num_active_blocks']}": [mask["mask_id"] for mask in each["masks"]]
        for each in comparison["strategies"]
    }


def _refusals(comparison: Comparison) -> list[str]:
    """Why there are no verdicts, on the result's samples and on each of its tasks."""
    each = [refusal(entry, entry["task"]) for entry in (comparison, *comparison.get("tasks", ()))]
    return [reason for reason in each if reason]


def _headline(comparison: Comparison) -> str:
    full = comparison["full"]
    return (
        f"{metric_label(comparison['metric'])} on {comparison['task']}, {comparison['num_samples']} "
        f"{sample_noun(comparison) if 'nouns' in comparison else 'sample'}s "
        f"({comparison['num_bad_samples']} bad), {comparison['confidence']:.0%} intervals by "
        f"{cluster_noun(comparison)}; full model {full['quality']:.3f} {format_interval(full['quality_ci'], sign='')}."
        f"{describe_measure(comparison)}{describe_constant(comparison)}"
    )


def _answers(comparison: Comparison) -> list[Section]:
    """The answers that were asked for; what is withheld says why only once, in the headline."""
    given: dict[str, Any] = dict(comparison["answers"])
    lines = [
        f"{question} {answer['answer'].upper()}." + ("" if answer["answer"] == WITHHELD else f" {answer['text']}")
        for key, question in QUESTIONS.items()
        if (answer := given[key])
    ]
    return [Section("Answers", "\n\n".join(lines or ["No question was asked."]))]


def _remarks(comparison: Comparison) -> str:
    count = comparison.get("latency_requests")
    parts = [LEGEND]
    if count is not None:
        requests = f"{count} request{'s' if count > 1 else ''}"
        parts.append(f"Times are medians of {requests} of batch size 1 under each mask.")
    return "\n\n".join([*parts, *([FLOPS_NOTE] if comparison.get("flops") else [])])


def _quality_table(comparison: Comparison) -> Table:
    """Quality per policy and count, one row per count."""
    by_key = {(each["policy"], each["num_active_blocks"]): each for each in comparison["strategies"]}
    names = list(dict.fromkeys(policy for policy, _ in by_key))
    rows: list[list[Cell]] = []
    for count in sorted({count for _, count in by_key}):
        here = [by_key.get((name, count)) for name in names]
        times = [each["latency_ms"]["total"]["P50"] for each in here if each and each["latency_ms"]]
        cells = [each and _quality_cell(each, comparison) for each in here]
        shares = [share for each in here if each and (share := _flops_share(each, comparison)) is not None]
        means = (f"{sum(times) / len(times):.1f}" if times else None, told_share(_mean(shares)))
        rows.append([count, *cells, *means[: 2 if comparison.get("flops") else 1]])
    return Table(["blocks", *names, "total ms", *(["FLOPs of full"] if comparison.get("flops") else [])], rows)


def _flops_share(strategy: Strategy, comparison: Comparison) -> float | None:
    """Mean over the masks of operations relative to the full model's, where they were counted."""
    shares = [share_of_full(comparison.get("flops"), mask["mask_id"]) for mask in strategy["masks"]]
    return _mean([share for share in shares if share is not None])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _quality_cell(strategy: Strategy, comparison: Comparison) -> str:
    low, high = strategy["quality_ci"]
    sign = mark_strategy(strategy, comparison.get("baseline"))
    return f"{strategy['quality']:.3f} [{low:.2f}, {high:.2f}]{sign}"


def _by_type(comparison: Comparison, several: bool) -> list[Section]:
    """Quality by type of question at the policies' middle count; all counts stand in the result."""
    counts = sorted({each["num_active_blocks"] for each in comparison["strategies"]})
    middle = counts[len(counts) // 2]
    here = [each["policy"] for each in comparison["strategies"] if each["num_active_blocks"] == middle]
    shown = {f"{policy}_{middle}": f"{policy}, {middle} blocks" for policy in dict.fromkeys(here)}
    return question_type_sections(comparison, shown, several)


def _perplexities(comparison: Comparison) -> list[Section]:
    """Perplexity of texts per policy and count, and of each document; nothing for other tasks."""
    if "texts" not in comparison:
        return []
    headers = ["policy", "blocks", "perplexity"]
    rows: list[list[Cell]] = [
        [each["policy"], each["num_active_blocks"], perplexity(each["quality"], each["quality_ci"])]
        for each in comparison["strategies"]
    ]
    return [Section("Perplexity of every policy", "", Table(headers, rows)), *document_sections(comparison)]


def _strategy_row(strategy: Strategy, comparison: Comparison) -> list[Cell]:
    return [
        *(strategy["policy"], strategy["num_active_blocks"], len(strategy["masks"])),
        *(strategy["quality"], *strategy["quality_ci"]),
        *(strategy["drop"], *strategy["drop_ci"]),
        *(strategy.get("drop_simultaneous_ci") or (None, None)),
        strategy.get("drop_p_holm"),
        strategy["reference_logprob"],
        *_medians(strategy["latency_ms"]),
        _flops_share(strategy, comparison),
        *logged_agreement(strategy.get("agreement")),
    ]


def _medians(latency: Latency | None) -> list[float | None]:
    return [None] * len(STAGES) if latency is None else [latency[stage]["P50"] for stage in STAGES]


def _scalars(comparison: Comparison) -> dict[str, Scalar]:
    full = comparison["full"]
    tasks = [(task["task"], f"/{task['task']}", task) for task in comparison.get("tasks", ())]
    scalars = verdict_scalars([(comparison["task"], "", comparison)], also=tasks)
    scalars |= {f"full/quality{end}": each["full"]["quality"] for _, end, each in [("", "", comparison), *tasks]}
    if full["latency_ms"] is not None:
        scalars["full/latency_ms/total"] = full["latency_ms"]["total"]["P50"]
        scalars["latency/num_requests"] = comparison.get("latency_requests")
    answers: dict[str, Any] = dict(comparison["answers"])
    for question, answer in answers.items():
        if answer is not None:
            scalars |= {f"answers/{question}": answer["answer"], f"answers/{question}_text": answer["text"]}
    return scalars | summarize_policies(comparison)


def _curves(comparison: Comparison) -> Curves:
    """Quality and the ends of its band, of every policy at each number of active blocks where it has one."""
    rows: dict[int, dict[str, float]] = {}
    for strategy in sorted(comparison["strategies"], key=lambda strategy: strategy["num_active_blocks"]):
        count = strategy["num_active_blocks"]
        row = rows.setdefault(count, {_STEP: count})
        low, high = limits(strategy, comparison)
        found = {"quality": strategy["quality"], "low": low, "high": high}
        row |= {f"{name}/{strategy['policy']}": value for name, value in found.items()}
        if strategy["latency_ms"] is not None:
            row[f"latency_ms/total/{strategy['policy']}"] = strategy["latency_ms"]["total"]["P50"]
    return Curves(_STEP, list(rows.values()))
