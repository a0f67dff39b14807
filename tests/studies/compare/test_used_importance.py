"""The importance that chose blocks is shown with what the samples cannot tell apart."""

from __future__ import annotations

from lit_depth.studies.compare.used_importance import used_importance_figure, used_importance_section

IMPORTANCE = {
    "source": "accuracy drop",
    "scores": {"0": 0.5, "1": 0.01, "2": 0.02, "3": 0.3},
    "intervals": {"0": [0.4, 0.6], "1": [-0.1, 0.1], "2": [-0.1, 0.1], "3": [0.2, 0.4]},
    "tied_with": {0: [], 1: [2], 2: [1], 3: []},
    "ties": [{"num_active_blocks": 3, "blocks": [1, 2], "kept": [2]}],
}


def test_the_most_important_block_comes_first_and_ties_are_named():
    (section,) = used_importance_section(IMPORTANCE, "m5_importance")
    assert [row[0] for row in section.table.rows] == [0, 3, 2, 1]
    assert [row[2] for row in section.table.rows] == [None, None, "1", "2"]
    assert section.table.rows[0][1] == "+0.500 [+0.400, +0.600]"
    assert "At 3 blocks the order of blocks 1 and 2 is noise; 2 was kept." in section.text
    assert used_importance_section({**IMPORTANCE, "scores": {}}, "x") == []


def test_bars_of_ties_are_pale_and_a_file_alone_has_no_bars():
    axes = used_importance_figure(IMPORTANCE, 0.95).axes[0]
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert colors[0] == colors[3] != colors[1] == colors[2] and "simultaneous" in axes.get_title(loc="left")
    alone = {**IMPORTANCE, "intervals": None, "tied_with": None, "ties": None}
    assert "ties are not known" in used_importance_figure(alone, 0.95).axes[0].get_title(loc="left")
    assert used_importance_section(alone, "x")[0].table.rows[0][1] == "+0.500"
