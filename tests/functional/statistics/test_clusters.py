"""Laws of sums over clusters: means, shares, and the covariance of means."""

from __future__ import annotations

import numpy as np
import pytest

from lit_depth.functional.statistics import cluster_covariance, cluster_sums
from lit_depth.functional.statistics.clusters import sum_clusters

CLUSTERS = ["b", "a", "b", "c", "a", "b"]


def test_sums_and_sizes_are_sorted_by_name() -> None:
    sums, sizes = cluster_sums(np.arange(6.0)[None], CLUSTERS)
    assert sums.tolist() == [[1 + 4, 0 + 2 + 5, 3]] and sizes.tolist() == [2, 3, 1]


def test_means_are_of_samples_and_what_is_left_adds_up_to_nothing() -> None:
    values = np.random.default_rng(0).normal(size=(3, 6))
    sums = sum_clusters(values, CLUSTERS)
    np.testing.assert_allclose(sums.means, values.mean(axis=1))
    np.testing.assert_allclose(sums.residuals.sum(axis=1), 0, atol=1e-12)
    # Cochran 1977, eq. 11.25: the squares of these are the variance of the mean
    variances = (sums.residuals**2).sum(axis=1) * 3 / 2
    np.testing.assert_allclose(variances, cluster_covariance(values, CLUSTERS).diagonal())


def test_covariance_of_samples_of_their_own_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(size=(3, 40))
    np.testing.assert_allclose(cluster_covariance(values), np.cov(values) / 40)
    copied = cluster_covariance(np.repeat(values, 5, axis=1), np.repeat(np.arange(40), 5))
    np.testing.assert_allclose(copied, np.cov(values) / 40)


def test_tasks_weigh_the_same() -> None:
    values, tasks = np.array([[1.0, 1.0, 1.0, 1.0, 5.0, 3.0]]), ["x"] * 4 + ["y"] * 2
    sums = sum_clusters(values, tasks=tasks, score_range=8.0)
    assert sums.means == pytest.approx((1 + 4) / 2)
    assert sums.sizes[:4].sum() == pytest.approx(sums.sizes[4:].sum()) and sums.sizes.sum() == pytest.approx(6)
    assert sums.bounds.sum() / sums.sizes.sum() == pytest.approx(8)
    # each task alone: of the four equal samples nothing is left, of the other two 1 and -1
    equal, other = sums.by_task
    assert equal.means == pytest.approx(1) and equal.residuals[0] == pytest.approx([0] * 4)
    assert other.means == pytest.approx(4) and other.residuals[0] == pytest.approx([1 / 2, -1 / 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": ["a", "b"]}, "one cluster per sample"),
        ({"clusters": ["a"] * 3}, "at least 2 clusters"),
        ({"tasks": [0, 1]}, "one task per sample"),
        ({"tasks": [0, 0, 1]}, "at least 2 clusters"),
        ({"score_range": -1.0}, "score_range above 0"),
        ({"score_range": 1.5}, "score_range of 1.5, got one of size 2"),
    ],
)
def test_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sum_clusters([[0.0, 1.0, 2.0]], **options)
