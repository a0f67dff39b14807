"""What is known of the best of many: its mean looked best partly by luck, and an interval that allows for this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lit_depth.functional.arguments import check_share, checked
from lit_depth.functional.statistics.clusters import Floats, Labels, as_numbers, sum_clusters
from lit_depth.functional.statistics.intervals import Interval, paired_intervals
from lit_depth.functional.statistics.stability import plausible_means

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

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


@checked
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
    array = as_numbers(float, values=values)
    sums = sum_clusters(array, clusters, tasks, score_range)
    row = int(np.argmax(sums.means))
    options: dict[str, Any] = {"clusters": clusters, "score_range": score_range, "tasks": tasks, "seed": seed}
    differences = array[row] - np.delete(array, row, axis=0)
    rivals = count_rivals(differences, len(differences), confidence, **options) if len(differences) else 0
    plausible = float(sums.means[row])
    if rivals:
        plausible = float(plausible_means(sums, 0.0, np.random.default_rng(seed)).means[:, row].mean())
    return correct_for_choice(row, array[[row]], len(array), rivals, plausible, confidence, **options)


def count_rivals(differences: Floats, num_others: int, confidence: float, **options: Any) -> int:
    """Of the chosen row minus some others, ``[others, num_samples]``: how many another sample might choose.

    ``num_others`` is the number of all other rows; the options are those of `paired_intervals`.
    """
    limit, score_range = 1 - _RIVALS_SHARE * (1 - confidence) / num_others, options.pop("score_range")
    twice = None if score_range is None else 2 * np.asarray(score_range)
    intervals = paired_intervals(differences, confidence=limit, score_range=twice, **options)
    return sum(each.low <= each.estimate / 2 for each in intervals)


def correct_for_choice(
    row: int, values: Floats, num_options: int, rivals: int, plausible: float, confidence: float, **options: Any
) -> Winner:
    """The chosen row, values ``[1, num_samples]``, given its number of rivals and the mean of its plausible true means.

    The options are those of `paired_intervals`.
    """
    (naive,) = paired_intervals(values, confidence=confidence, **options)
    if num_options == 1:
        return Winner(row, naive, naive, rivals)
    below = (1 - 2 * _RIVALS_SHARE) * (1 - confidence) / (1 + rivals)
    (wide,) = paired_intervals(values, confidence=1 - below, **options)
    estimate = float(np.clip(min(plausible, naive.estimate), wide.low, naive.high))
    return Winner(row, naive, Interval(estimate, wide.low, naive.high), rivals)
