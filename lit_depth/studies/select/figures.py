"""Quality against time of the masks that ``lit-depth select`` chose from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_depth.results.charts.quality_charts import Mark, TimedMark, quality_vs_latency
from lit_depth.results.measures import metric_label, sample_noun
from lit_depth.results.report import Chart
from lit_depth.results.style import bar_lengths, draw_constant, hollow, new_figure, plain_axes, withheld_title
from lit_depth.results.unit_names import active_blocks
from lit_depth.results.verdicts import mark

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def selection_chart(result: Mapping[str, Any]) -> Chart:
    """The figure as an interactive chart: bars from the median time to the budget that a mask needs."""
    marks = []
    for entry in result["candidates"]:
        found, times = entry["expected"] or entry["chosen_by"], entry["latency_ms"]
        hollow = bool(mark(found["quality"], found.get("num_distinct_answers"), result.get("baseline")))
        chosen = result["selected"] is not None and result["selected"]["mask_id"] == entry["mask_id"]
        name = "chosen" if chosen else "best mask of each depth"
        of = Mark(name, entry["num_active_blocks"], found["quality"], found["quality_ci"], hollow)
        limits = [times["P50"] or times["bound"], times["bound"]]
        marks.append(TimedMark(of, times["bound"], limits, entry["mask_id"] in result["frontier"]))
    words = {
        "title": withheld_title(f"{result['task']}, {result['new_tokens']} new tokens, {result['device']}", result),
        "subtitle": f"{result['confidence']:.0%} intervals of each mask's quality; numbers: {active_blocks(result)}",
        "x": f"budget that {result['share_within_budget']:.0%} of the requests stay within (ms); bars from the median",
        "y": f"quality ({metric_label(result['metric'])})",
    }
    return quality_vs_latency(marks, None, words)


def selection_figure(result: Mapping[str, Any]) -> "Figure":
    """Every candidate at the budget that it needs, the frontier through the best, the budget and what was chosen."""
    figure, axes = new_figure(7.5, 5.5)
    plain_axes(axes)
    entries = result["candidates"]
    shown = [entry["expected"] or entry["chosen_by"] for entry in entries]
    times = [entry["latency_ms"]["bound"] for entry in entries]
    label = f"best mask of each depth, {result['confidence']:.0%} interval of its own quality"
    heights = [each["quality"] for each in shown]
    bars = bar_lengths(heights, [each["quality_ci"] for each in shown])
    axes.errorbar(times, heights, yerr=bars, fmt="o", color="#888888", markersize=5, elinewidth=1, label=label)
    baseline = result.get("baseline")
    marks = [bool(mark(each["quality"], each.get("num_distinct_answers"), baseline)) for each in shown]
    hollow(axes, times, heights, marks, "#888888", "o", size=5)
    draw_constant(axes, baseline)
    points = sorted((times[i], heights[i]) for i, entry in enumerate(entries) if entry["mask_id"] in result["frontier"])
    label = f"frontier, by the {sample_noun(result)}s chosen on"
    axes.plot(*zip(*points), "-o", color="#0072B2", markersize=5, linewidth=1.5, label=label)
    for time, height, entry in zip(times, heights, entries):
        axes.annotate(str(entry["num_active_blocks"]), (time, height), (4, -11), textcoords="offset points", fontsize=8)
    if result["selected"] is not None:
        index = next(i for i, entry in enumerate(entries) if entry["mask_id"] == result["selected"]["mask_id"])
        axes.axvline(result["budget_ms"], color="#D55E00", linestyle="--", linewidth=1, label="budget")
        axes.plot(times[index], heights[index], "s", color="#D55E00", markersize=9, label="chosen")
    share = result["share_within_budget"]
    free = f", {result['margin']:.0%} of it kept free" if result["margin"] else ""
    axes.set_xlabel(f"Budget that {share:.0%} of the requests stay within{free} (ms)\nnumbers: {active_blocks(result)}")
    axes.set_ylabel(f"Quality ({metric_label(result['metric'])})")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    requests = [entry["latency_ms"]["num_requests"] for entry in entries if entry["latency_ms"]["num_requests"]]
    title = f"{result['task']}, {result['new_tokens']} new tokens, {min(requests, default=0)} requests per mask"
    axes.set_title(withheld_title(f"{title}, {result['device']}", result), loc="left", fontsize=11)
    return figure
