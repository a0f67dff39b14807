"""The importance that chose blocks in a comparison, as table and figure; blocks whose order is noise are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_depth.results.report import Section, Table
from lit_depth.results.style import GREY, bar_lengths, new_figure, plain_axes
from lit_depth.results.table import Cell, format_interval
from lit_depth.results.unit_names import ranges
from lit_depth.results.verdicts import SIMULTANEOUS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOR, _TIED = "#0072B2", "#9CC7E4"


def used_importance_section(importance: Mapping[str, Any], figure: str) -> list[Section]:
    """Scores, intervals and ties, the most important block first; nothing where no policy went by importance."""
    # brings torch along, which the figure does without
    from lit_depth.studies.shared.importance_scores import tie_sentences

    scores = importance["scores"]
    if not scores:
        return []
    ties, intervals = importance.get("tied_with") or {}, _intervals(importance)
    rows: list[Sequence[Cell]] = [
        [
            int(block),
            f"{scores[block]:+.3f}" + (f" {format_interval(intervals[block])}" if block in intervals else ""),
            ranges(sorted(others), ", ") if (others := _tied(ties, block)) else None,
        ]
        for block in sorted(scores, key=lambda block: -scores[block])
    ]
    text = "\n".join([f"From: {importance['source']}.", *tie_sentences(importance)])
    table = Table(["block", "importance", "order is noise against"], rows)
    return [Section("Importance that chose the blocks", text, table, [figure])]


def used_importance_figure(importance: Mapping[str, Any], confidence: float) -> Figure:
    """Bars with intervals by block, pale where the order against some other block is noise."""
    scores, intervals = importance["scores"], _intervals(importance)
    blocks = sorted(scores, key=int)
    ties = importance.get("tied_with")
    figure, axes = new_figure(max(7, 0.3 * len(blocks) + 2), 4)
    values = [scores[block] for block in blocks]
    colors = [_TIED if ties and _tied(ties, block) else _COLOR for block in blocks]
    bars = bar_lengths(values, [intervals[block] for block in blocks]) if set(blocks) <= intervals.keys() else None
    axes.bar(range(len(blocks)), values, color=colors, yerr=bars, ecolor=GREY, capsize=2)
    axes.axhline(0, color=GREY, linewidth=1)
    plain_axes(axes)
    axes.set_xticks(range(len(blocks)), blocks)
    axes.set_xlabel("Block")
    axes.set_ylabel("Importance")
    told = [f"bars: {confidence:.0%} {SIMULTANEOUS}"] if bars else []
    told.append("ties are not known" if ties is None else "pale: the order against some other block is noise")
    title = "\n".join([f"Importance that chose the blocks: {importance['source']}", *told])
    axes.set_title(title, loc="left", fontsize=10)
    return figure


def _intervals(importance: Mapping[str, Any]) -> Mapping[str, Sequence[float]]:
    return importance.get("simultaneous_intervals") or importance.get("intervals") or {}


def _tied(ties: Mapping[Any, Sequence[int]], block: str) -> Sequence[int]:
    """Keys are blocks in memory, and their texts in a file."""
    return ties.get(block) or ties.get(int(block)) or ()
