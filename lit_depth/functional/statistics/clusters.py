"""Samples that share an image are one unit: sums over clusters, and what each cluster adds to a mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_depth.functional.arguments import shorten

Floats = NDArray[np.float64]
Labels = Sequence[str] | Sequence[int] | NDArray


class ClusterSums(NamedTuple):
    """Weighted samples of R rows, summed over C clusters; divided by ``sizes.sum()`` they add up to the means.

    Attributes:
        values: ``[R, C]``.
        bounds: ``[R or 1, C]`` largest possible values; 0 where no bound is known.
        sizes: ``[C]`` weights of the samples: their number, or where tasks are averaged, their shares of it.
        tasks: ``[C]`` which task each cluster belongs to, 0 to T - 1.
    """

    values: Floats
    bounds: Floats
    sizes: Floats
    tasks: NDArray[np.int64]

    @property
    def means(self) -> Floats:
        """``[R]``, over all samples; over tasks where there are several."""
        return self.values.sum(axis=1) / self.sizes.sum()

    @property
    def residuals(self) -> Floats:
        """``[R, C]`` what each cluster adds to the mean beyond its share of the mean (Cochran 1977, eq. 11.25)."""
        return (self.values - self.means[:, None] * self.sizes) / self.sizes.sum()

    @property
    def by_task(self) -> list[ClusterSums]:
        """The clusters of each task alone."""
        members = [self.tasks == task for task in range(self.tasks.max() + 1)]
        return [
            ClusterSums(self.values[:, own], self.bounds[:, own], self.sizes[own], np.zeros(own.sum(), dtype=np.int64))
            for own in members
        ]


def as_numbers(kind: type, **given: Any) -> NDArray[Any]:
    """One named argument as an array of floats or bools.

    >>> as_numbers(float, drops="x")
    Traceback (most recent call last):
    ...
    ValueError: expected drops as an array of numbers, got 'x'
    """
    ((name, value),) = given.items()
    try:
        return np.asarray(value, dtype=kind)
    except (TypeError, ValueError, OverflowError):
        words = "true or false" if kind is bool else "numbers"
        raise ValueError(f"expected {name} as an array of {words}, got {shorten(value)}") from None


def sum_clusters(
    values: ArrayLike, clusters: Labels | None = None, tasks: Labels | None = None, score_range: ArrayLike | None = None
) -> ClusterSums:
    """Check samples and sum them over clusters.

    Args:
        values: ``[rows, num_samples]``, finite.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        tasks: ``[num_samples]`` task of each sample: every task weighs the same, however many samples it has. Clusters
            of one name in two tasks are two clusters. None = one task.
        score_range: Largest possible absolute values, of a shape that broadcasts against ``values``; None = unknown.

    Raises:
        ValueError: On a wrong shape, values that are not finite or beyond their range, or a task of fewer than two
            clusters.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"expected values of shape [num_rows, num_samples > 0], got {list(array.shape)}")
    bounds = np.zeros((1, 1)) if score_range is None else np.atleast_2d(np.asarray(score_range, dtype=np.float64))
    if score_range is not None and not np.all(np.isfinite(bounds) & (bounds > 0)):
        raise ValueError(f"expected a finite score_range above 0, got {score_range!r}")
    bounds = np.broadcast_to(bounds, (len(bounds), array.shape[1]))
    names, weights, task_of = clusters, np.ones(array.shape[1]), np.zeros(array.shape[1], dtype=np.int64)
    if tasks is not None:
        if len(tasks) != array.shape[1]:
            raise ValueError(f"expected one task per sample ({array.shape[1]}), got {len(tasks)}")
        _, task_of, counts = np.unique(np.asarray(tasks), return_inverse=True, return_counts=True)
        weights = (array.shape[1] / (len(counts) * counts))[task_of]
        # images of one name in two tasks are two clusters
        own = range(array.shape[1]) if clusters is None else clusters
        names = [f"{task}/{cluster}" for task, cluster in zip(task_of, own)]
    sums, _ = cluster_sums(np.concatenate([array * weights, bounds * weights, weights[None]]), names)
    if score_range is not None and np.any(np.abs(array) > bounds * (1 + 1e-9)):
        worst = float(np.abs(array).max())
        raise ValueError(f"expected values within a score_range of {float(bounds.max()):g}, got one of size {worst:g}")
    first = np.arange(len(task_of)) if names is None else np.unique(np.asarray(names), return_index=True)[1]
    task_of = task_of[first]
    if np.bincount(task_of).min() < 2:
        raise ValueError(
            f"expected at least 2 clusters (images) to estimate an interval, got {np.bincount(task_of).min()}"
        )
    return ClusterSums(sums[: len(array)], sums[len(array) : -1], sums[-1], task_of)


def cluster_sums(values: Floats, clusters: Labels | None) -> tuple[Floats, Floats]:
    """Sums ``[num_rows, num_clusters]`` of values ``[num_rows, num_samples]`` by cluster, and sizes."""
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"expected finite differences, got {int(np.sum(~np.isfinite(values)))} that are NaN or infinite"
        )
    num_samples = values.shape[1]
    if clusters is None:
        return values, np.ones(num_samples)
    if len(clusters) != num_samples:
        raise ValueError(f"expected one cluster per sample ({num_samples}), got {len(clusters)}")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(index).astype(np.float64)
    return np.stack([np.bincount(index, weights=row) for row in values]), sizes


def cluster_covariance(values: ArrayLike, clusters: Sequence[str] | NDArray | None = None) -> Floats:
    """Covariance ``[num_rows, num_rows]`` of the means of rows ``[num_rows, num_samples]`` that share their samples.

    Samples of one cluster (image) may depend on each other. Of the ratio estimate sum over number of samples,
    linearised (Cochran 1977, Sampling Techniques, eq. 11.25).

    Raises:
        ValueError: As :func:`paired_intervals`.

    Example:
        >>> cluster_covariance([[0.0, 1.0, 0.0, 1.0], [0.0, 2.0, 0.0, 2.0]]).round(4).tolist()
        [[0.0833, 0.1667], [0.1667, 0.3333]]
    """
    sums, sizes = cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    count, total = len(sizes), sizes.sum()
    if count < 2:
        raise ValueError(f"expected at least 2 clusters (images) to estimate a covariance, got {count}")
    deviations = sums - sums.sum(axis=1, keepdims=True) / total * sizes
    return deviations @ deviations.T * (count / (count - 1) / total**2)
