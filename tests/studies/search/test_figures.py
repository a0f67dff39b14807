"""The tree of a beam and the drop against removed blocks: every number stands where it belongs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lit_depth.studies.search.figures import drop_figure, tree_figure
from lit_depth.studies.search.report import report
from lit_depth.studies.shared.publish import draw
from tests.helpers.search_result import BASELINE, ablation, search_result


@pytest.fixture
def result() -> dict[str, Any]:
    return search_result()


def test_every_ablation_has_a_place_beside_its_best_parent(result):
    axes = tree_figure(result).axes[0]
    dropped, kept, root = (points.get_offsets().tolist() for points in axes.collections)
    assert root == [[0, 0]] and len(dropped) == 1 and [x for x, _ in kept] == [1] * 3 + [2] * 5
    assert len({tuple(point) for point in dropped + kept}) == 9
    labels = {text.get_text(): (text.xy, text.get_weight()) for text in axes.texts}
    assert {name: weight for name, (_, weight) in labels.items()} == {
        "without 0": "bold",
        "without 1": "normal",
        "without 0, 1": "bold",
        "without 0, 2": "normal",
    }
    # the best stand highest, children of (0,) above that of (1,) alone, whatever their score
    assert labels["without 0"][0][1] > labels["without 1"][0][1]
    heights = {a["removed"]: y for a, (_, y) in zip(result["levels"][1]["ablations"], kept[3:])}
    assert min(heights[0, i] for i in (1, 2, 3)) > max(heights[1, i] for i in (2, 3))
    # a pale line to each, and a dark one for each pair of parent and child in the beams
    for is_dark, expected in ((False, [(0, 1)] * 4 + [(1, 2)] * 5), (True, [(0, 1)] * 2 + [(1, 2)] * 3)):
        lines = [line for line in axes.lines if (line.get_linewidth() > 1) == is_dark]
        assert sorted(tuple(line.get_xdata()) for line in lines) == expected


def test_drops_stand_at_their_sizes(result):
    axes = drop_figure(result).axes[0]
    drawn = {bars.get_label(): bars.lines[0] for bars in axes.containers}
    assert {name: line.get_ydata().tolist() for name, line in drawn.items()} == {
        "search": [0.1, 0.12],
        "greedy": [0.1, 0.15],
    }
    assert all([round(x) for x in line.get_xdata()] == [1, 2] for line in drawn.values())
    # simultaneous intervals
    for bars in axes.containers:
        (segments,) = bars.lines[2]
        assert [round(end - start, 6) for (_, start), (_, end) in segments.get_segments()] == [0.4, 0.4]
    # the mask that gives one answer only is hollow, and the constant answer has a line
    assert [list(line.get_ydata()) for line in axes.lines if line.get_gid() == "hollow"] == [[0.12]]
    constants = [line for line in axes.lines if 'constant answer "yes"' in str(line.get_label())]
    assert [list(line.get_ydata()) for line in constants] == [pytest.approx([0.3, 0.3])]


def test_both_figures_say_first_that_there_is_no_verdict(result):
    result["report"]["baseline"] = {**BASELINE, "beaten": False}
    for figure in (tree_figure, drop_figure):
        assert figure(result).axes[0].get_title(loc="left").startswith("No verdict")


def test_files_are_written_however_large_the_search(result, tmp_path):
    # exhaustive: only the best are drawn
    result["units"] = list(map(str, range(30)))
    wide = [ablation((i, j), [(i,), (j,)], 0.5) for i, j in itertools.combinations(range(30), 2)]
    result["levels"][1]["ablations"] = [*result["levels"][1]["ablations"], *wide]
    paths = draw(report(result), tmp_path)
    assert [path.name for path in paths.values()] == ["search_tree.png", "drop_vs_removed.png"]
    assert all(path.stat().st_size > 5000 for path in paths.values())
