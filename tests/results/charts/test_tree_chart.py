"""Rows of the tree: edges first, so that points lie on them."""

from __future__ import annotations

from lit_depth.results.charts import TreeNode, search_tree
from tests.helpers.charts import CHARTS, WORDS


def test_edges_join_the_places_of_parent_and_child() -> None:
    rows = CHARTS["tree"].table.rows
    assert rows[:2] == [
        ["-1", 0, 0, 1, 0.5, None, None, True, None, "extends"],
        ["-2", 0, 0, 1, -0.5, None, None, False, None, "extends"],
    ]
    assert [row[0] for row in rows[2:]] == ["nothing removed", "-1", "-2"] and rows[-1][5] is None
    assert [row[8] for row in rows[2:]] == ["nothing removed", "-1", None]


def test_colours_end_where_a_tenth_of_the_ablations_costs_more() -> None:
    nodes = [TreeNode(str(index), 1, 0, index / 16 if index < 10 else 9.0, False) for index in range(11)]
    chart = search_tree(nodes, WORDS)
    drop, shade = (chart.table.headers.index(name) for name in ("drop", "shade"))
    assert [row[drop] for row in chart.table.rows][-2:] == [9 / 16, 9.0]
    assert [row[shade] for row in chart.table.rows] == [*(index / 16 for index in range(10)), 9 / 16]


def test_names_do_not_lie_on_one_another_and_the_best_are_named_first() -> None:
    crowd = [TreeNode(f"-{n}", 1, n, 1.0 - n / 100, True) for n in range(100)]
    chart = search_tree([TreeNode("nothing removed", 0, 0, 0.0, True), *crowd], WORDS)
    removed, label, y = (chart.table.headers.index(name) for name in ("removed", "label", "y"))
    named = [row for row in chart.table.rows if row[label] is not None]
    assert all(row[label] == row[removed] for row in named) and "-99" in {row[label] for row in named}
    heights = sorted(row[y] for row in named if row[removed] != "nothing removed")
    assert min(b - a for a, b in zip(heights, heights[1:])) >= 24 / 420 * 99 and len(named) > 12
