"""What is healed before it is written: refusals, and the comparison of whole, masked and healed model."""

from __future__ import annotations

import numpy as np
import pytest

from lit_depth.functional.masks import MaskSet
from lit_depth.functional.statistics import paired_comparisons
from lit_depth.studies.export.healing import check_heal, compare, is_patched
from lit_depth.studies.shared.scores import Scores

BLOCKS, HALVES = MaskSet.of("1011"), MaskSet.of("11011111", granularity="sublayer")


@pytest.mark.parametrize(
    ("heal", "masks", "weights", "message"),
    [
        ("full", BLOCKS, False, "leave out --weights false"),
        ("lora", MaskSet.of("1111"), True, "there is nothing to heal"),
        ("patch", BLOCKS, False, "leave out --weights false"),
        ("patch", HALVES, True, "of whole blocks"),
        ("patch", MaskSet.of("1111"), True, "there is nothing to heal"),
        ("patch", MaskSet.of("0111"), True, "skips block 0: .* keep block 0, give --heal lora or full, or leave"),
    ],
)
def test_what_cannot_be_healed_is_refused_in_one_line(heal, masks, weights, message):
    with pytest.raises(ValueError, match=message) as refused:
        check_heal(heal, masks, weights)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("masks", [BLOCKS, HALVES, MaskSet.of("0111")])
def test_without_healing_nothing_is_refused(masks):
    check_heal("none", masks, False)
    check_heal("patch", BLOCKS, True)
    check_heal("patch", MaskSet.of("11001111", granularity="sublayer"), True)  # both halves of a block


def test_a_training_begins_with_a_patch_where_a_block_stands_before_the_skipped_ones():
    first, whole = MaskSet.of("0111"), MaskSet.of("11001111", granularity="sublayer")
    for heal in ("lora", "full"):
        check_heal(heal, first, True)
        assert is_patched(heal, BLOCKS) and is_patched(heal, whole) and not is_patched(heal, first)
    assert is_patched("patch", BLOCKS) and not is_patched("none", BLOCKS)


def scores(ids: list[str], rows: np.ndarray, samples: list[str]) -> Scores:
    images = [name[:-1] for name in samples]
    return Scores(ids, rows, rows - 1.0, images, samples=tuple(samples))


def test_the_three_models_are_compared_on_the_same_questions():
    draw = np.random.default_rng(0)
    whole, masked, healed = (draw.random((3, 40)) < [[0.9], [0.4], [0.7]]).astype(float)
    samples = [f"{number // 2}{'ab'[number % 2]}" for number in range(40)]
    # records are sorted by the id of the mask
    before = scores(["1011", "1111"], np.stack([masked, whole]), samples)
    found = compare(before, scores(["1011"], healed[None], samples))
    expected = {"whole": whole, "masked": masked, "healed": healed}
    assert {name: found[name]["quality"] for name in expected} == pytest.approx(
        {name: row.mean() for name, row in expected.items()}
    )
    assert found["masked"]["drop"] == pytest.approx((whole - masked).mean())
    assert found["healed"]["drop"] == pytest.approx((whole - healed).mean())
    assert found["regained"] == pytest.approx((healed - masked).mean())
    assert found["num_samples"] == 40 and "drop" not in found["whole"]
    images = [name[:-1] for name in samples]
    rows = np.stack([whole - masked, whole - healed, healed - masked])
    of_rows = paired_comparisons(rows, images, score_range=np.ones((3, 40)), confidence=0.95)
    told = (found["masked"]["drop_ci"], found["healed"]["drop_ci"], found["regained_ci"])
    for limits, row in zip(told, of_rows):
        assert limits == pytest.approx([row.interval.low, row.interval.high])


def test_answers_to_other_questions_are_not_compared():
    before = scores(["1011", "1111"], np.ones((2, 4)), ["1a", "1b", "2a", "2b"])
    with pytest.raises(ValueError, match="answers to the same questions"):
        compare(before, scores(["1011"], np.ones((1, 4)), ["1a", "1b", "2a", "3b"]))
