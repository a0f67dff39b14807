"""Times against the number of active blocks, one line per policy: similar at equal count, or not?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_depth.results.style import GREY, Stage, line_with_bars, new_figure, plain_axes, side_by_side, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS: dict[Stage, str] = {
    "total": "Median total time per request (ms)",
    "prefill": "Median prefill time per request (ms)",
    "decode_per_token": "Median time per decoded token (ms)",
}


class Time(NamedTuple):
    """Median milliseconds at a number of active blocks, and the limits of each, by stage."""

    blocks: int
    medians: Mapping[str, float]
    limits: Mapping[str, Sequence[float]]


def latency_lines(
    times: Mapping[str, Sequence[Time]],
    looks: Mapping[str, tuple[str, str]],
    full: Time | None,
    words: Mapping[str, str],
) -> Figure:
    """One panel per stage that all have, one line with bars per policy, and the full model as a star.

    Args:
        times: Of every policy.
        looks: Colour and marker of every policy.
        full: Of the model with all blocks.
        words: ``title``, ``bars`` (what they are) and ``x``.
    """
    every = [*(time for policy in times.values() for time in policy), *([full] if full else [])]
    stages = [stage for stage in _PANELS if all(stage in time.medians for time in every)]
    figure, panels = new_figure(4.2 * len(stages) + 1.8, 4.5, 1, len(stages), squeeze=False)
    places = side_by_side({policy: [time.blocks for time in mine] for policy, mine in times.items()})
    for axes, stage in zip(panels[0], stages):
        for policy, mine in times.items():
            medians, limits = [time.medians[stage] for time in mine], [time.limits[stage] for time in mine]
            line_with_bars(axes, places[policy], medians, limits, [False] * len(mine), looks[policy], policy)
        if full is not None:
            low, high = full.limits[stage]
            middle = full.medians[stage]
            bars = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
            star: dict[str, Any] = {"fmt": "*", "color": "black", "markersize": 12, "elinewidth": 1.2, "capsize": 3}
            axes.errorbar([full.blocks], [middle], yerr=bars, label=f"all {full.blocks} blocks", **star)
        plain_axes(axes)
        whole_numbers(axes.xaxis)
        axes.set_xlim(min(time.blocks for time in every) - 0.6, max(time.blocks for time in every) + 0.6)
        axes.set_xlabel(words["x"])
        axes.set_ylabel(_PANELS[stage])
        axes.set_ylim(bottom=0)  # a saving is read as a share of the height
    figure.suptitle(words["title"], x=0.01, ha="left", fontsize=11)
    handles, labels = panels[0][0].get_legend_handles_labels()
    box = figure.legend(
        handles, labels, loc="outside right upper", frameon=False, title=words["bars"], title_fontsize=9,
        alignment="left",
    )  # fmt: skip
    box.get_title().set_color(GREY)
    return figure
