"""Quality against what it costs, of runs of one model whose masks other tokens skip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_depth.functional.latency.frontier import Measured, clear_frontier
from lit_depth.results.style import COLORS, GREY, MARKERS, bar_lengths, new_figure, plain_axes
from lit_depth.results.verdicts import SIMULTANEOUS
from lit_depth.studies.overview.equal_cost import CostCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXES = {"flops": "FLOPs of a request", "time": "Median time of a request"}
_BARS = {"flops": "counted, without error", "time": "bars across: intervals of the median"}


def frontier_figures(curves: Sequence[CostCurve]) -> dict[str, Callable[[], Figure]]:
    """One figure for each task that several runs have points of."""
    figures: dict[str, Callable[[], Figure]] = {}
    for task in dict.fromkeys(curve.task for curve in curves):
        own = [curve for curve in curves if curve.task == task]
        labels = list(dict.fromkeys(curve.label for curve in own))
        if 1 < len(labels) <= len(COLORS):
            figures[f"frontier_{task}"] = partial(frontier_figure, own, labels)
    return figures


def frontier_figure(curves: Sequence[CostCurve], labels: Sequence[str]) -> Figure:
    """A panel for each kind of cost: all masks of each run, and as steps those that are best beyond their intervals.

    Pale points are masks that another one of the same run may beat at no higher cost.
    """
    costs = [cost for cost in _AXES if any(curve.cost == cost for curve in curves)]
    figure, panels = new_figure(5.6 * len(costs) + 0.4, 5.6, 1, len(costs), sharey=True, squeeze=False)
    for axes, cost in zip(panels[0], costs):
        plain_axes(axes)
        for curve in (each for each in curves if each.cost == cost):
            place = labels.index(curve.label)
            _draw(axes, curve, (COLORS[place], MARKERS[place]))
        full = next(curve.points[-1] for curve in curves if curve.cost == cost)
        axes.plot(1.0, full.quality, "*", color="black", markersize=13, markeredgecolor="white", label="all blocks")
        axes.axhline(full.quality, color=GREY, linestyle="--", linewidth=1)
        axes.grid(axis="x", color="#eeeeee", linewidth=0.8)
        axes.set_xlabel(f"{_AXES[cost]}, relative to all blocks\n{_BARS[cost]}")
    panels[0][0].set_ylabel(f"Quality ({curves[0].metric})")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", frameon=False, fontsize=9, ncols=1)
    title = (
        f"{curves[0].task}: quality at equal cost\nsteps: frontier beyond the intervals, with its active blocks; bars: "
        f"{curves[0].confidence:.0%} {SIMULTANEOUS} of the difference to all blocks"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _draw(axes: Axes, curve: CostCurve, look: tuple[str, str]) -> None:
    color, marker = look
    points = [Measured(each.cost, each.quality, each.cost_limits, each.quality_limits) for each in curve.points]
    best = clear_frontier(points)
    others = [index for index in range(len(points)) if index not in best]
    for chosen, alpha, size in ((others, 0.25, 4), (best, 1.0, 6)):
        if not chosen:
            continue
        times, qualities = [points[index].time for index in chosen], [points[index].quality for index in chosen]
        lengths: dict[str, Any] = {
            "xerr": bar_lengths(times, [points[index].times for index in chosen]),
            "yerr": bar_lengths(qualities, [points[index].qualities for index in chosen]),
        }
        axes.errorbar(
            times, qualities, **lengths, fmt=marker, color=color, markersize=size, elinewidth=1, alpha=alpha, zorder=3
        )
    steps = [(points[index].time, points[index].quality) for index in best]
    axes.plot(
        *zip(*steps), drawstyle="steps-post", color=color, marker=marker, linewidth=1.6, zorder=2, label=curve.label
    )
    for index in best:
        if curve.points[index].cost < 1:
            axes.annotate(
                str(curve.points[index].blocks), points[index][:2], (-4, 5), textcoords="offset points", ha="right",
                fontsize=8, color=color,
            )  # fmt: skip
