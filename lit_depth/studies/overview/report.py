"""What ``lit-depth report`` tells of several results together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_depth.results.changed_samples import MaskChanges
from lit_depth.results.charts.quality_charts import Mark, quality_vs_blocks
from lit_depth.results.model_names import KNOBS, without_skipping
from lit_depth.results.report import Chart, Report, Section, Table
from lit_depth.results.style import COLORS
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.verdicts import SIMULTANEOUS, differs
from lit_depth.studies.overview.analysis import ALL_BLOCKS, ModelPair
from lit_depth.studies.overview.equal_cost import CostCurve, CostPair
from lit_depth.studies.overview.equal_cost_views import equal_cost_section, equal_cost_sentences
from lit_depth.studies.overview.figures import frontier_figures
from lit_depth.studies.overview.folders import Stored

HEADERS = (
    *("task", "what", "a", "b", "verdict", "a - b", "interval", "p (Holm)", "a scores", "b scores"),
    *("samples", "clusters", "split"),
)
_PREFERRED = "importance"  # of the policies, in the chart of several models
_SENTENCES = 5


def report(
    runs: Sequence[Stored],
    labels: Sequence[str],
    pairs: Sequence[ModelPair],
    quality: Sequence[Mapping[str, Sequence[MaskChanges]]],
    confidence: float,
    remarks: Sequence[str] = (),
    costs: Sequence[CostPair] = (),
    curves: Sequence[Sequence[CostCurve]] = (),
) -> Report:
    """The report of several runs: first what was found between models, then a sentence for each run.

    Args:
        runs: In the order of the page.
        labels: Model of each.
        pairs: Tests between the models.
        quality: Of each run by task the masks, the full model's first.
        confidence: Of the intervals of ``pairs``.
        remarks: What was left out.
        costs: Tests at equal cost, between runs of one model whose masks other tokens skip.
        curves: Quality and cost of every mask of each run.
    """
    charts = _charts(runs, labels)
    compared = {(label, pair.task) for pair in costs for label in (pair.a, pair.b)}
    drawn = [curve for each in curves for curve in each if (curve.label, curve.task) in compared]
    figures = frontier_figures(drawn)
    tests = Section("Models on the same samples", _explain(pairs, confidence), _pairs(pairs, confidence))
    sections = [
        Section("What each run found", "\n\n".join(_first_words(run, label) for run, label in zip(runs, labels))),
        *([tests] if pairs else []),
        *([equal_cost_section(costs, confidence, list(figures))] if costs else []),
        *_qualities(runs, labels, quality),
    ]
    return Report(
        title=f"{len(runs)} runs",
        headline="\n\n".join(
            [*_headline(runs, labels, pairs, confidence), *equal_cost_sentences(costs, confidence), *remarks]
        ),
        sections=sections,
        kind="overview",
        figures=figures,
        charts=charts,
    )


def _headline(
    runs: Sequence[Stored], labels: Sequence[str], pairs: Sequence[ModelPair], confidence: float
) -> list[str]:
    models = list(dict.fromkeys(map(without_skipping, labels)))
    tasks = list(dict.fromkeys(task for run in runs for task in run.arguments.get("data.tasks") or ()))
    counts = f"{len(runs)} runs of {_count(models, 'model')} on {_count(tasks, 'task')}."
    if not pairs:
        why = "" if len(models) < 2 else " No two models answered the same samples under one metric: none are compared."
        return [counts + why, *_versions(runs)]
    found = [pair for pair in pairs if differs(pair.found.p_holm, confidence)]
    found.sort(key=lambda pair: pair.what != ALL_BLOCKS)
    told = [_sentence(pair) for pair in found[:_SENTENCES]]
    more = f" {len(found) - _SENTENCES} more are in the table." if len(found) > _SENTENCES else ""
    tests = f"{len(found)} of {len(pairs)} differences between models are shown (Holm)."
    return [f"{counts} {tests}", *(["\n".join(told) + more] if told else []), *_versions(runs)]


def _versions(runs: Sequence[Stored]) -> list[str]:
    """That runs are of different versions, where they are."""
    differing = []
    for package in ("lit_depth", "torch", "transformers"):
        versions = {str((run.manifest.get("versions") or {}).get(package)) for run in runs}
        if len(versions) > 1:
            differing.append(f"{package} {', '.join(sorted(versions))}")
    return [f"The runs were made by different versions: {'; '.join(differing)}."] if differing else []


def _count(names: Sequence[str], noun: str) -> str:
    listed = f" ({', '.join(names)})" if len(names) <= _SENTENCES else ""
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}{listed}"


def _sentence(pair: ModelPair) -> str:
    interval, together = pair.found.interval, pair.found.simultaneous
    first, second = (pair.a, pair.b) if interval.estimate > 0 else (pair.b, pair.a)
    limits = format_interval([together.low, together.high])
    p_value = format_p_value(pair.found.p_holm)
    return (
        f"On {pair.task} with {pair.what} {first} scores higher than {second}: "
        f"{pair.a} less {pair.b} {interval.estimate:+.3f} {limits}, p {p_value}."
    )


def _first_words(run: Stored, label: str) -> str:
    """The first paragraph of the answers, or of the headline, which says first what forbids a verdict."""
    answers = next((section.text for section in run.report.sections if section.heading == "Answers"), "")
    texts = (run.report.headline, answers) if run.report.scalars.get("withheld") else (answers, run.report.headline)
    words = next((text for text in texts if text), "").partition("\n\n")[0]
    return f"{label}, {run.command} {run.folder.name} on {', '.join(run.arguments.get('data.tasks') or ['-'])}: {words}"


def _explain(pairs: Sequence[ModelPair], confidence: float) -> str:
    text = (
        f"Samples are matched by id and clustered by image; intervals are {confidence:.0%} {SIMULTANEOUS} over all "
        "rows, and p-values are corrected over all rows. A policy is compared by its mean over the numbers of blocks "
        "that both runs have (depths)."
    )
    others = list(dict.fromkeys(pair.task for pair in pairs if not pair.same_samples))
    if others:
        text += (
            f"\n\nOf {', '.join(others)} the two runs chose other samples or read other files: ids alone say that the "
            "shared ones are the same questions."
        )
    return text


def _pairs(pairs: Sequence[ModelPair], confidence: float) -> Table:
    rows: list[list[Cell]] = []
    for pair in pairs:
        found = pair.found
        higher = "a" if found.interval.estimate > 0 else "b"
        rows.append(
            [
                *(pair.task, pair.what, pair.a, pair.b),
                f"{higher} is higher" if differs(found.p_holm, confidence) else "not shown",
                f"{found.interval.estimate:+.3f}",
                format_interval([found.simultaneous.low, found.simultaneous.high]),
                format_p_value(found.p_holm),
                *(pair.quality_a, pair.quality_b, pair.num_samples, pair.num_clusters, pair.split),
            ]
        )
    return Table(HEADERS, rows)


def _qualities(
    runs: Sequence[Stored], labels: Sequence[str], quality: Sequence[Mapping[str, Sequence[MaskChanges]]]
) -> list[Section]:
    """Quality of the full models, one row for each run and task."""
    knobs = {name: head for name, head in KNOBS.items() if any(run.arguments.get(name) is not None for run in runs)}
    rows: list[list[Cell]] = [
        [
            *(label, f"{run.command}/{run.folder.name}", task),
            *("as stored" if run.arguments.get(name) is None else run.arguments[name] for name in knobs),
            *(masks[0].num_samples, masks[0].quality, len(masks)),
        ]
        for run, label, tasks in zip(runs, labels, quality)
        for task, masks in tasks.items()
        if masks
    ]
    headers = ("model", "run", "task", *knobs.values(), "samples", "quality of all blocks", "masks")
    text = "Their intervals stand with each run."
    return [Section("Full models", text, Table(headers, rows), printed=bool(knobs))] if rows else []


def _charts(runs: Sequence[Stored], labels: Sequence[str]) -> dict[str, Chart]:
    """Of every task that several models were compared on: quality against blocks, one policy of each model."""
    curves: dict[str, dict[str, list[Mark]]] = {}
    words: dict[str, Mapping[str, str]] = {}
    for run, label in zip(runs, labels):
        for name, chart in run.report.charts.items() if run.command == "compare" else ():
            tasks = run.arguments.get("data.tasks") or []
            task = name.removeprefix("quality_vs_blocks_")
            task = tasks[0] if name == "quality_vs_blocks" and len(tasks) == 1 else task
            if chart.kind == "quality_vs_blocks" and task in tasks:
                curves.setdefault(task, {}).setdefault(label, _marks(chart, label))
                words[task] = chart.strings
    return {
        f"models_{task}": quality_vs_blocks(
            [mark for marks in of_model.values() for mark in marks],
            None,
            {**words[task], "title": f"{task}, several runs"},
        )
        for task, of_model in curves.items()
        if 1 < len(of_model) <= len(COLORS)
    }


def _marks(chart: Chart, label: str) -> list[Mark]:
    """The points of one policy: importance, or the first that there is."""
    rows: list[dict[str, Any]] = [dict(zip(chart.table.headers, row)) for row in chart.table.rows]
    rows = [row for row in rows if row["role"] == "policy"]
    policies = list(dict.fromkeys(str(row["policy"]) for row in rows))
    policy = _PREFERRED if _PREFERRED in policies else policies[0]
    return [
        Mark(f"{label}: {policy}", row["blocks"], row["quality"], [row["low"], row["high"]], row["at_constant"])
        for row in rows
        if row["policy"] == policy
    ]
