"""The figures of a mask comparison, drawn from its result (a `lit_depth.studies.shared.comparison_schema.Comparison`).

matplotlib is imported inside the functions and used without pyplot: no global state, no display needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_depth.results.against_full_views import AgainstFull, flips_figures
from lit_depth.results.charts.quality_charts import (
    Mark,
    TimedMark,
    deal_colors,
    quality_vs_blocks,
    quality_vs_latency,
)
from lit_depth.results.latency_lines import Time, latency_lines
from lit_depth.results.measures import metric_label, quality_limits
from lit_depth.results.report import Chart
from lit_depth.results.style import (
    COLORS,
    GREY,
    MARKERS,
    bar_lengths,
    draw_constant,
    hollow,
    legend,
    line_with_bars,
    new_figure,
    plain_axes,
    side_by_side,
    whole_numbers,
    withheld_title,
)
from lit_depth.results.unit_names import active_blocks
from lit_depth.results.verdicts import SIMULTANEOUS, constant_label, differs, mark_strategy, refusal
from lit_depth.studies.compare.used_importance import used_importance_figure
from lit_depth.studies.shared.comparison_schema import Comparison, Effect, Latency, MaskResult, Regret, Strategy
from lit_depth.studies.shared.decision_views import decision_figures, mask_decisions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# policies that have the first colours; all others have the next ones. A figure is drawn without torch, which the table
# of policies imports.
_FIRST_COLORS = ("prefix", "importance", "random", "suffix", "uniform")
_MAX_TICKS = 16
IMPORTANCE = "m5_importance"


def comparison_figures(comparison: Comparison) -> dict[str, Callable[[], Figure]]:
    """The figures by name: quality; times, if all strategies have some; the quality of each of several tasks."""
    figures: dict[str, Callable[[], Figure]] = {"m5_quality_vs_blocks": partial(quality_figure, comparison)}
    if has_latency(comparison):
        figures["m5_latency_vs_blocks"] = partial(latency_figure, comparison)
        figures["m5_quality_latency_tradeoff"] = partial(tradeoff_figure, comparison)
    # of several tasks the mean's smallest share of changes follows from the largest of their scores
    largest = [task.get("max_score") or 1.0 for task in comparison.get("tasks", [comparison])]
    figures |= flips_figures(
        against_full(comparison),
        f"Scores that change against the drop, {comparison['task']}",
        comparison["confidence"],
        max_score=max(largest),
    )
    if comparison["importance"]["scores"]:
        figures[IMPORTANCE] = partial(used_importance_figure, comparison["importance"], comparison["confidence"])
    figures |= decision_figures(
        mask_decisions(comparison, refusal(comparison)),
        {str(block): str(block) for block in range(comparison["num_blocks"])},
        regrets(comparison),
        comparison["confidence"],
    )
    return {**figures, **{task_figure(task): partial(quality_figure, task) for task in comparison.get("tasks", ())}}


def regrets(comparison: Comparison) -> Sequence[Regret]:
    """What the choice of one task costs on another; nothing where one of them has no verdict."""
    refused = any(refusal(task) for task in comparison.get("tasks", ()))
    return [] if refused else comparison.get("regret", [])


def against_full(comparison: Comparison) -> list[AgainstFull]:
    """Every policy at every number of blocks beside the full model; results of earlier versions know nothing of it."""
    return [
        AgainstFull(
            f"{each['policy']}, {each['num_active_blocks']} blocks",
            each["policy"],
            each["drop"],
            each["drop_ci"],
            differs(each.get("drop_p_holm"), comparison["confidence"]),
            each.get("agreement"),
        )
        for each in comparison["strategies"]
        if each["num_active_blocks"] < comparison["num_blocks"]
    ]


def comparison_charts(comparison: Comparison) -> dict[str, Chart]:
    """The same figures as interactive charts: quality against blocks, of each task too; against time, if measured."""
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
    from lit_depth.functional.latency.frontier import Measured, clear_frontier

    timed: list[tuple[Mark, Sequence[float], Effect, Sequence[MaskResult]]] = [
        (_mark(each, comparison), limits(each, comparison), each, each["masks"]) for each in comparison["strategies"]
    ]
    full = comparison["full"]["latency_ms"]
    if full is not None:
        whole = comparison["full"]
        timed.append((_full_mark(comparison), whole["quality_ci"], whole, [whole]))
    points = [Measured(*_point(each, masks, ends, comparison)) for _, ends, each, masks in timed]
    best = set(clear_frontier(points))
    marks = [
        TimedMark(mark, point.time, point.times, index in best)
        for index, ((mark, *_), point) in enumerate(zip(timed, points))
    ]
    bars = _time_bars(comparison).replace("\n", " ")
    words = _words(comparison) | {"x": f"median total time per request (ms); bars: {bars}"}
    last = marks.pop() if full is not None else None
    return quality_vs_latency(marks, last, words, _colors(comparison))


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
        "x": active_blocks(comparison, comparison["num_blocks"]),
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
    # so that intervals at one number of blocks can be told apart
    places = side_by_side({policy: [each["num_active_blocks"] for each in mine] for policy, mine in policies.items()})
    for policy, strategies in policies.items():
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
        line_with_bars(axes, places[policy], quality, ends, _marks(strategies, comparison), look, label)
    full = comparison["full"]["quality"]
    axes.axhline(full, color=GREY, linestyle="--", linewidth=1.5, label=f"all {comparison['num_blocks']} blocks")
    draw_constant(axes, comparison.get("baseline"))
    _block_axis(axes, comparison)
    axes.set_ylabel(f"Quality ({metric_label(comparison['metric'])})")
    axes.set_title(withheld_title(_title(comparison), comparison), loc="left", fontsize=11)
    legend(figure, axes, _bars(comparison))
    return figure


def limits(strategy: Strategy, comparison: Comparison) -> Sequence[float]:
    """Quality at either end of the simultaneous interval of the drop; of the full model itself there is none."""
    drop = strategy.get("drop_simultaneous_ci")
    if drop is not None:
        return quality_limits(comparison["full"]["quality"], drop, comparison.get("max_score"))
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
    """Median times against the number of active blocks, one line per policy with its intervals.

    Raises:
        ValueError: If no latency was measured.
    """
    _check_latency(comparison)
    times = {
        policy: [_time(each, each["num_active_blocks"], each["masks"], comparison) for each in strategies]
        for policy, strategies in by_policy(comparison).items()
    }
    full = comparison["full"]
    last = _time(full, comparison["num_blocks"], [full], comparison) if full["latency_ms"] is not None else None
    words = {
        "title": f"{comparison['task']}{_clock(comparison)}",
        "bars": f"bars: {_time_bars(comparison)}",
        "x": active_blocks(comparison, comparison["num_blocks"]).capitalize(),
    }
    return latency_lines(times, {policy: _look(policy, comparison) for policy in times}, last, words)


def _time(timed: Effect, count: int, masks: Sequence[MaskResult], comparison: Comparison) -> Time:
    times: dict[str, Any] = dict(timed["latency_ms"] or {})
    known = {stage: summary for stage, summary in times.items() if summary is not None}
    limits = {stage: time_limits(timed["latency_ms"], masks, stage, comparison) for stage in known}
    return Time(count, {stage: summary["P50"] for stage, summary in known.items()}, limits)


def time_limits(
    times: Latency | None, masks: Sequence[MaskResult], stage: str, comparison: Comparison
) -> Sequence[float]:
    """Of the median of the masks that were timed; in results of earlier versions the least and the greatest request."""
    known = comparison.get("latency_limits_ms", {})
    found = [known[mask["mask_id"]][stage] for mask in masks if stage in known.get(mask["mask_id"], ())]
    if found:
        low, high = (sum(ends) / len(found) for ends in zip(*found))
        return [low, high]
    summary = dict(times or {})[stage]
    return [summary["min"], summary["max"]]  # type: ignore[index]


def _time_bars(comparison: Comparison) -> str:
    """What the bars of times are; so few requests may hold the median with less than the asked confidence."""
    count, asked = comparison.get("latency_requests"), comparison["confidence"]
    if count is None or "latency_limits_ms" not in comparison:
        return "least to greatest request"
    reached = min(asked, 1 - 0.5 ** (count - 1))
    return f"{reached:.0%} intervals of the median\n({count} request{'s' if count > 1 else ''})"


def _clock(comparison: Comparison) -> str:
    """On what the times were measured, to stand behind the task."""
    settings, count = comparison.get("latency_settings"), comparison.get("latency_requests")
    if settings is None or count is None:
        return ""
    requests = f"{count} request{'s' if count > 1 else ''} of batch size {settings['batch_size']}"
    threads = f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    return f"\n{requests}, {settings['new_tokens']} new tokens\n{settings['device']}, {threads}"


def tradeoff_figure(comparison: Comparison) -> Figure:
    """Quality against total latency, one marker per policy and number of blocks, with the Pareto frontier.

    Markers on the frontier are annotated with their number of active blocks.

    Raises:
        ValueError: If no latency was measured.
    """
    # brings torch along, which reading and drawing results do without
    from lit_depth.functional.latency.frontier import Measured, clear_frontier

    _check_latency(comparison)
    figure, axes = new_figure(8, 5)
    plain_axes(axes)
    points: list[Measured] = []
    counts: list[int] = []
    for policy, strategies in by_policy(comparison).items():
        color, marker = _look(policy, comparison)
        mine = [Measured(*_point(each, each["masks"], limits(each, comparison), comparison)) for each in strategies]
        times, quality, time_ends, ends = zip(*mine)
        bars = {"xerr": bar_lengths(times, time_ends), "yerr": bar_lengths(quality, ends)}
        axes.errorbar(times, quality, **bars, fmt="none", ecolor=color, elinewidth=1, alpha=0.35)
        axes.plot(times, quality, marker, color=color, markersize=8, markeredgecolor="white", label=policy)
        hollow(axes, times, quality, _marks(strategies, comparison), color, marker, size=8)
        points += mine
        counts += [strategy["num_active_blocks"] for strategy in strategies]
    full = comparison["full"]
    if full["latency_ms"] is not None:
        points.append(Measured(*_point(full, [full], full["quality_ci"], comparison)))
        counts.append(comparison["num_blocks"])
        label = f"all {comparison['num_blocks']} blocks"
        axes.plot(*points[-1][:2], "*", color="black", markersize=14, markeredgecolor="white", label=label)
    draw_constant(axes, comparison.get("baseline"))
    frontier = [(points[index].time, points[index].quality, counts[index]) for index in clear_frontier(points)]
    steps = {"drawstyle": "steps-post", "color": GREY, "linestyle": "--", "linewidth": 1.2, "zorder": 1}
    axes.plot(*list(zip(*frontier))[:2], **steps, label="Pareto frontier\n(beyond the intervals)")
    beside = {"xytext": (-5, 6), "textcoords": "offset points", "ha": "right", "fontsize": 9, "color": GREY}
    for *point, count in frontier:
        axes.annotate(str(count), point, **beside)
    axes.margins(x=0.08, y=0.1)
    axes.grid(axis="x", color="#eeeeee", linewidth=0.8)
    axes.set_xlabel("Median total time per request (ms)")
    axes.set_ylabel(f"Quality ({metric_label(comparison['metric'])})")
    axes.set_title(withheld_title(_title(comparison) + _clock(comparison), comparison), loc="left", fontsize=11)
    legend(
        figure, axes, f"{_bars(comparison)};\nacross: {_time_bars(comparison)}\nnumbers: {active_blocks(comparison)}"
    )
    return figure


def _point(
    timed: Effect, masks: Sequence[MaskResult], ends: Sequence[float], comparison: Comparison
) -> tuple[float, float, Sequence[float], Sequence[float]]:
    """Total time and quality, and the limits of each."""
    times = timed["latency_ms"]
    return total_ms(times), timed["quality"], time_limits(times, masks, "total", comparison), ends


def _shade(axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], color: str, alpha: float) -> None:
    """The range of the values at each place."""
    axes.fill_between(x, [*map(min, values)], [*map(max, values)], color=color, alpha=alpha, linewidth=0)


def _block_axis(axes: Axes, comparison: Comparison) -> None:
    plain_axes(axes)
    counts = {strategy["num_active_blocks"] for strategy in comparison["strategies"]}
    axes.set_xlim(min(counts) - 0.6, max(counts) + 0.6)
    if len(counts) <= _MAX_TICKS:
        axes.set_xticks(sorted(counts))
    else:
        whole_numbers(axes.xaxis)
    axes.set_xlabel(active_blocks(comparison, comparison["num_blocks"]).capitalize())


def _title(comparison: Comparison, remark: str = "") -> str:
    return f"{comparison['task']}, {comparison['num_samples']} samples" + (f" ({remark})" if remark else "")


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


def _check_latency(comparison: Comparison) -> None:
    if not has_latency(comparison):
        raise ValueError("expected a comparison with latency, got one without: run it again with latency measured")


def total_ms(latency: Latency | None) -> float:
    """Median total time of one request, where every strategy has one."""
    assert latency is not None  # has_latency
    return latency["total"]["P50"]
