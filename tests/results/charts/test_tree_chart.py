"""Rows of the tree: edges first, so that points lie on them."""

from __future__ import annotations

from lit_depth.results.charts import TreeNode, search_tree
from tests.helpers.charts import CHARTS, WORDS


def test_edges_join_the_places_of_parent_and_child() -> None:
    rows = CHARTS["tree"].table.rows
    assert rows[:2] == [
        ["-1", 0, 0, 1, 0.5, None, None, True, "extends"],
        ["-2", 0, 0, 1, -0.5, None, None, False, "extends"],
    ]
    assert [row[0] for row in rows[2:]] == ["nothing removed", "-1", "-2"] and rows[-1][5] is None


def test_colours_end_where_a_tenth_of_the_ablations_costs_more() -> None:
    nodes = [TreeNode(str(index), 1, 0, index / 16 if index < 10 else 9.0, False) for index in range(11)]
    chart = search_tree(nodes, WORDS)
    drop, shade = (chart.table.headers.index(name) for name in ("drop", "shade"))
    assert [row[drop] for row in chart.table.rows][-2:] == [9 / 16, 9.0]
    assert [row[shade] for row in chart.table.rows] == [*(index / 16 for index in range(10)), 9 / 16]
