"""The figures of a mask comparison, drawn from its result (see :class:`lit_depth.results.schema.Comparison`).

matplotlib is imported inside the functions and used without pyplot: no global state, no display needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_depth.results.schema import Comparison, Latency, Strategy
from lit_depth.results.store import save_figure
from lit_depth.results.verdicts import SIMULTANEOUS, constant_label, mark_strategy, refusal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008): told apart with any colour vision. Marker and colour say the same thing twice.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_KNOWN_POLICIES = ("prefix", "importance", "random", "suffix", "uniform")
_GREY = "#555555"
_MAX_TICKS = 16

Stage = Literal["vision", "prefill", "decode_per_token", "total"]
STAGES: dict[Stage, tuple[str, str, str]] = {
    "total": ("total", "#000000", "o"),
    "prefill": ("prefill", "#0072B2", "s"),
    "vision": ("vision", "#009E73", "^"),
    "decode_per_token": ("decode, per token", "#D55E00", "D"),
}


def write_figures(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Draw and save the figures of a comparison.

    Args:
        comparison: A valid comparison result.
        folder: Where the PNG files go.

    Returns:
        Paths written: ``m5_quality_vs_blocks.png`` and, if latency was measured for all strategies,
        ``m5_latency_vs_blocks.png`` and ``m5_quality_latency_tradeoff.png``.
    """
    figures = {"m5_quality_vs_blocks.png": quality_figure(comparison)}
    if has_latency(comparison):
        figures["m5_latency_vs_blocks.png"] = latency_figure(comparison)
        figures["m5_quality_latency_tradeoff.png"] = tradeoff_figure(comparison)
    paths = [Path(folder) / name for name in figures]
    for path, figure in zip(paths, figures.values()):
        save_figure(figure, path)
    return paths


def write_task_figures(comparisons: Sequence[Comparison], folder: str | Path) -> list[Path]:
    """Draw and save ``m5_quality_vs_blocks_<task>.png`` for each of several tasks; returns their paths."""
    paths = [Path(folder) / f"m5_quality_vs_blocks_{comparison['task']}.png" for comparison in comparisons]
    for path, comparison in zip(paths, comparisons):
        save_figure(quality_figure(comparison), path)
    return paths


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
    figure, axes = _figure(comparison)
    by_policy = _by_policy(comparison)
    # Side by side, so that intervals at one number of blocks can be told apart.
    offsets = [0.09 * (i - (len(by_policy) - 1) / 2) for i in range(len(by_policy))]
    for offset, (policy, strategies) in zip(offsets, by_policy.items()):
        color, marker = _look(policy, comparison)
        blocks = [strategy["num_active_blocks"] for strategy in strategies]
        quality = [strategy["quality"] for strategy in strategies]
        limits = [_limits(strategy, comparison) for strategy in strategies]
        label = policy
        num_masks = max(len(strategy["masks"]) for strategy in strategies)
        if num_masks > 1:
            ranges = [[mask["quality"] for mask in strategy["masks"]] for strategy in strategies]
            low, high = [min(values) for values in ranges], [max(values) for values in ranges]
            axes.fill_between(blocks, low, high, color=color, alpha=0.15, linewidth=0)
            label = f"{policy}, mean of {num_masks}\n(range shaded)"
        axes.errorbar(
            [block + offset for block in blocks],
            quality,
            yerr=bar_lengths(quality, limits),
            color=color,
            marker=marker,
            markersize=6,
            linewidth=1.8,
            elinewidth=1.2,
            capsize=3,
            label=label,
        )
        hollow(axes, [block + offset for block in blocks], quality, _marks(strategies, comparison), color, marker)
    full = comparison["full"]["quality"]
    axes.axhline(full, color=_GREY, linestyle="--", linewidth=1.5, label=f"all {comparison['num_blocks']} blocks")
    draw_constant(axes, comparison.get("baseline"))
    _block_axis(axes, comparison, with_full=False)
    axes.set_ylabel(f"Quality ({comparison['metric']})")
    axes.set_title(withheld_title(_title(comparison), comparison), loc="left", fontsize=11)
    legend(figure, axes, _bars(comparison))
    return figure


