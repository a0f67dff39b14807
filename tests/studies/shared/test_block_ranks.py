"""Importance from scores: drops, intervals, and ranks that stay open where the samples do not decide."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lit_depth.functional import leave_one_out, mask_id
from lit_depth.studies.shared.block_ranks import describe_blocks, describe_full, drops, find_different, rank_ranges
from lit_depth.studies.shared.scores import Scores

NUM_BLOCKS = 4


def make_scores(seed: int = 0, num_samples: int = 80, costs=(0.7, 0.3, 0.0, 0.0)) -> Scores:
    """Skipping block i turns a right answer into a wrong one with probability costs[i]; two questions per image."""
    generator = np.random.default_rng(seed)
    full = (generator.random(num_samples) < 0.9).astype(float)
    rows = [full * (generator.random(num_samples) >= cost) for cost in costs]
    quality = np.stack([full, *rows])
    logprob = -1.0 - np.stack([np.zeros(num_samples), *(np.full(num_samples, 2 * cost) for cost in costs)])
    logprob[1:] -= 0.01 * generator.random((NUM_BLOCKS, num_samples))
    ids = ["1" * NUM_BLOCKS, *(mask_id(mask) for mask in leave_one_out(NUM_BLOCKS))]
    order = np.argsort(ids)  # as read from records
    images = [str(index // 2) for index in range(num_samples)]
    return Scores([ids[i] for i in order], quality[order], logprob[order], images)


def test_drops_are_differences_to_the_full_model_block_by_block():
    scores = make_scores()
    by_id = dict(zip(scores.mask_ids, scores.quality))
    expected = np.stack([by_id["1111"] - by_id["1011"], by_id["1111"] - by_id["1110"]])
    np.testing.assert_array_equal(drops(scores, [1, 3], "quality"), expected)


def test_blocks_are_described_with_intervals_and_ranks_with_ties():
    blocks = describe_blocks(make_scores(), range(NUM_BLOCKS), 0.95)
    assert [entry["block"] for entry in blocks] == [0, 1, 2, 3]
    quality = [entry["quality"] for entry in blocks]
    assert [entry["rank"] for entry in quality] == [1, 2, 3, 3]  # two blocks that change nothing share a rank
    assert [entry["rank_ci"] for entry in quality] == [[1, 1], [2, 2], [3, 4], [3, 4]]
    assert quality[0]["p_holm"] < 0.001 and quality[2]["p_holm"] == 1.0
    for entry in (each[measure] for each in blocks for measure in ("quality", "reference_logprob")):
        for key, p in (("drop_ci", entry["p_value"]), ("drop_simultaneous_ci", entry["p_holm"])):
            low, high = entry[key]
            assert low <= entry["drop"] <= high and low < high
            assert (low > 0 or high < 0) == (p < 0.05)
    # the log-probability tells blocks apart only where they differ by more than its noise
    assert [entry["reference_logprob"]["rank_ci"] for entry in blocks][:2] == [[1, 1], [2, 2]]


def test_halves_of_blocks_are_named():
    entries = describe_blocks(make_scores(), range(NUM_BLOCKS), 0.95, "sublayer")
    names = [(entry["block"], entry["sublayer"]) for entry in entries]
    assert names == [(0, "attn"), (0, "mlp"), (1, "attn"), (1, "mlp")]
    for entry, other in zip(entries, describe_blocks(make_scores(), range(NUM_BLOCKS), 0.95)):
        assert entry["quality"] == other["quality"] and entry["reference_logprob"] == other["reference_logprob"]


def test_intervals_agree_with_t_intervals_over_images():
    scores = make_scores(num_samples=800)
    entries = describe_blocks(scores, range(NUM_BLOCKS), 0.95)
    for entry, values in zip(entries, drops(scores, range(NUM_BLOCKS), "quality")):
        images = values.reshape(-1, 2).mean(axis=1)
        margin = stats.t.ppf(0.975, len(images) - 1) * stats.sem(images)
        assert entry["quality"]["drop"] == pytest.approx(values.mean())
        assert entry["quality"]["drop_ci"] == pytest.approx([images.mean() - margin, images.mean() + margin], abs=0.01)


def test_full_model_is_described_from_its_own_row():
    scores = make_scores()
    full = describe_full(scores, 0.95)
    row = scores.mask_ids.index("1111")
    assert full["quality"] == pytest.approx(scores.quality[row].mean())
    assert full["reference_logprob"] == pytest.approx(-1.0)


def test_macro_average_weights_tasks_not_samples():
    small, large = make_scores(1, 20, (1.0, 0, 0, 0)), make_scores(2, 200, (0.0, 0, 0, 0))
    entries = describe_blocks(Scores.pooled([small, large]), range(NUM_BLOCKS), 0.95)
    expected = drops(small, [0], "quality").mean() / 2
    assert entries[0]["quality"]["drop"] == pytest.approx(expected)
    for measure in ("quality", "reference_logprob"):
        for entry in (each[measure] for each in entries):
            for key, p in (("drop_ci", entry["p_value"]), ("drop_simultaneous_ci", entry["p_holm"])):
                low, high = entry[key]
                assert low <= entry["drop"] <= high and low < high
                assert (low > 0 or high < 0) == (p < 0.05)


def test_scores_of_another_range_are_scaled():
    """CIDEr-D goes to 10: all numbers of quality are ten times as large, p-values and ranks the same."""
    scores = make_scores()
    wide = scores._replace(quality=10 * scores.quality, max_scores=(10.0,))
    for one, other in zip(*(describe_blocks(each, range(NUM_BLOCKS), 0.95) for each in (scores, wide))):
        for key in ("drop", "drop_ci", "drop_simultaneous_ci"):
            expected = (10 * np.array(one["quality"][key])).tolist()
            assert other["quality"][key] == pytest.approx(expected, abs=1e-9)
        assert other["quality"]["p_holm"] == one["quality"]["p_holm"]
        assert other["reference_logprob"] == one["reference_logprob"]
    full, wide_full = (describe_full(each, 0.95) for each in (scores, wide))
    assert wide_full["quality_ci"] == pytest.approx([10 * limit for limit in full["quality_ci"]])
    assert Scores.pooled([scores, wide]).max_scores == (1.0, 10.0)
    with pytest.raises(ValueError, match="within a score_range of 1"):
        describe_full(wide._replace(max_scores=(1.0,)), 0.95)


def test_pooled_means_keep_their_intervals_in_the_range():
    tasks = [make_scores(1, 20, (1.0, 0, 0, 0)), make_scores(2, 200, (0.0, 0, 0, 0))]
    pooled = describe_full(Scores.pooled(tasks), 0.95)
    assert pooled["quality"] == pytest.approx(np.mean([t.quality[t.mask_ids.index("1111")].mean() for t in tasks]))
    assert 0 < pooled["quality_ci"][0] < pooled["quality"] < pooled["quality_ci"][1] <= 1


@pytest.mark.slow
def test_rank_ranges_hold_together():
    """200 runs: the true ranks of all rows lie in their ranges in at least 95%."""
    generator = np.random.default_rng(4)
    means = np.array([0.6, 0.3, 0.3, 0.0])
    held = 0
    for _ in range(200):
        values = generator.normal(means[:, None], 1.0, size=(4, 60))
        ranges = rank_ranges(find_different(values, [str(i) for i in range(60)], 0.95))
        # equal means may take either rank
        truth = [(1, 1), (2, 3), (2, 3), (4, 4)]
        held += all(low <= best and worst <= high for (low, high), (best, worst) in zip(ranges, truth))
    assert held >= 0.95 * 200


def test_one_block_has_one_rank():
    assert rank_ranges(find_different(np.ones((1, 5)), list("abcde"), 0.95)) == [(1, 1)]
