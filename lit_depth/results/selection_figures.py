"""Quality against time of the masks that ``lit-depth select`` chose from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.results.figures import draw_constant, hollow, plain_axes, withheld_title
from lit_depth.results.store import save_figure
from lit_depth.results.verdicts import mark

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_selection_figure(result: dict[str, Any], folder: str | Path) -> Path:
    """Draw and save ``quality_vs_budget.png``; returns its path."""
    path = Path(folder) / "quality_vs_budget.png"
    save_figure(selection_figure(result), path)
    return path


def selection_figure(result: dict[str, Any]) -> Figure:
    """Every candidate at the budget that it needs, the frontier through the best, the budget and what was chosen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.subplots()
    plain_axes(axes)
    entries = result["candidates"]
    shown = [entry["expected"] or entry["chosen_by"] for entry in entries]
    times = [entry["latency_ms"]["bound"] for entry in entries]
    bars = [
        [max(0.0, each["quality"] - each["quality_ci"][0]) for each in shown],
        [max(0.0, each["quality_ci"][1] - each["quality"]) for each in shown],
    ]
    label = f"best mask of each depth, {result['confidence']:.0%} interval of its own quality"
    heights = [each["quality"] for each in shown]
    axes.errorbar(times, heights, yerr=bars, fmt="o", color="#888888", markersize=5, elinewidth=1, label=label)
    baseline = result.get("baseline")
    marks = [bool(mark(each["quality"], each.get("num_distinct_answers"), baseline)) for each in shown]
    hollow(axes, times, heights, marks, "#888888", "o", size=5)
    draw_constant(axes, baseline)
    points = sorted((times[i], heights[i]) for i, entry in enumerate(entries) if entry["mask_id"] in result["frontier"])
    axes.plot(
        *zip(*points), "-o", color="#0072B2", markersize=5, linewidth=1.5, label="frontier, by the questions chosen on"
    )
    for time, height, entry in zip(times, heights, entries):
        axes.annotate(str(entry["num_active_blocks"]), (time, height), (4, -11), textcoords="offset points", fontsize=8)
    if result["selected"] is not None:
        index = next(i for i, entry in enumerate(entries) if entry["mask_id"] == result["selected"]["mask_id"])
        axes.axvline(result["budget_ms"], color="#D55E00", linestyle="--", linewidth=1, label="budget")
        axes.plot(times[index], heights[index], "s", color="#D55E00", markersize=9, label="chosen")
    share = result["share_within_budget"]
    free = f", {result['margin']:.0%} of it kept free" if result["margin"] else ""
    axes.set_xlabel(f"Budget that {share:.0%} of the requests stay within{free} (ms)\nnumbers: active blocks")
    axes.set_ylabel(f"Quality ({result['metric']})")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    requests = [entry["latency_ms"]["num_requests"] for entry in entries if entry["latency_ms"]["num_requests"]]
    title = f"{result['task']}, {result['new_tokens']} new tokens, {min(requests, default=0)} requests per mask"
    axes.set_title(withheld_title(f"{title}, {result['device']}", result), loc="left", fontsize=11)
    return figure
