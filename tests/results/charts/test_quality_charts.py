"""Rows of quality against blocks and against time."""

from __future__ import annotations

from typing import Any

import pytest

from lit_depth.results.charts import Mark, quality_vs_blocks, vega_lite
from lit_depth.results.charts.quality_charts import SHAPES, deal_colors
from lit_depth.results.style import COLORS, MARKERS
from tests.helpers.charts import CHARTS, FULL, WORDS


def test_rows_are_marks_with_their_bands_by_blocks_then_the_lines_across() -> None:
    rows = CHARTS["quality"].table.rows
    assert [row[:2] for row in rows[:4]] == [["prefix", 4], ["importance", 4], ["prefix", 8], ["importance", 8]]
    assert rows[1] == ["importance", 4, 0.75, 0.6875, 0.8125, False, "policy"] and rows[0][5] is True
    assert rows[-2] == ["all 16 blocks", 16, 0.95, 0.9, 1.0, False, "full model"]
    assert rows[-1][-1] == "constant answer" and CHARTS["quality without a constant"].table.rows[-1][-1] == "full model"


def test_against_time_both_intervals_stand_beside_the_point() -> None:
    chart = CHARTS["tradeoff"]
    first, full = (dict(zip(chart.table.headers, chart.table.rows[index])) for index in (0, -1))
    assert [first[key] for key in ("ms", "ms_low", "ms_high", "on_frontier")] == [40.0, 36.0, 44.0, True]
    assert (full["ms"], full["ms_low"], full["role"]) == (200.0, None, "full model")


def test_a_policy_has_one_colour_and_one_shape_everywhere() -> None:
    assert deal_colors(["random", "prefix"], ["prefix", "importance", "random"]) == {
        "random": COLORS[2],
        "prefix": COLORS[0],
    }
    assert len(SHAPES) == len(MARKERS) == len(COLORS) and len(set(SHAPES)) == len(SHAPES)
    assert list(deal_colors([str(n) for n in range(8)]).values())[7] == COLORS[0]


def test_numbers_of_blocks_along_the_axis_are_whole_and_told_once() -> None:
    renderer = pytest.importorskip("vl_convert")
    marks = [Mark("prefix", blocks, 0.5) for blocks in (14, 15)]
    scene = renderer.vegalite_to_scenegraph(vega_lite(quality_vs_blocks(marks, FULL, WORDS)) | {"width": 400})
    assert [text for text in axis_labels(scene) if text and "." not in text] == ["14", "15"]


def axis_labels(node: Any) -> list[str]:
    """Texts of the labels of all axes, in a scene graph."""
    if isinstance(node, list):
        return [text for each in node for text in axis_labels(each)]
    if not isinstance(node, dict):
        return []
    if node.get("role") == "axis-label":
        return [item.get("text", "") for item in node["items"]]
    return [text for value in node.values() for text in axis_labels(value)]
