"""An interval of a median that assumes nothing about the distribution."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from lit_depth.functional.arguments import check_share
from lit_depth.functional.statistics.clusters import Labels
from lit_depth.functional.statistics.intervals import Interval, mean_intervals


def median_interval(values: Sequence[float], confidence: float = 0.95) -> list[float]:
    """Limits of the median of what independent values were drawn from: two of the values themselves.

    The k-th smallest and the k-th largest of n values hold it with probability ``1 - 2 P(Binomial(n, 1/2) < k)`` at
    least (Thompson 1936, doi:10.1214/aoms/1177732563). Of less than 6 values even the least and the greatest hold it
    with less than 95%; they are then given all the same.

    Args:
        values: At least one.
        confidence: Coverage, in (0, 1).

    >>> median_interval([5.0, 1.0, 2.0, 3.0, 4.0, 9.0, 7.0, 8.0, 6.0])
    [2.0, 8.0]
    """
    check_share(confidence=confidence)
    if not len(values):
        raise ValueError("expected at least one value, got none")
    ordered, number = sorted(map(float, values)), len(values)
    cut = max(int(binom.ppf((1 - confidence) / 2, number, 0.5)), 1)  # P(fewer than cut) is at most half the rest
    return [ordered[cut - 1], ordered[number - cut]]


def clustered_median(values: ArrayLike, clusters: Labels, confidence: float = 0.95) -> Interval:
    """Median of values that come in clusters, such as several of one image, with its limits.

    Those are the quantiles at the limits of a clustered interval for the share of one half (Woodruff 1952,
    doi:10.1080/01621459.1952.10483443): as far from one half as the share of values up to the median is uncertain. Of a
    single cluster they are the least and the greatest value.

    Args:
        values: ``[num_values]``, at least one.
        clusters: ``[num_values]`` cluster of each value.
        confidence: Coverage, in (0, 1).

    >>> found = clustered_median([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], list("aabbccddee"))
    >>> found.estimate, found.low, found.high
    (2.0, 0.0, 4.0)
    """
    check_share(confidence=confidence)
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        raise ValueError("expected at least one value, got none")
    median = float(np.median(ordered))
    if len(set(clusters)) < 2:
        return Interval(median, float(ordered[0]), float(ordered[-1]))
    # half of what equals the median counts as below it
    below = (np.asarray(values, dtype=np.float64) < median) + 0.5 * (np.asarray(values) == median)
    (share,) = mean_intervals(below[None], clusters, confidence)
    shares = max(0.0, 0.5 - (share.estimate - share.low)), min(1.0, 0.5 + (share.high - share.estimate))
    low, high = np.quantile(ordered, shares, method="inverted_cdf")
    return Interval(median, float(min(low, median)), float(max(high, median)))
