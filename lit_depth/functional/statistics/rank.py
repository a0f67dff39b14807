"""Rank correlation with an interval, where one can be estimated."""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lit_depth.functional.statistics.clusters import Floats

_MAX_EXACT_PERMUTATION_LENGTH = 8
_MAX_RANDOM_PERMUTATION_LENGTH = 100
_NUM_RANDOM_PERMUTATIONS = 9999


class RankCorrelation(NamedTuple):
    """A rank correlation with its confidence limits; None stands for what cannot be estimated."""

    estimate: float | None
    low: float | None
    high: float | None


def spearman(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> tuple[RankCorrelation, float | None]:
    """Spearman's rank correlation with a confidence interval and a two-sided p-value; ties get mean ranks.

    The interval is Fisher's z with the standard error ``sqrt((1 + r^2 / 2) / (n - 3))`` (Bonett & Wright 2000,
    doi:10.1007/BF02294183). It is not estimable for n <= 3, nor at r = 1 or r = -1, where the formula knows no error.
    The p-value is an exact permutation test for n <= 8, of 9,999 random orders for up to 100 values of which half are
    tied, or which agree wholly, and else the t approximation of :func:`scipy.stats.spearmanr`.

    Args:
        x: ``[n]``.
        y: ``[n]``.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        The correlation, whose limits may be None, and the p-value. All are None where a side is constant or has fewer
        than two values: its ranks carry no order.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> correlation, p_value = spearman([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5])
        >>> print(f"{correlation.estimate:.3f} [{correlation.low:.3f}, {correlation.high:.3f}], p = {p_value:.3f}")
        0.829 [-0.127, 0.986], p = 0.058
        >>> spearman([1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1])
        (RankCorrelation(estimate=None, low=None, high=None), None)
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected two sequences of one length, got {list(first.shape)} and {list(second.shape)}")
    n = len(first)
    if n < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return RankCorrelation(None, None, None), None
    result = stats.spearmanr(first, second)
    estimate, p_value = float(np.clip(result.statistic, -1, 1)), float(result.pvalue)
    is_perfect = 1 - abs(estimate) < 1e-12
    # the approximation takes heavy ties, or no disorder at all, for certainty
    untidy = 2 * min(len(np.unique(first)), len(np.unique(second))) <= n or is_perfect
    if n <= _MAX_EXACT_PERMUTATION_LENGTH or (untidy and n <= _MAX_RANDOM_PERMUTATION_LENGTH):
        p_value = _permutation_p(first, second)
    if n <= 3 or is_perfect:
        return RankCorrelation(estimate, None, None), p_value
    margin = stats.norm.ppf((1 + confidence) / 2) * np.sqrt((1 + estimate**2 / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(estimate) + np.array([-margin, margin]))
    return RankCorrelation(estimate, float(low), float(high)), p_value


def _permutation_p(x: Floats, y: Floats) -> float:
    """Share of orders of y, all or 9,999 random ones, whose rank correlation with x is at least as strong."""
    first, second = stats.rankdata(x), stats.rankdata(y)
    first -= first.mean()
    second -= second.mean()
    strong = abs(second @ first) - 1e-9
    if len(x) <= _MAX_EXACT_PERMUTATION_LENGTH:
        return float(np.mean(np.abs(np.array(list(itertools.permutations(second))) @ first) >= strong))
    orders = np.random.default_rng(0).permuted(np.tile(second, (_NUM_RANDOM_PERMUTATIONS, 1)), axis=1)
    return float((1 + np.sum(np.abs(orders @ first) >= strong)) / (1 + _NUM_RANDOM_PERMUTATIONS))
