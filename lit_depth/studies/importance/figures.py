"""Bars of block importance, and ranks by task or method, drawn from the result of ``lit-depth importance``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_depth.results.against_full_views import AGREEMENT_FIGURE, AgainstFull, flips_figures
from lit_depth.results.charts.block_charts import Bar, HeatCell, heat_map, importance_bars
from lit_depth.results.measures import cluster_noun, metric_label
from lit_depth.results.report import Chart
from lit_depth.results.style import (
    bar_lengths,
    line_with_bars,
    new_figure,
    plain_axes,
    whole_numbers,
    withheld_title,
)
from lit_depth.results.unit_names import label_units, skipping, unit_name, unit_places, units_noun
from lit_depth.results.verdicts import SIMULTANEOUS, constant_label, differs, refusal
from lit_depth.studies.shared.importance_views import agreement_figure, is_sure, matrix_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEAN, BY_TASK, AGREEMENT, METHODS = (
    f"block_importance_{what}" for what in ("macro", "by_task", "agreement", "methods")
)
_COLOR, _UNSURE = "#0072B2", "#9CC7E4"
_PANELS = {"quality": "Drop in quality ({metric})", "reference_logprob": "Drop in reference log-probability (nats)"}


def importance_figures(result: dict[str, Any]) -> dict[str, Callable[[], Figure]]:
    """Names of all figures of a result, and what draws each.

    Returns:
        ``block_importance`` for one task, else ``block_importance_<task>`` for each, ``block_importance_macro`` (their
        mean), ``block_importance_by_task`` (heatmap) and ``block_importance_agreement`` (rank correlation of all pairs
        of tasks). Of several methods also ``block_importance_methods``; with a logit lens ``logit_lens`` for one task,
        else ``logit_lens_<task>`` for each.
    """
    tasks, confidence = result["tasks"], result["confidence"]
    where = f"{result['split']} split{skipping(result)}"
    figures: dict[str, Callable[[], Figure]] = {}
    for task in tasks:
        title = f"{task['task']}, {task['num_samples']} samples, {where}"
        bars = partial(importance_figure, task["blocks"], title, task["metric"], confidence, task)
        figures[task_figure(task, tasks)] = bars
        figures |= flips_figures(
            against_full(task, confidence), title, confidence, agreement_name(task, tasks), task.get("max_score")
        )
        if "lens" in task:
            figures[lens_name(task, tasks)] = partial(lens_figure, task, title, confidence)
    if result["macro"]:
        metric = " / ".join(dict.fromkeys(task["metric"] for task in tasks))
        title = f"mean over {len(tasks)} tasks, {where}"
        figures[MEAN] = partial(importance_figure, result["macro"], title, metric, confidence, result)
        figures[BY_TASK] = partial(heatmap, tasks, f"Drop in quality, {where}", confidence)
    if result["agreement"]:
        figures[AGREEMENT] = partial(agreement_figure, result["agreement"], [task["task"] for task in tasks])
    if "methods" in result:
        title = f"Rank of each block by method, {tasks[0]['task']}, {where}"
        title = withheld_title(title, tasks[0])
        figures[METHODS] = partial(methods_figure, result["methods"]["entries"], title)
    return figures


def agreement_name(task: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    """Name of the figure of scores that change."""
    return AGREEMENT_FIGURE if len(tasks) == 1 else f"{AGREEMENT_FIGURE}_{task['task']}"


def against_full(task: Mapping[str, Any], confidence: float) -> list[AgainstFull]:
    """The model without each block beside the full one; results of earlier versions know nothing of it."""
    noun = units_noun(task["blocks"])
    return [
        AgainstFull(
            f"without {noun} {unit_name(each)}",
            f"without a {noun}",
            each["quality"]["drop"],
            each["quality"]["drop_ci"],
            differs(each["quality"]["p_holm"], confidence),
            each.get("agreement"),
        )
        for each in task["blocks"]
    ]


def importance_charts(
    measured: Mapping[str, Mapping[str, Any]], where: str, confidence: float, tasks: Sequence[Mapping[str, Any]]
) -> dict[str, Chart]:
    """Drops in quality as interactive charts: bars of what was ``measured``, by name, and a map of several tasks."""
    charts = {f"importance/{name}": _bars_chart(entry, where, confidence) for name, entry in measured.items()}
    if len(tasks) > 1:
        cells = [
            HeatCell(
                task["task"], str(unit_name(each)), each["quality"]["drop"], is_sure(each["quality"], task, confidence)
            )
            for task in tasks
            for each in task["blocks"]
        ]
        words = {
            "title": f"Drop in quality, {where}",
            "subtitle": "pale: no difference shown (Holm)",
            "x": f"skipped {units_noun(tasks[0]['blocks'])}",
            "y": "",
        }
        charts["importance/by_task"] = heat_map(cells, words, limit=_color_limit(tasks))
    return charts


def drawn_in_place(tasks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The figure that shows the same as each chart."""
    drawn = {f"importance/{task['task']}": task_figure(task, tasks) for task in tasks}
    return drawn | {"importance/macro": MEAN, "importance/by_task": BY_TASK}


