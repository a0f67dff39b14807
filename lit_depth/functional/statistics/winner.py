"""What is known of the best of many: its mean looked best partly by luck, and an interval that allows for this."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lit_depth.functional.arguments import check_share
from lit_depth.functional.statistics.clusters import Labels, sum_clusters
from lit_depth.functional.statistics.intervals import Interval, paired_intervals
from lit_depth.functional.statistics.stability import plausible_means

# share of 1 - confidence that goes into finding the rows that might have been the best
_RIVALS_SHARE = 0.1


class Winner(NamedTuple):
    """The row of the largest mean.

    Attributes:
        row: Its index; of equal means the first.
        naive: Its mean with its interval, as if it had not been chosen.
        corrected: The same, corrected for the choice.
        num_rivals: Other rows that might have been the best in another sample.
    """

    row: int
    naive: Interval
    corrected: Interval
    num_rivals: int


def winner_interval(
    values: ArrayLike,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    *,
    score_range: ArrayLike | None = 1.0,
    tasks: Labels | None = None,
    seed: int = 0,
) -> Winner:
    """The best row, and an interval of its true mean that covers although these very data chose the row.

    All limits are those of `paired_intervals`, at levels of which the misses add up to ``1 - confidence``:

    - The upper limit is that of one row, at half the misses. The chosen mean is no smaller than that of the truly best
      row, so it lies too low for the truth only where that one row's does.
    - The lower limit holds for all rivals together (Bonferroni), at 0.4 of the misses. Rivals are the rows that another
      sample of these true means might choose: as far from the best at most as two samples of the difference may lie
      apart, at 0.1 of the misses (locally simultaneous inference, Zrnic & Fithian 2024, doi:10.1214/24-AOS2391).

    The estimate is the mean of the true means that are plausible (`stability.plausible_means`), which lie nearer to
    the other rows, within the limits. The conditional interval of Andrews, Kitagawa & McCloskey 2024
    (doi:10.1093/qje/qjad043) rests on normal means; of scores of 0 and 1 that differ rarely it covered far too seldom.

    Args:
        values: ``[rows, num_samples]``, larger = better: scores minus those of the full model.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        confidence: Coverage, in (0, 1).
        score_range: Largest less smallest possible score; None = unknown.
        tasks: ``[num_samples]`` task of each sample, see `paired_intervals`.
        seed: Of the simulated means, and of random sign patterns.

    Raises:
        ValueError: On a wrong shape, values that are not finite or beyond the range, and fewer than two clusters.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> drops = generator.random((20, 200)) < 0.1  # 20 masks that all lose 0.1
        >>> found = winner_interval(-drops.astype(float))
        >>> print(f"{found.naive.estimate:.2f}, corrected {found.corrected.estimate:.2f}")
        -0.05, corrected -0.07
    """
    check_share(confidence=confidence)
    array = np.asarray(values, dtype=np.float64)
    sums = sum_clusters(array, clusters, tasks, score_range)
    row, misses = int(np.argmax(sums.means)), 1 - confidence
    rivals = _rivals(array, row, clusters, _RIVALS_SHARE * misses, score_range, tasks, seed)

    def limits(level: float) -> Interval:
        found = paired_intervals(array[[row]], clusters, level, score_range=score_range, tasks=tasks, seed=seed)
        return found[0]

    naive = limits(confidence)
    below = (1 - 2 * _RIVALS_SHARE) * misses / (1 + rivals)
    low = limits(1 - below).low if len(array) > 1 else naive.low
    estimate = naive.estimate
    if rivals:
        means = plausible_means(sums, 0.0, np.random.default_rng(seed)).means
        estimate = float(np.clip(min(means[:, row].mean(), estimate), low, naive.high))
    return Winner(row, naive, Interval(estimate, low, naive.high), rivals)


def _rivals(
    values: np.ndarray,
    row: int,
    clusters: Labels | None,
    misses: float,
    score_range: ArrayLike | None,
    tasks: Labels | None,
    seed: int,
) -> int:
    """How many other rows another sample might choose."""
    differences = values[row] - np.delete(values, row, axis=0)
    if not len(differences):
        return 0
    intervals = paired_intervals(
        differences,
        clusters,
        1 - misses / len(differences),
        score_range=None if score_range is None else 2 * np.asarray(score_range),
        tasks=tasks,
        seed=seed,
    )
    return sum(each.low <= each.estimate / 2 for each in intervals)
