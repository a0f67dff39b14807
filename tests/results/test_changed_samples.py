"""What a mask changes is what differs from the full model, counted in full and shown within bounds."""

from __future__ import annotations

import pandas as pd
import pytest

from lit_depth.results.changed_samples import MOST_CHANGES, MOST_MASKS, MOST_SAMPLES, find_changes


def frame(answers: dict[str, list[tuple[str, float]]]) -> pd.DataFrame:
    rows = [
        {"mask": mask, "sample": f"s{place:04}", "prediction": answer, "score": score}
        for mask, each in answers.items()
        for place, (answer, score) in enumerate(each)
    ]
    return pd.DataFrame(rows)


def test_changes_are_counted_and_those_of_the_score_are_shown_first() -> None:
    full = [("a", 1.0), ("b", 1.0), ("c", 0.0), ("d", 0.0)]
    whole, masked = find_changes(frame({"10": [("A", 1.0), ("x", 0.0), ("y", 1.0), ("d", 0.0)], "11": full}))
    assert (whole.mask, whole.changed, whole.quality, whole.drop, whole.shown) == ("11", 0, 0.5, 0.0, [])
    assert (masked.worse, masked.better, masked.reworded, masked.quality, masked.num_samples) == (1, 1, 1, 0.5, 4)
    assert [(each.sample, each.full_answer, each.answer, each.full_score, each.score) for each in masked.shown] == [
        ("s0001", "b", "x", 1.0, 0.0),
        ("s0002", "c", "y", 0.0, 1.0),
        ("s0000", "a", "A", 1.0, 1.0),
    ]


def test_samples_that_change_under_most_masks_come_first() -> None:
    answers = {"111": [("a", 1.0)] * 3, "110": [("a", 1.0), ("x", 0.0), ("x", 0.0)]}
    answers["011"] = [("x", 0.0), ("a", 1.0), ("x", 0.0)]
    found = {each.mask: [change.sample for change in each.shown] for each in find_changes(frame(answers), most=1)}
    assert found == {"111": [], "110": ["s0002"], "011": ["s0002"]}


@pytest.mark.parametrize("most", [0, 20])
def test_however_many_masks_and_samples_there_are_the_page_stays_small(most: int) -> None:
    width, count = 9, 500
    answers = {format(mask, f"0{width}b"): [("x", 0.0)] * 300 for mask in range(1, count)}
    answers["1" * width] = [("a", 1.0)] * 300
    found = find_changes(frame(answers), most)
    assert len(found) == MOST_MASKS and all(each.worse == 300 for each in found[1:])
    assert sum(len(each.shown) for each in found) <= min(MOST_CHANGES, most * MOST_MASKS)
    assert len({change.sample for each in found for change in each.shown}) <= MOST_SAMPLES
    assert bool(most) == any(each.shown for each in found)


def test_longer_texts_count_more_and_options_have_no_answer() -> None:
    scores = pd.DataFrame({"mask": ["11", "11"], "sample": ["a", "b"], "score": [-1.0, -4.0], "weight": [2.0, 1.0]})
    (whole,) = find_changes(scores)
    assert whole.quality == -2.0


def test_nothing_is_known_without_the_full_model() -> None:
    assert find_changes(frame({"10": [("a", 1.0)]})) == [] and find_changes(frame({"11": []})) == []
