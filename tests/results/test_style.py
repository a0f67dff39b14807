"""What all figures share: bars, points that answer no better than a constant, titles without a verdict."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lit_depth.results.style import COLORS, MARKERS, bar_lengths, draw_constant, hollow, legend, withheld_title

BASELINE: dict[str, Any] = {"answer": "yes", "quality": 0.4, "difference": 0.3, "difference_ci": [0.2, 0.4]}


def test_bars_reach_the_limits_and_are_never_negative() -> None:
    (below, above) = bar_lengths([0.5, 0.5], [[0.25, 1.0], [0.75, 1.0]])
    assert (below, above) == ([0.25, 0.0], [0.5, 0.5])


def test_marked_points_alone_are_hollow() -> None:
    axes = Figure().subplots()
    hollow(axes, [1, 2, 3], [0.1, 0.2, 0.3], [True, False, True], COLORS[0], MARKERS[0])
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[1, 0.1], [3, 0.3]] and line.get_linestyle() == "None"
    assert to_hex(line.get_markerfacecolor()) == "#ffffff" and line.get_markeredgecolor() == COLORS[0]
    hollow(axes, [1], [0.1], [False], COLORS[0], MARKERS[0])
    assert len(axes.lines) == 1


@pytest.mark.parametrize(("full", "height"), [(None, 0.4), (0.7, 0.3)])
def test_the_constant_answer_is_a_line_of_quality_or_of_the_drop(full: float | None, height: float) -> None:
    figure = Figure()
    axes = figure.subplots()
    draw_constant(axes, BASELINE, full)
    draw_constant(axes, None, full)
    (line,) = axes.lines
    assert list(line.get_ydata()) == pytest.approx([height, height])
    legend(figure, axes, "bars: none")
    (box,) = figure.legends
    assert box.get_title().get_text() == "bars: none" and 'constant answer "yes"' in box.get_texts()[0].get_text()


def test_a_title_says_first_that_there_is_no_verdict() -> None:
    entry = {"full": {"quality": 0.7}, "baseline": BASELINE | {"beaten": True}}
    assert withheld_title("Drops", entry) == withheld_title("Drops", {"full": {}}) == "Drops"
    entry["baseline"]["beaten"] = False
    assert withheld_title("Drops", entry).splitlines() == ["No verdict: not shown to beat a constant answer", "Drops"]


def test_policies_are_told_apart_by_colour_and_by_marker() -> None:
    assert len(set(COLORS)) == len(set(MARKERS)) == len(COLORS) == len(MARKERS)
