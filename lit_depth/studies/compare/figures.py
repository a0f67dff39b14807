"""The figures of a mask comparison, drawn from its result (a `lit_depth.studies.shared.comparison_schema.Comparison`).

matplotlib is imported inside the functions and used without pyplot: no global state, no display needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lit_depth.results.charts.quality_charts import (
    Mark,
    TimedMark,
    deal_colors,
    quality_vs_blocks,
    quality_vs_latency,
)
from lit_depth.results.measures import metric_label
from lit_depth.results.report import Chart
from lit_depth.results.style import (
    COLORS,
    GREY,
    MARKERS,
    STAGES,
    bar_lengths,
    draw_constant,
    hollow,
    legend,
    line_with_bars,
    new_figure,
    plain_axes,
    whole_numbers,
    withheld_title,
)
from lit_depth.results.verdicts import SIMULTANEOUS, constant_label, mark_strategy
from lit_depth.studies.shared.comparison_schema import Comparison, Latency, Strategy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# policies that have the first colours; all others have the next ones. A figure is drawn without torch, which the table
# of policies imports.
_FIRST_COLORS = ("prefix", "importance", "random", "suffix", "uniform")
_MAX_TICKS = 16


def comparison_figures(comparison: Comparison) -> dict[str, Callable[[], Figure]]:
    """The figures by name: quality; times, if all strategies have some; the quality of each of several tasks."""
    figures = {"m5_quality_vs_blocks": partial(quality_figure, comparison)}
    if has_latency(comparison):
        figures["m5_latency_vs_blocks"] = partial(latency_figure, comparison)
        figures["m5_quality_latency_tradeoff"] = partial(tradeoff_figure, comparison)
    return {**figures, **{task_figure(task): partial(quality_figure, task) for task in comparison.get("tasks", ())}}


def comparison_charts(comparison: Comparison) -> dict[str, Chart]:
    """The same figures as interactive charts: quality against blocks, of each task too; against time, if measured.

    The intervals of a time are its least and greatest request: they hold the median of all requests with probability
    ``1 - 2 ** (1 - requests)``, whatever the distribution (order statistics).
    """
    charts = {"quality_vs_blocks": _quality_chart(comparison)}
    charts |= {f"quality_vs_blocks_{task['task']}": _quality_chart(task) for task in comparison.get("tasks", ())}
    return charts | ({"quality_vs_latency": _latency_chart(comparison)} if has_latency(comparison) else {})


def drawn_in_place(comparison: Comparison) -> dict[str, str]:
    """The figure that shows the same as each chart."""
    tasks = {f"quality_vs_blocks_{task['task']}": task_figure(task) for task in comparison.get("tasks", ())}
    drawn = {"quality_vs_blocks": "m5_quality_vs_blocks", **tasks}
    return drawn | ({"quality_vs_latency": "m5_quality_latency_tradeoff"} if has_latency(comparison) else {})


def _quality_chart(comparison: Comparison) -> Chart:
    baseline = comparison.get("baseline")
    constant = baseline and Mark(constant_label(baseline), 0, baseline["quality"], baseline["quality_ci"], True)
    marks = [_mark(strategy, comparison) for strategy in comparison["strategies"]]
    return quality_vs_blocks(marks, _full_mark(comparison), _words(comparison), constant, _colors(comparison))


def _latency_chart(comparison: Comparison) -> Chart:
    # brings torch along, which reading and drawing results do without
    from lit_depth.functional.latency.budget import pareto_frontier

    timed = [(_mark(each, comparison), each["latency_ms"]) for each in comparison["strategies"]]
    full = comparison["full"]["latency_ms"]
    if full is not None:
        timed.append((_full_mark(comparison), full))
    points = [(total_ms(times), mark.quality, index) for index, (mark, times) in enumerate(timed)]
    best = {index for *_, index in pareto_frontier(points)}
    marks = [
        TimedMark(mark, total_ms(times), _range_ms(times), index in best) for index, (mark, times) in enumerate(timed)
    ]
    words = _words(comparison) | {"x": "median total time per request (ms); bars: least to greatest"}
    last = marks.pop() if full is not None else None
    return quality_vs_latency(marks, last, words, _colors(comparison))


def _range_ms(times: Latency | None) -> list[float]:
    assert times is not None  # has_latency
    return [times["total"]["min"], times["total"]["max"]]


def _mark(strategy: Strategy, comparison: Comparison) -> Mark:
    hollow = bool(mark_strategy(strategy, comparison.get("baseline")))
    ends = limits(strategy, comparison)
    return Mark(strategy["policy"], strategy["num_active_blocks"], strategy["quality"], ends, hollow)


def _full_mark(comparison: Comparison) -> Mark:
    full, count = comparison["full"], comparison["num_blocks"]
    return Mark(f"all {count} blocks", count, full["quality"], full["quality_ci"])


def _words(comparison: Comparison) -> dict[str, str]:
    bars = _bars(comparison).replace("\n", " ")
    return {
        "title": withheld_title(_title(comparison), comparison),
        "subtitle": bars,
        "x": f"active blocks (of {comparison['num_blocks']})",
        "y": f"quality ({metric_label(comparison['metric'])})",
    }


def _colors(comparison: Comparison) -> dict[str, str]:
    return deal_colors(list(by_policy(comparison)), _FIRST_COLORS)


def task_figure(task: Comparison) -> str:
    """Name of the figure of one of several tasks."""
    return f"m5_quality_vs_blocks_{task['task']}"


def has_latency(comparison: Comparison) -> bool:
    """Whether every strategy has measured times."""
    strategies = comparison["strategies"]
    return bool(strategies) and all(strategy["latency_ms"] is not None for strategy in strategies)


def quality_figure(comparison: Comparison) -> Figure:
    """Quality against the number of active blocks: one line per policy with its intervals.

    A policy with several masks at one number of blocks (random) is drawn as their mean, with their range shaded. The
    intervals are those of the drop from the full model, simultaneous over all policies and counts: a bar leaves the
    dashed line of the full model free exactly where the two differ. A hollow marker answers no better than a constant.
    """
    figure, axes = new_figure(8, 5)
    policies = by_policy(comparison)
    # Side by side, so that intervals at one number of blocks can be told apart.
    offsets = [0.09 * (i - (len(policies) - 1) / 2) for i in range(len(policies))]
    for offset, (policy, strategies) in zip(offsets, policies.items()):
        look = _look(policy, comparison)
        blocks = [strategy["num_active_blocks"] for strategy in strategies]
        quality = [strategy["quality"] for strategy in strategies]
        ends = [limits(strategy, comparison) for strategy in strategies]
        label = policy
        num_masks = max(len(strategy["masks"]) for strategy in strategies)
        if num_masks > 1:
            ranges = [[mask["quality"] for mask in strategy["masks"]] for strategy in strategies]
            _shade(axes, blocks, ranges, look[0], 0.15)
            label = f"{policy}, mean of {num_masks}\n(range shaded)"
        places = [block + offset for block in blocks]
        line_with_bars(axes, places, quality, ends, _marks(strategies, comparison), look, label)
    full = comparison["full"]["quality"]
    axes.axhline(full, color=GREY, linestyle="--", linewidth=1.5, label=f"all {comparison['num_blocks']} blocks")
    draw_constant(axes, comparison.get("baseline"))
    _block_axis(axes, comparison, with_full=False)
    axes.set_ylabel(f"Quality ({metric_label(comparison['metric'])})")
    axes.set_title(withheld_title(_title(comparison), comparison), loc="left", fontsize=11)
    legend(figure, axes, _bars(comparison))
    return figure


def limits(strategy: Strategy, comparison: Comparison) -> Sequence[float]:
    """Quality at either end of the simultaneous interval of the drop; of the full model itself there is none."""
    drop = strategy.get("drop_simultaneous_ci")
    if drop is not None:
        full = comparison["full"]["quality"]
        # no quality lies below 0, whatever the drop may be, but a log-probability
        return [full - drop[1] if full < 0 else max(0.0, full - drop[1]), full - drop[0]]
    return strategy["quality_ci"] if not _has_families(comparison) else [strategy["quality"]] * 2


def _has_families(comparison: Comparison) -> bool:
    """Not in files of earlier versions."""
    return any(strategy.get("drop_simultaneous_ci") for strategy in comparison["strategies"])


def _bars(comparison: Comparison) -> str:
    confidence = f"{comparison['confidence']:.0%}"
    if _has_families(comparison):
        return f"bars: {confidence} {SIMULTANEOUS}\nof the difference to all {comparison['num_blocks']} blocks"
    return f"bars: {confidence} intervals"


def _marks(strategies: Sequence[Strategy], comparison: Comparison) -> list[bool]:
    return [bool(mark_strategy(strategy, comparison.get("baseline"))) for strategy in strategies]


def latency_figure(comparison: Comparison) -> Figure:
    """Median time of each stage against the number of active blocks.

    All masks with one number of blocks are pooled: the line is their mean, the shade their range.

    Raises:
        ValueError: If no latency was measured.
    """
    times = _times_by_count(comparison)
    figure, (request, token) = new_figure(8, 5, 1, 2)
    for stage, (label, color, marker) in STAGES.items():
        axes = token if stage == "decode_per_token" else request
        values = [[latency[stage]["P50"] for latency in latencies] for latencies in times.values()]
        means = [sum(medians) / len(medians) for medians in values]
        _shade(axes, list(times), values, color, 0.2)
        axes.plot(list(times), means, color=color, marker=marker, markersize=6, linewidth=1.8, label=label)
    request.set_ylabel("Median time per request (ms)")
    token.set_ylabel("Median time per decoded token (ms)")
    for axes in (request, token):
        _block_axis(axes, comparison, with_full=comparison["full"]["latency_ms"] is not None)
        axes.set_ylim(bottom=0)  # a saving is read as a share of the height
    title = _title(comparison, f"{_requests(comparison)}shaded: range over masks")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False)
    return figure


def tradeoff_figure(comparison: Comparison) -> Figure:
    """Quality against total latency, one marker per policy and number of blocks, with the Pareto frontier.

    Markers on the frontier are annotated with their number of active blocks.

    Raises:
        ValueError: If no latency was measured.
    """
    # brings torch along, which reading and drawing results do without
    from lit_depth.functional.latency.budget import pareto_frontier

    _times_by_count(comparison)
    figure, axes = new_figure(8, 5)
    plain_axes(axes)
    points: list[tuple[float, float, int]] = []
    for policy, strategies in by_policy(comparison).items():
        color, marker = _look(policy, comparison)
        mine = [(total_ms(s["latency_ms"]), s["quality"], s["num_active_blocks"]) for s in strategies]
        times, quality, _ = zip(*mine)
        bars = bar_lengths(quality, [limits(strategy, comparison) for strategy in strategies])
        axes.errorbar(times, quality, yerr=bars, fmt="none", ecolor=color, elinewidth=1, alpha=0.35)
        axes.plot(times, quality, marker, color=color, markersize=8, markeredgecolor="white", label=policy)
        hollow(axes, times, quality, _marks(strategies, comparison), color, marker, size=8)
        points += mine
    full = comparison["full"]
    if full["latency_ms"] is not None:
        points.append((total_ms(full["latency_ms"]), full["quality"], comparison["num_blocks"]))
        label = f"all {comparison['num_blocks']} blocks"
        axes.plot(*points[-1][:2], "*", color="black", markersize=14, markeredgecolor="white", label=label)
    draw_constant(axes, comparison.get("baseline"))
    frontier = pareto_frontier(points)
    steps = {"drawstyle": "steps-post", "color": GREY, "linestyle": "--", "linewidth": 1.2, "zorder": 1}
    axes.plot(*list(zip(*frontier))[:2], **steps, label="Pareto frontier")
    beside = {"xytext": (-5, 6), "textcoords": "offset points", "ha": "right", "fontsize": 9, "color": GREY}
    for *point, count in frontier:
        axes.annotate(str(count), point, **beside)
    axes.margins(x=0.08, y=0.1)
    axes.grid(axis="x", color="#eeeeee", linewidth=0.8)
    axes.set_xlabel("Median total time per request (ms)")
    axes.set_ylabel(f"Quality ({metric_label(comparison['metric'])})")
    title = _title(comparison, _requests(comparison).rstrip("; "))
    axes.set_title(withheld_title(title, comparison), loc="left", fontsize=11)
    legend(figure, axes, f"{_bars(comparison)}\nnumbers: active blocks")
    return figure


def _shade(axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], color: str, alpha: float) -> None:
    """The range of the values at each place."""
    axes.fill_between(x, [*map(min, values)], [*map(max, values)], color=color, alpha=alpha, linewidth=0)


def _block_axis(axes: Axes, comparison: Comparison, with_full: bool) -> None:
    plain_axes(axes)
    counts = {strategy["num_active_blocks"] for strategy in comparison["strategies"]}
    if with_full:
        counts.add(comparison["num_blocks"])
    if len(counts) <= _MAX_TICKS:
        axes.set_xticks(sorted(counts))
    else:
        whole_numbers(axes.xaxis)
    axes.set_xlabel(f"Active blocks (of {comparison['num_blocks']})")


def _title(comparison: Comparison, remark: str = "") -> str:
    return f"{comparison['task']}, {comparison['num_samples']} samples" + (f" ({remark})" if remark else "")


def _requests(comparison: Comparison) -> str:
    """How many requests the times rest on; files of earlier versions do not say."""
    count = comparison.get("latency_requests")
    return "" if count is None else f"times: {count} request{'s' if count > 1 else ''} per mask; "


def by_policy(comparison: Comparison) -> dict[str, list[Strategy]]:
    """Strategies of each policy in the order of first appearance, by number of blocks."""
    grouped: dict[str, list[Strategy]] = {strategy["policy"]: [] for strategy in comparison["strategies"]}
    for strategy in sorted(comparison["strategies"], key=lambda strategy: strategy["num_active_blocks"]):
        grouped[strategy["policy"]].append(strategy)
    return grouped


def _look(policy: str, comparison: Comparison) -> tuple[str, str]:
    """Colour and marker: fixed for some policies, so that figures of several runs can be compared."""
    color = _colors(comparison)[policy]
    return color, MARKERS[COLORS.index(color)]


def _times_by_count(comparison: Comparison) -> dict[int, list[Latency]]:
    """Measured times of all masks with a number of active blocks, by that number; the full model included."""
    if not has_latency(comparison):
        raise ValueError("expected a comparison with latency, got one without: run it again with latency measured")
    times: dict[int, list[Latency]] = {}
    for strategy in comparison["strategies"]:
        measured = [mask["latency_ms"] for mask in strategy["masks"] if mask["latency_ms"] is not None]
        if not measured and strategy["latency_ms"] is not None:  # timed as a whole only
            measured = [strategy["latency_ms"]]
        times.setdefault(strategy["num_active_blocks"], []).extend(measured)
    full = comparison["full"]["latency_ms"]
    if full is not None:
        times.setdefault(comparison["num_blocks"], []).append(full)
    return dict(sorted(times.items()))


def total_ms(latency: Latency | None) -> float:
    """Median total time of one request, where every strategy has one."""
    assert latency is not None  # has_latency
    return latency["total"]["P50"]
