"""The interval of the best of many covers where the naive one does not, on models of known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from lit_depth.functional.statistics.intervals import paired_intervals
from lit_depth.functional.statistics.winner import winner_interval

NUM_DATA_SETS = 80


@pytest.mark.parametrize(
    ("losses", "per_image"),
    [(np.full(20, 0.1), 1), (np.full(20, 0.1), 4), (np.linspace(0.02, 0.2, 20), 1)],
    ids=["ties", "ties, by image", "spread"],
)
def test_it_covers_where_the_naive_interval_is_biased(losses, per_image):
    generator = np.random.default_rng(0)
    images = np.repeat(np.arange(200 // per_image), per_image)
    hits, naive_errors, errors = 0, [], []
    for _ in range(NUM_DATA_SETS):
        luck = generator.random((20, 200 // per_image)).repeat(per_image, axis=1)
        found = winner_interval(-(luck < losses[:, None]).astype(float), images)
        true = -losses[found.row]
        hits += found.corrected.low <= true <= found.corrected.high
        naive_errors.append(found.naive.estimate - true)
        errors.append(found.corrected.estimate - true)
    assert binomtest(int(hits), NUM_DATA_SETS).proportion_ci(0.99).high >= 0.94
    assert np.mean(naive_errors) > 0.005  # the best looks better than it is
    assert abs(np.mean(errors)) < np.mean(naive_errors)


def test_a_clear_winner_has_no_rival_and_nearly_its_own_interval():
    losses = np.array([0.05, 0.5, 0.6])
    values = -(np.random.default_rng(1).random((3, 400)) < losses[:, None]).astype(float)
    found = winner_interval(values)
    assert (found.row, found.num_rivals) == (0, 0)
    assert found.naive == paired_intervals(values[:1])[0]
    assert found.corrected.estimate == found.naive.estimate
    assert found.corrected.high == found.naive.high
    assert 0 < found.naive.low - found.corrected.low < 0.01


def test_one_row_was_not_chosen():
    values = -(np.random.default_rng(2).random((1, 100)) < 0.2).astype(float)
    found = winner_interval(values)
    assert found.corrected == found.naive == paired_intervals(values)[0]


def test_equal_rows_stay_finite_and_the_first_wins():
    found = winner_interval(np.zeros((4, 50)))
    assert (found.row, found.naive.estimate) == (0, 0.0)
    assert found.corrected.low < 0 < found.corrected.high
    assert found.corrected.low <= found.corrected.estimate <= found.corrected.high


def test_scores_of_unknown_range_and_tasks_are_taken():
    values = np.random.default_rng(3).normal(size=(5, 60)) * 3
    found = winner_interval(values, score_range=None, tasks=["a"] * 20 + ["b"] * 40)
    assert found.corrected.low < found.corrected.estimate <= found.naive.estimate
    with pytest.raises(ValueError, match="expected values within a score_range"):
        winner_interval(values)
