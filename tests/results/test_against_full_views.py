"""Table, sentence and figure of agreement, from entries made by hand."""

from __future__ import annotations

import pytest

from lit_depth.results.against_full_views import AgainstFull, agreement_sections, describe_flips, flips_figure


def mask(name: str, drop: float, flips: float, is_different: bool, **more) -> AgainstFull:
    entry = {"same_answer": 1 - 1.2 * flips, "right_to_wrong": flips / 2, "wrong_to_right": flips / 2, "flips": flips}
    entry |= {f"{key}_ci": [max(0.0, value - 0.04), value + 0.05] for key, value in entry.items()}
    return AgainstFull(name, "group", drop, (drop - 0.05, drop + 0.05), is_different, entry | more)


MASKS = [mask("few", 0.0, 0.02, False), mask("many", 0.01, 0.2, False), mask("worse", 0.4, 0.5, True)]


def test_equal_quality_and_many_flips_are_pointed_out():
    told = describe_flips(MASKS, "vqa")
    assert told.startswith(
        "EQUAL QUALITY, OTHER ANSWERS on vqa: many (drop +0.010, not shown) changes 20.0% [16.0%, 25.0%]"
    )
    assert "10.0% right to wrong, 10.0% wrong to right) and 24.0% of the answers" in told
    # what lost quality is no news, and few changes are told as such
    assert describe_flips([MASKS[0], MASKS[2]]).startswith("Of the masks without a drop that was shown, few changes")
    # a drop that too few samples show is no equal quality: its changes all go one way
    one_way = mask("lost", 0.2, 0.2, False, right_to_wrong=0.2, wrong_to_right=0.0)
    assert describe_flips([one_way]).startswith("Of the masks without a drop that was shown, lost changes most: 20.0%")
    assert describe_flips([one_way, MASKS[1]]).startswith("EQUAL QUALITY, OTHER ANSWERS: many")
    assert describe_flips([MASKS[2]]) == "" == describe_flips([])
    still = [mask("same", 0.0, 0.0, False), mask("also", 0.0, 0.0, False)]
    assert describe_flips([*still, MASKS[2]]) == "Of the masks without a drop that was shown, none changes a score."
    assert describe_flips([*still, MASKS[0]]).startswith("Of the masks without a drop that was shown, few changes")
    assert "There are 2 such masks in all." in describe_flips([*MASKS, mask("more", 0.0, 0.1, False)])


def test_table_has_what_is_known():
    sentence, table = agreement_sections(MASKS, 0.9, "image", "vqa", ["figure"])
    assert sentence.printed and not table.printed and "90% intervals by image" in table.text
    assert list(table.table.headers) == ["mask", "drop", "same answer", "right to wrong", "wrong to right"]
    assert "as texts" in table.text and "acceptance" not in table.text
    more = {"acceptance": 0.75, "acceptance_ci": [0.7, 0.8], "tokens_per_check": 2.5, "tokens_per_check_ci": [2.0, 3.0]}
    more |= {"num_different": 4, "first_difference": 1.0, "first_difference_ci": [0.0, 3.0]}
    _, table = agreement_sections([mask("one", 0.0, 0.2, False, **more), MASKS[0]], 0.95, "image")
    one, few = (dict(zip(table.table.headers, row)) for row in table.table.rows)
    assert one["first difference"] == "1 [0, 3]" and few["first difference"] is None
    assert one["acceptance"] == "75.0% [70.0%, 80.0%]" and one["tokens per check"] == "2.5 [2, 3]"
    assert "as texts" not in table.text and "what it would accept of a draft" in table.text


def test_nothing_is_told_of_nothing():
    assert agreement_sections([AgainstFull("a", "", 0.0, (0, 0), False, None)], 0.95, "image") == []
    unscored = AgainstFull("a", "", 0.0, (0, 0), False, {"same_answer": 0.5, "same_answer_ci": [0.4, 0.6]})
    (section,) = agreement_sections([unscored], 0.95, "image")
    assert not section.printed


def test_figure_stands_on_the_numbers():
    (axes,) = flips_figure(MASKS, "title", 0.95).axes
    (points,) = axes.containers
    line = points.lines[0]
    assert line.get_xdata() == pytest.approx([0.0, 0.01, 0.4]) and line.get_ydata() == pytest.approx([0.02, 0.2, 0.5])


def test_the_least_share_of_changes_follows_from_the_largest_score():
    (axes,) = flips_figure(MASKS, "title", 0.95, max_score=10.0).axes
    (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed.get_ydata() == pytest.approx([abs(x) / 10 for x in dashed.get_xdata()])
