"""The interval of a median covers what it says, whatever the distribution."""

from __future__ import annotations

import numpy as np
import pytest

from lit_depth.functional.statistics.median import median_interval


@pytest.mark.parametrize(("number", "confidence"), [(6, 0.95), (20, 0.95), (51, 0.9), (5, 0.9)])
def test_it_covers_the_median_as_often_as_it_says(number, confidence):
    draws = np.random.default_rng(number).lognormal(sigma=2.0, size=(4000, number))  # its median is 1
    found = np.array([median_interval(row, confidence) for row in draws.tolist()])
    covered = np.mean((found[:, 0] <= 1) & (found[:, 1] >= 1))
    assert covered >= confidence - 0.012


def test_few_values_give_their_ends_and_more_give_less():
    assert median_interval([3.0, 1.0]) == [1.0, 3.0] and median_interval([2.0]) == [2.0, 2.0]
    low, high = median_interval(list(range(100)))
    assert (low, high) == (39, 60) or 35 < low < 45 < 55 < high < 65
    with pytest.raises(ValueError, match="at least one value"):
        median_interval([])
