"""The order after patching: chosen on some questions, told on others, and every number from its own rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lit_depth.functional import ablation_masks, mask_id
from lit_depth.functional.statistics import mean_intervals, paired_comparisons
from lit_depth.functional.statistics.agreement import rank_agreement_on_same_samples
from lit_depth.studies.search.healed_ranks import describe_healing
from lit_depth.studies.search.healing import PatchedMask
from lit_depth.studies.shared.scores import Scores

NUM_UNITS, NUM_SAMPLES = 8, 60
ONE = [(1,), (2,), (3,), (4,), (5,)]
TWO = [(1, 2), (1, 3), (2, 3)]
IMAGES = [str(number // 2) for number in range(NUM_SAMPLES)]
SAMPLES = tuple(f"s{number:02d}" for number in range(NUM_SAMPLES))


def identity(removed: tuple[int, ...]) -> str:
    return mask_id(ablation_masks(NUM_UNITS, [removed])[0])


def scores(rows: dict[tuple[int, ...], np.ndarray], samples: tuple[str, ...] = SAMPLES) -> Scores:
    names = sorted(rows, key=identity)
    quality = np.stack([rows[name] for name in names])
    logprob = np.log(0.2 + 0.5 * quality)
    distinct = tuple(range(3, 3 + len(names)))
    ids = [identity(name) for name in names]
    return Scores(ids, quality, logprob, IMAGES[: len(samples)], samples=samples, num_distinct_answers=distinct)


@pytest.fixture
def drawn() -> tuple[dict, dict, dict]:
    """Scores of every mask before, after, and on the questions to choose by."""
    rng = np.random.default_rng(3)

    def rows(base: float) -> dict[tuple[int, ...], np.ndarray]:
        of = {removed: base - 0.08 * removed[0] for removed in [*ONE, *TWO]}
        return {removed: (rng.random(NUM_SAMPLES) < share).astype(float) for removed, share in of.items()}

    before = {(): (rng.random(NUM_SAMPLES) < 0.95).astype(float), **rows(0.8)}
    choice = {removed: np.zeros(NUM_SAMPLES) for removed in [*ONE, *TWO]}
    # (4,) is clearly the best to choose, and (1, 3) as good as (2, 3)
    choice |= {(4,): np.ones(NUM_SAMPLES), (1, 3): np.ones(NUM_SAMPLES), (2, 3): np.ones(NUM_SAMPLES)}
    return before, rows(0.95), choice


def described(before, after, choice, levels=(ONE, TWO), rank_by="accuracy"):
    patched = [
        PatchedMask(removed, [], scores({removed: choice[removed]}), scores({removed: after[removed]}))
        for level in levels
        for removed in level
    ]
    return describe_healing(scores(before), patched, levels, rank_by, 0.95)


def test_every_mask_is_told_before_and_after_as_one_family(drawn):
    before, after, _ = drawn
    found = described(*drawn)
    removed = [mask["removed"] for mask in found["masks"]]
    assert removed == [*ONE, *TWO]
    regained = np.stack([after[each] - before[each] for each in removed])
    left = np.stack([before[()] - after[each] for each in removed])
    for key, rows in (("regained", regained), ("healed_drop", left)):
        for mask, row in zip(found["masks"], paired_comparisons(rows, IMAGES)):
            assert mask[key] == pytest.approx(row.interval.estimate)
            assert mask[f"{key}_ci"] == pytest.approx(row.interval[1:])
            assert mask[f"{key}_simultaneous_ci"] == pytest.approx(row.simultaneous[1:])
            assert mask[f"{key}_p_holm"] == row.p_holm
    for key, rows in (("quality", before), ("healed_quality", after)):
        for mask, interval in zip(found["masks"], mean_intervals([rows[each] for each in removed], IMAGES)):
            assert [mask[key], *mask[f"{key}_ci"]] == pytest.approx(list(interval))
    assert found["masks"][0]["mask_id"] == "10111111"


@pytest.mark.parametrize("rank_by", ["accuracy", "reference_logprob"])
def test_the_correlation_is_of_the_report_split_and_the_best_of_the_other_questions(drawn, rank_by):
    before, after, _ = drawn
    one, two = (found := described(*drawn, rank_by=rank_by))["levels"]
    means = [[rows[removed].mean() for removed in ONE] for rows in (before, after)]
    assert one["spearman"] == pytest.approx(stats.spearmanr(*means).statistic)
    of_sample = (lambda row: 0.2 + 0.5 * row) if rank_by == "reference_logprob" else (lambda row: row)
    drops = [np.stack([of_sample(before[()]) - of_sample(rows[each]) for each in ONE]) for rows in (before, after)]
    interval, p_value = rank_agreement_on_same_samples(*drops, IMAGES)
    assert one["spearman_ci"] == pytest.approx([interval.low, interval.high], abs=0.02)
    assert (one["p_value"], one["reason"]) == (pytest.approx(p_value), None)
    # three masks have no order
    assert (two["spearman"], two["spearman_ci"], two["reason"]) == (None, None, "fewer than 4 masks")
    assert found["mean"] == {"spearman": one["spearman"], "spearman_ci": one["spearman_ci"], "sizes": [1]}
    assert (one["best_before"], one["best_after"], one["tied_after"]) == ((1,), (4,), [(4,)])
    assert [entry["removed"] for entry in two["order"]] == [(1, 3), (2, 3), (1, 2)]
    assert (two["best_before"], two["best_after"], two["tied_after"]) == ((1, 2), (1, 3), [(1, 3), (2, 3)])
    gains = np.stack([after[(4,)] - after[(1,)], after[(1, 3)] - after[(1, 2)]])
    for size, row in zip((one, two), paired_comparisons(gains, IMAGES)):
        assert [size["gain"], *size["gain_simultaneous_ci"]] == pytest.approx(list(row.simultaneous))
        assert size["gain_p_holm"] == row.p_holm


def test_the_mean_is_over_the_sizes_that_have_a_correlation(drawn):
    before, after, choice = drawn
    levels = [ONE, [*TWO, (1, 4)]]
    for rows in drawn:
        rows[1, 4] = np.arange(NUM_SAMPLES) % 3 / 2.0
    found = described(before, after, choice, levels)
    parts = [level["spearman"] for level in found["levels"]]
    assert found["mean"]["spearman"] == pytest.approx(np.mean(parts)) and found["mean"]["sizes"] == [1, 2]
    limits = np.array([level["spearman_ci"] for level in found["levels"]])
    assert found["mean"]["spearman_ci"] == pytest.approx(limits.mean(axis=0).tolist())


def test_a_best_mask_that_stays_has_no_gain(drawn):
    before, after, choice = drawn
    choice[1,] = np.ones(NUM_SAMPLES)
    one, two = described(before, after, choice)["levels"]
    # (1,) and (4,) are equal: the one that was better before
    assert one["best_after"] == one["best_before"] == (1,) and (4,) in one["tied_after"]
    assert one["gain"] is None and one["gain_p_holm"] is None and two["gain"] is not None


def test_of_equal_masks_that_which_was_better_before_comes_first(drawn):
    before, after, choice = drawn
    _, two = described(before, after, choice, (ONE, TWO[::-1]))["levels"]
    assert (two["best_before"], two["best_after"], two["gain"]) == ((2, 3), (2, 3), None)


def test_masks_that_score_alike_have_no_order(drawn):
    before, after, choice = drawn
    after |= {removed: np.ones(NUM_SAMPLES) for removed in ONE}
    found = described(before, after, choice)
    assert found["levels"][0]["reason"] == "all masks score alike after patching" and found["mean"] is None
    before |= {removed: np.ones(NUM_SAMPLES) for removed in ONE}
    assert described(before, after, choice)["levels"][0]["reason"] == "all masks score alike before patching"


def test_too_few_images_have_no_interval(drawn, monkeypatch):
    monkeypatch.setattr(f"{__name__}.IMAGES", [str(number % 3) for number in range(NUM_SAMPLES)])
    found = described(*drawn)["levels"][0]
    assert found["spearman"] is None and "at least 4 clusters" in found["reason"]


def test_answers_to_other_questions_are_not_compared(drawn):
    before, after, choice = drawn
    other = scores({(1,): after[1,]}, tuple(f"t{number}" for number in range(NUM_SAMPLES)))
    patched = [PatchedMask((1,), [], scores({(1,): choice[1,]}), other)]
    with pytest.raises(ValueError, match="answers to the same questions as before"):
        describe_healing(scores(before), patched, [[(1,)]], "accuracy", 0.95)