def _limits(strategy: Strategy, comparison: Comparison) -> Sequence[float]:
    """Quality at either end of the simultaneous interval of the drop; of the full model itself there is none."""
    drop = strategy.get("drop_simultaneous_ci")
    if drop is not None:
        # no quality lies below 0, whatever the drop may be
        return [max(0.0, comparison["full"]["quality"] - drop[1]), comparison["full"]["quality"] - drop[0]]
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


def hollow(
    axes: Axes, x: Sequence[float], y: Sequence[float], marks: Sequence[bool], color: str, marker: str, size: float = 6
) -> None:
    """Draw the marked points with a white heart."""
    points = [(place, height) for place, height, marked in zip(x, y, marks) if marked]
    if points:
        axes.plot(
            *zip(*points), marker, markersize=size, markerfacecolor="white", markeredgecolor=color, zorder=4,
            gid="hollow",
        )  # fmt: skip


def draw_constant(axes: Axes, baseline: Mapping[str, Any] | None, full: float | None = None) -> None:
    """A dotted line at the best constant answer, where it is known.

    Args:
        full: Quality of the full model, where the axis is the drop from it.
    """
    if baseline is not None:
        label = f"{constant_label(baseline)}\n(hollow: not above it, or constant)"
        height = baseline["quality"] if full is None else full - baseline["quality"]
        axes.axhline(height, color="#B00020", linestyle=":", linewidth=1.5, label=label)


def withheld_title(title: str, entry: Mapping[str, Any]) -> str:
    """The title of a figure, which says first where no verdict is given."""
    return f"No verdict: not shown to beat a constant answer\n{title}" if refusal(entry) else title


def latency_figure(comparison: Comparison) -> Figure:
    """Median time of each stage against the number of active blocks.

    All masks with one number of blocks are pooled: the line is their mean, the shade their range.

    Raises:
        ValueError: If no latency was measured.
    """
    from matplotlib.figure import Figure

    times = _times_by_count(comparison)
    figure = Figure(figsize=(8, 5), layout="constrained")
    request, token = figure.subplots(1, 2)
    for stage, (label, color, marker) in STAGES.items():
        axes = token if stage == "decode_per_token" else request
        values = [[latency[stage]["P50"] for latency in latencies] for latencies in times.values()]
        means = [sum(medians) / len(medians) for medians in values]
        low, high = [min(medians) for medians in values], [max(medians) for medians in values]
        axes.fill_between(list(times), low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(list(times), means, color=color, marker=marker, markersize=6, linewidth=1.8, label=label)
    request.set_ylabel("Median time per request (ms)")
    token.set_ylabel("Median time per decoded token (ms)")
    for axes in (request, token):
        _block_axis(axes, comparison, with_full=comparison["full"]["latency_ms"] is not None)
        axes.set_ylim(bottom=0)  # a saving is read as a share of the height
    figure.suptitle(
        _title(comparison, f"{_requests(comparison)}shaded: range over masks"), x=0.01, ha="left", fontsize=11
    )
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False)
    return figure


