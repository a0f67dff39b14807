"""What the figures of all commands share: colours, axes, bars, and the signs of a result without a verdict.

matplotlib is imported by whoever draws, inside its functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lit_depth.results.verdicts import constant_label, refusal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe & Ito (2008): told apart with any colour vision; violet instead of their yellow, which is lost on white. Marker
# and colour say the same thing twice.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#962DF0")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"

Stage = Literal["vision", "prefill", "decode_per_token", "total"]
STAGES: dict[Stage, tuple[str, str, str]] = {
    "total": ("total", "#000000", "o"),
    "prefill": ("prefill", "#0072B2", "s"),
    "vision": ("vision", "#009E73", "^"),
    "decode_per_token": ("decode, per token", "#D55E00", "D"),
}


def new_figure(width: float, height: float, *panels: int, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many inches and its axes, see ``matplotlib.figure.Figure.subplots``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*panels, **options)


def plain_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def whole_numbers(*axes: Axis) -> None:
    """Ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    for each in axes:
        each.set_major_locator(MaxNLocator(integer=True))


def legend(figure: Figure, axes: Axes, title: str) -> None:
    """The legend beside the axes, where it can never cover data; above it what the bars are."""
    handles, labels = axes.get_legend_handles_labels()
    box = figure.legend(
        handles, labels, loc="outside right upper", frameon=False, title=title, title_fontsize=9, alignment="left"
    )
    box.get_title().set_color(GREY)


def bar_lengths(values: Sequence[float], limits: Sequence[Sequence[float]]) -> list[list[float]]:
    """Lengths below and above, not negative."""
    below = [max(0.0, value - limit[0]) for value, limit in zip(values, limits)]
    above = [max(0.0, limit[1] - value) for value, limit in zip(values, limits)]
    return [below, above]


def line_with_bars(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    limits: Sequence[Sequence[float]],
    marks: Sequence[bool],
    look: tuple[str, str],
    label: str,
) -> None:
    """Draw points with intervals, joined by a line; the marked points are `hollow`."""
    color, marker = look
    sizes: dict[str, Any] = {"markersize": 6, "linewidth": 1.8, "elinewidth": 1.2, "capsize": 3}
    axes.errorbar(x, y, yerr=bar_lengths(y, limits), color=color, marker=marker, label=label, **sizes)
    hollow(axes, x, y, marks, color, marker)


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
    """A dotted line at the best constant answer, where it is known; ``full`` where the axis is the drop from that."""
    if baseline is not None:
        label = f"{constant_label(baseline)}\n(hollow: not above it, or constant)"
        height = baseline["quality"] if full is None else full - baseline["quality"]
        axes.axhline(height, color="#B00020", linestyle=":", linewidth=1.5, label=label)


def withheld_title(title: str, entry: Mapping[str, Any]) -> str:
    """The title of a figure, which says first where no verdict is given."""
    return f"No verdict: not shown to beat a constant answer\n{title}" if refusal(entry) else title


def side_by_side(counts: Mapping[str, Sequence[int]], width: float = 0.09) -> dict[str, list[float]]:
    """Places of several lines along an axis of counts: those that share a count stand beside each other, centred on it.

    Args:
        counts: Of each line.
        width: Between neighbours; less where many share a count, which stay within half a count of it.

    >>> side_by_side({"a": [4, 8], "b": [8]}, 0.25)
    {'a': [4.0, 7.875], 'b': [8.125]}
    """
    sharing = {
        count: [name for name, mine in counts.items() if count in mine] for each in counts.values() for count in each
    }
    return {
        name: [
            count + min(width, 0.8 / len(here)) * (here.index(name) - (len(here) - 1) / 2)
            for count in mine
            for here in [sharing[count]]
        ]
        for name, mine in counts.items()
    }