def _bars_chart(measured: Mapping[str, Any], where: str, confidence: float) -> Chart:
    blocks = measured["blocks"]
    bars = [
        Bar(
            str(unit_name(each)),
            each["quality"]["drop"],
            each["quality"]["drop_simultaneous_ci"],
            is_sure(each["quality"], measured, confidence),
        )
        for each in blocks
    ]
    words = {
        "title": withheld_title(f"{measured['task']}, {where}", measured),
        "subtitle": f"bars: {confidence:.0%} {SIMULTANEOUS}; pale: no difference shown",
        "x": f"skipped {units_noun(blocks)}",
        "y": f"drop in quality ({metric_label(measured['metric'])})",
    }
    return importance_bars(bars, words)


def _color_limit(tasks: Sequence[Mapping[str, Any]]) -> float:
    """Where the colours of a map end: one block may cost far more than all others, which should be told apart."""
    highest = sorted(abs(entry["quality"]["drop"]) for task in tasks for entry in task["blocks"])
    return highest[int(0.9 * (len(highest) - 1))] or highest[-1] or 1.0


def task_figure(task: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    """Name of a task's figure, among these tasks."""
    return "block_importance" if len(tasks) == 1 else f"block_importance_{task['task']}"


def lens_name(task: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    """Name of the figure of a task's logit lens, among these tasks."""
    return "logit_lens" if len(tasks) == 1 else f"logit_lens_{task['task']}"


def heatmap(tasks: Sequence[dict[str, Any]], title: str, confidence: float) -> Figure:
    """Drops by task (rows) and block (columns); pale where the task's own family of tests shows no difference."""
    values = [[entry["quality"]["drop"] for entry in task["blocks"]] for task in tasks]
    units = tasks[0]["blocks"]
    columns = [str(unit_name(entry)) for entry in units]
    names = [f"{task['task']} ({metric_label(task['metric'])})" for task in tasks]
    sure = [[is_sure(entry["quality"], task, confidence) for entry in task["blocks"]] for task in tasks]
    title = f"{title}; pale: no difference shown (Holm)"
    return matrix_figure(values, names, columns, title, _color_limit(tasks), f"Skipped {units_noun(units)}", sure)


def methods_figure(methods: list[dict[str, Any]], title: str) -> Figure:
    """Ranks of the blocks (columns) by method (rows, with its correlation), 1 = most important and brightest."""
    blocks = list(methods[0]["ranks"])
    figure, axes = new_figure(max(8, 0.42 * len(blocks) + 4), 0.4 * len(methods) + 1.8)
    ranks = [[entry["ranks"][block] for block in blocks] for entry in methods]
    image = axes.imshow(ranks, cmap="viridis_r", vmin=1, vmax=max(2, len(blocks)), aspect="auto")
    for row, cells in enumerate(ranks):
        for column, rank in enumerate(cells):
            color = "white" if rank > 0.45 * len(blocks) else "black"
            axes.text(column, row, str(rank), ha="center", va="center", fontsize=8, color=color)
    names = [entry["method"].replace("_", " ") for entry in methods]
    values = ["" if entry["spearman"] is None else f" ({entry['spearman']:+.2f})" for entry in methods]
    axes.set_yticks(range(len(methods)), [name + value for name, value in zip(names, values)])
    axes.set_xticks(range(len(blocks)), blocks)
    axes.set_xlabel("Block")
    axes.set_title(f"{title}\n1 = most important; in brackets: Spearman with the first row", loc="left", fontsize=11)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label="Rank")
    bar.ax.invert_yaxis()
    bar.set_ticks([1, len(blocks)])
    return figure


def importance_figure(
    blocks: list[dict[str, Any]], title: str, metric: str, confidence: float, measured: Mapping[str, Any]
) -> Figure:
    """Bars with intervals: what skipping each block or half costs, in quality and in reference log-probability.

    The intervals are simultaneous over the bars of a panel. A bar is pale where its interval contains zero, and
    everywhere if the full model was not shown to beat the best constant answer. A dotted line shows where a mask would
    be as good as that.

    Args:
        blocks: Entries as in `lit_depth.results.unit_names`, with ``quality`` and ``reference_logprob``, which have
            ``drop``, ``drop_simultaneous_ci`` and ``p_holm``.
        measured: ``full`` and ``baseline`` of the same samples, see `lit_depth.results.verdicts`.
    """
    figure, panels = new_figure(max(8, 0.28 * len(blocks) + 2), 6.5, 2, 1, sharex=True)
    places = unit_places(blocks)
    for axes, (measure, label) in zip(panels, _PANELS.items()):
        plain_axes(axes)
        values = [entry[measure]["drop"] for entry in blocks]
        limits = [entry[measure]["drop_simultaneous_ci"] for entry in blocks]
        colors = [_COLOR if is_sure(entry[measure], measured, confidence) else _UNSURE for entry in blocks]
        axes.bar(places, values, color=colors, width=0.75)
        lengths = bar_lengths(values, limits)
        axes.errorbar(places, values, yerr=lengths, fmt="none", ecolor="#333333", elinewidth=1.2, capsize=3)
        axes.axhline(0, color="#333333", linewidth=0.8)
        axes.set_ylabel(label.format(metric=metric_label(metric)))
    baseline = measured.get("baseline")
    if baseline is not None:
        height = measured["full"]["quality"] - baseline["quality"]
        label = f"no better than the {constant_label(baseline)}"
        panels[0].axhline(height, color="#B00020", linestyle=":", linewidth=1.5, label=label)
        panels[0].legend(frameon=False, fontsize=9)
    pale = "0 is within" if refusal(measured) is None else "no verdict"
    title = f"{title}\nbars: {confidence:.0%} {SIMULTANEOUS} by {cluster_noun(measured)}; pale: {pale}"
    panels[0].set_title(withheld_title(title, measured), loc="left", fontsize=11)
    panels[1].set_xlabel(f"Skipped {units_noun(blocks)}")
    label_units(panels[1], blocks)
    return figure


def lens_figure(task: Mapping[str, Any], title: str, confidence: float) -> Figure:
    """Where the reference answers stand behind every block, above what skipping a block costs.

    Args:
        task: ``lens`` as in `lit_depth.studies.importance.lens_by_block.describe_lens`, and ``blocks``.
    """
    lens, blocks = task["lens"], task["blocks"]
    figure, panels = new_figure(max(8, 0.28 * len(lens) + 2), 10, 4, 1, sharex=True)
    of_ranks, of_logprob, of_shares, of_drops = panels
    places = [entry["block"] for entry in lens]
    for axes in panels:
        plain_axes(axes)
    of_ranks.fill_between(places, *zip(*(entry["rank_quartiles"] for entry in lens)), color=_UNSURE, alpha=0.5)
    of_ranks.plot(places, [entry["rank"] for entry in lens], color=_COLOR, marker="o")
    of_ranks.set(yscale="log", ylabel="Rank (median, quartiles)")
    of_ranks.yaxis.set_major_formatter("{x:g}")
    for axes, name, label, color, marker in (
        (of_logprob, "logprob", "", _COLOR, "o"),
        (of_shares, "top", "top here", "#E69F00", "s"),
        (of_shares, "settled", "settled: top here and behind all later blocks", _COLOR, "o"),
    ):
        limits, values = [entry[f"{name}_ci"] for entry in lens], [entry[name] for entry in lens]
        line_with_bars(axes, places, values, limits, [False] * len(lens), (color, marker), label)
    of_logprob.set_ylabel("Log-probability (nats)")
    of_shares.set_ylabel("Share of answers")
    of_shares.legend(frameon=False, fontsize=9)
    whole = units_noun(blocks) == "block"
    # two halves stand where their block does
    at = [float(place) if whole else place / 2 - 0.25 for place in unit_places(blocks)]
    drops = [entry["quality"]["drop"] for entry in blocks]
    of_drops.bar(at, drops, color=_COLOR, width=0.75 if whole else 0.4)
    limits = [entry["quality"]["drop_simultaneous_ci"] for entry in blocks]
    of_drops.errorbar(at, drops, yerr=bar_lengths(drops, limits), fmt="none", ecolor="#333333", capsize=3)
    of_drops.axhline(0, color="#333333", linewidth=0.8)
    skipped = "block skipped" if whole else "attention (left) or MLP skipped"
    of_drops.set_ylabel(f"Drop in quality ({metric_label(task['metric'])}),\n{skipped}")
    of_drops.set_xlabel("Block")
    whole_numbers(of_drops.xaxis)
    bars = f"bars: {confidence:.0%} intervals by {cluster_noun(task)}; those of the drops are simultaneous"
    of_ranks.set_title(
        f"The reference answer behind every block (logit lens)\n{title}\n{bars}", loc="left", fontsize=11
    )
    return figure