def tradeoff_figure(comparison: Comparison) -> Figure:
    """Quality against total latency, one marker per policy and number of blocks, with the Pareto frontier.

    Markers on the frontier are annotated with their number of active blocks.

    Raises:
        ValueError: If no latency was measured.
    """
    # brings torch along, which reading and drawing results do without
    from lit_depth.functional.selection import pareto_frontier

    _times_by_count(comparison)
    figure, axes = _figure(comparison)
    points: list[tuple[float, float, int]] = []
    for policy, strategies in _by_policy(comparison).items():
        color, marker = _look(policy, comparison)
        mine = [(_total(s["latency_ms"]), s["quality"], s["num_active_blocks"]) for s in strategies]
        quality = [point[1] for point in mine]
        bars = bar_lengths(quality, [_limits(strategy, comparison) for strategy in strategies])
        times = [point[0] for point in mine]
        axes.errorbar(times, quality, yerr=bars, fmt="none", ecolor=color, elinewidth=1, alpha=0.35)
        axes.plot(times, quality, marker, color=color, markersize=8, markeredgecolor="white", label=policy)
        hollow(axes, times, quality, _marks(strategies, comparison), color, marker, size=8)
        points += mine
    full = comparison["full"]
    if full["latency_ms"] is not None:
        points.append((_total(full["latency_ms"]), full["quality"], comparison["num_blocks"]))
        label = f"all {comparison['num_blocks']} blocks"
        axes.plot(*points[-1][:2], "*", color="black", markersize=14, markeredgecolor="white", label=label)
    draw_constant(axes, comparison.get("baseline"))
    frontier = pareto_frontier(points)
    axes.plot(
        [point[0] for point in frontier],
        [point[1] for point in frontier],
        drawstyle="steps-post",
        color=_GREY,
        linestyle="--",
        linewidth=1.2,
        zorder=1,
        label="Pareto frontier",
    )
    for time, quality_value, count in frontier:
        axes.annotate(
            str(count), (time, quality_value), (-5, 6), textcoords="offset points", ha="right", fontsize=9, color=_GREY
        )
    axes.margins(x=0.08, y=0.1)
    axes.grid(axis="x", color="#eeeeee", linewidth=0.8)
    axes.set_xlabel("Median total time per request (ms)")
    axes.set_ylabel(f"Quality ({comparison['metric']})")
    title = _title(comparison, _requests(comparison).rstrip("; "))
    axes.set_title(withheld_title(title, comparison), loc="left", fontsize=11)
    legend(figure, axes, f"{_bars(comparison)}\nnumbers: active blocks")
    return figure


def _figure(comparison: Comparison) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    plain_axes(axes)
    return figure, axes


def plain_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def _block_axis(axes: Axes, comparison: Comparison, with_full: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    plain_axes(axes)
    counts = {strategy["num_active_blocks"] for strategy in comparison["strategies"]}
    if with_full:
        counts.add(comparison["num_blocks"])
    if len(counts) <= _MAX_TICKS:
        axes.set_xticks(sorted(counts))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"Active blocks (of {comparison['num_blocks']})")


def legend(figure: Figure, axes: Axes, title: str) -> None:
    """The legend beside the axes, where it can never cover data; above it what the bars are."""
    handles, labels = axes.get_legend_handles_labels()
    box = figure.legend(
        handles, labels, loc="outside right upper", frameon=False, title=title, title_fontsize=9, alignment="left"
    )
    box.get_title().set_color(_GREY)


def _title(comparison: Comparison, remark: str = "") -> str:
    return f"{comparison['task']}, {comparison['num_samples']} samples" + (f" ({remark})" if remark else "")


def _requests(comparison: Comparison) -> str:
    """How many requests the times rest on; files of earlier versions do not say."""
    count = comparison.get("latency_requests")
    return "" if count is None else f"times: {count} request{'s' if count > 1 else ''} per mask; "


def _by_policy(comparison: Comparison) -> dict[str, list[Strategy]]:
    """Strategies of each policy in the order of first appearance, by number of blocks."""
    grouped: dict[str, list[Strategy]] = {}
    for strategy in sorted(comparison["strategies"], key=lambda strategy: strategy["num_active_blocks"]):
        grouped.setdefault(strategy["policy"], []).append(strategy)
    order = [strategy["policy"] for strategy in comparison["strategies"]]
    return {policy: grouped[policy] for policy in dict.fromkeys(order)}


def _look(policy: str, comparison: Comparison) -> tuple[str, str]:
    """Colour and marker: fixed for known policies, so that figures of several runs can be compared."""
    others = [name for name in _by_policy(comparison) if name not in _KNOWN_POLICIES]
    index = [*_KNOWN_POLICIES, *others].index(policy) % len(_COLORS)
    return _COLORS[index], _MARKERS[index]


def bar_lengths(values: Sequence[float], limits: Sequence[Sequence[float]]) -> list[list[float]]:
    """Lengths below and above, not negative."""
    below = [max(0.0, value - limit[0]) for value, limit in zip(values, limits)]
    above = [max(0.0, limit[1] - value) for value, limit in zip(values, limits)]
    return [below, above]


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


def _total(latency: Latency | None) -> float:
    assert latency is not None  # has_latency
    return latency["total"]["P50"]
