"""The interval of a median covers what it says, whatever the distribution."""

from __future__ import annotations

import numpy as np
import pytest

from lit_depth.functional.statistics.median import clustered_median, median_interval


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


@pytest.mark.parametrize(("num_clusters", "is_discrete"), [(30, False), (30, True), (100, False)])
def test_limits_of_values_in_clusters_cover_their_median(num_clusters, is_discrete):
    rng, size, covered = np.random.default_rng(num_clusters), 4, []
    clusters = np.repeat(np.arange(num_clusters), size)
    for _ in range(400):
        values = np.repeat(rng.normal(size=num_clusters), size) + rng.normal(size=num_clusters * size)
        found = clustered_median(np.round(values) if is_discrete else values, clusters)
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) >= 0.92
    # values that are taken to be independent would cover far less
    independent = [median_interval(np.repeat(rng.normal(size=num_clusters), size).tolist()) for _ in range(400)]
    assert np.mean([low <= 0 <= high for low, high in independent]) < 0.85


def test_one_cluster_and_no_value():
    assert clustered_median([3.0, 1.0, 2.0], ["a"] * 3) == (2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="at least one value"):
        clustered_median([], [])
