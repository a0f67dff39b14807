"""Rows of importance bars, and shades of maps."""

from __future__ import annotations

from tests.helpers.charts import CHARTS


def test_bars_have_their_limits_and_say_whether_they_differ() -> None:
    assert CHARTS["importance"].table.rows == [["0", 0.5, 0.25, 0.75, True], ["1", -0.125, -0.25, 0.125, False]]


def test_a_shade_is_the_share_of_the_limit_and_ends_there() -> None:
    assert CHARTS["tasks"].kind == "task_heat_map" and CHARTS["tokens"].kind == "token_heat_map"
    # what is not known has no cell
    assert [row[:4] for row in CHARTS["tasks"].table.rows] == [["a", "0", -0.5, -0.25], ["a", "1", 2.0, 1.0]]
    assert [row[3] for row in CHARTS["tokens"].table.rows] == [1.0, 0.75]
