"""Rows of the tree: edges first, so that points lie on them."""

from __future__ import annotations

from tests.helpers.charts import CHARTS


def test_edges_join_the_places_of_parent_and_child() -> None:
    rows = CHARTS["tree"].table.rows
    assert rows[:2] == [["-1", 0, 0, 1, 0.5, None, True, "extends"], ["-2", 0, 0, 1, -0.5, None, False, "extends"]]
    assert [row[0] for row in rows[2:]] == ["nothing removed", "-1", "-2"] and rows[-1][5] is None
