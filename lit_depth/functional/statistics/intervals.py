"""Intervals of means that cover, are never without width, and exclude 0 exactly where the sign-flip test rejects it.

Every mask sees the same samples, so a difference between two masks is judged on per-sample differences. Several
questions can share one image and are then not independent: the image is the cluster, the unit of every interval.

Most differences between a model and the same model without one block are exactly 0, and a Student interval of a few
others among them is too narrow: it rests on a variance that the sample hardly shows. Scores of a known range leave room
for what was not seen, which is what `paired_intervals` adds; see ``docs/statistics.md`` for the simulated coverage.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lit_depth.functional.arguments import check_share
from lit_depth.functional.statistics.clusters import ClusterSums, Floats, Labels, sum_clusters
from lit_depth.functional.statistics.paired_tests import flip_clusters, holm

# the limit nearest to 0 that excludes it: stands for an interval that is open at 0
_ABOVE_ZERO = float(np.finfo(np.float64).tiny)
# p-values of a family must be able to pass its level by this factor, if they are sampled
_RESOLUTION = 5
# share of 1 - confidence that the far limit of differences of one sign may miss where 0 is rejected; the near limit
# misses the rest (exact enumeration: docs/statistics.md)
_FAR_SHARE = 0.8


class Interval(NamedTuple):
    """An estimate with its confidence limits."""

    estimate: float
    low: float
    high: float


class FamilyRow(NamedTuple):
    """One row of a family of differences.

    Attributes:
        interval: Mean difference with the interval of the level asked for, as if no other row were looked at; it
            excludes 0 if and only if ``p_value < 1 - confidence``.
        p_value: Sign-flip test of this row alone.
        p_holm: The same, corrected for testing all rows.
        simultaneous: Interval that holds together with those of all other rows; it excludes 0 if and only if
            ``p_holm < 1 - confidence``.
    """

    interval: Interval
    p_value: float
    p_holm: float
    simultaneous: Interval


def paired_intervals(
    differences: ArrayLike,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    *,
    score_range: ArrayLike | None = 1.0,
    scale: float = 1.0,
    tasks: Labels | None = None,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> list[Interval]:
    """Means of many rows of per-sample differences, each with an interval of its own.

    The statistic is a ratio (sum of the differences over number of samples), so clusters may differ in size. With k
    clusters of equal size and differences x within [-1, 1] the limits are those of k + 2 units, with a sum of squares
    that is larger by 1 + s^2:

    - the two units are half a loss and half a gain of the largest possible size, which the sample may have missed, and
      one without difference (Agresti & Min 2005, doi:10.1002/sim.1781);
    - s = sum(x^3) / sum(x^2), one difference more of the kind that prevails. Where all differences are losses, s = 1,
      and the variance is that of Bonett & Price 2012 (doi:10.3102/1076998611411915).

    Where all differences have one sign, or there is none, the limit on their side is at least Clopper and Pearson's: of
    differences of size s, as many as give the mean, with a tail of ``1 - confidence`` where 0 is not rejected (without
    any difference nearly 3 / k, the rule of three), and of 0.8 of it where it is.

    Of clusters that differ in size, k is Kish's effective number (total size squared over sum of squared sizes), and
    the half loss and half gain are those of a whole cluster. Only the part of the variance that was estimated from the
    sample costs degrees of freedom of Student's t (Satterthwaite 1946, doi:10.2307/3002019). Where no range is known,
    limits are Student's, with s about the mean.

    The test decides about 0: the interval is extended to 0 where a sign-flip test of these clusters and this seed
    does not reject at the level ``1 - confidence``, and ends at the smallest number beside 0 where it does.

    Args:
        differences: ``[num_rows, num_samples]``, finite.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        confidence: Coverage of each interval, in (0, 1).
        score_range: Largest less smallest possible score, so that differences lie in ``[-score_range, score_range]``;
            per row ``[num_rows, 1]`` or per sample ``[num_samples]`` too. None if it is not known, as of
            log-probabilities and of log ratios of times.
        scale: Of an unknown range: what counts as the largest difference where all differences are equal, so that no
            spread is seen.
        tasks: ``[num_samples]`` task of each sample: the mean is over tasks, each of the same weight. Its distance to a
            limit is the root of the squared distances of all tasks' own limits, over the number of tasks (Zou & Donner
            2008, doi:10.1002/sim.3095).
        num_permutations: Number of random sign patterns where the test is not exact.
        seed: Seed of the random sign patterns.

    Returns:
        One :class:`Interval` per row.

    Raises:
        ValueError: On a wrong shape, on values that are not finite or beyond the range, and on fewer than two clusters.
    """
    check_share(confidence=confidence)
    sums = sum_clusters(differences, clusters, tasks, score_range)
    rejected = flip_clusters(sums.values, num_permutations, seed) < 1 - confidence
    return _dual_intervals(sums, confidence, rejected, scale)


def paired_comparisons(
    differences: ArrayLike,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    *,
    score_range: ArrayLike | None = 1.0,
    scale: float = 1.0,
    tasks: Labels | None = None,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> list[FamilyRow]:
    """Rows of differences as one family: intervals and tests of each row, and of all rows together.

    Simultaneous intervals have the level of Bonferroni, and 0 is in them if and only if Holm's test does not reject it
    (Strassburger & Bretz 2008, doi:10.1002/sim.3338; Guilbaud 2008, doi:10.1002/bimj.200710449): the p-values are
    computed once, and every limit at 0 follows from them.

    Args:
        differences: ``[num_rows, num_samples]``; for this and all others see :func:`paired_intervals`.
        num_permutations: At least this many; more for families so large that no sampled p-value could pass.

    Example:
        >>> losses = np.zeros((2, 256))
        >>> losses[0, :9] = losses[1, :6] = 1.0
        >>> for interval, p, p_holm, together in paired_comparisons(losses):
        ...     print(f"p {p:.3f} [{interval.low:.3f}, {interval.high:.3f}], ", end="")
        ...     print(f"together p {p_holm:.3f} [{together.low:.3f}, {together.high:.3f}]")
        p 0.004 [0.010, 0.062], together p 0.008 [0.006, 0.067]
        p 0.031 [0.002, 0.047], together p 0.031 [0.000, 0.052]
    """
    check_share(confidence=confidence)
    return _family([sum_clusters(differences, clusters, tasks, score_range)], confidence, scale, num_permutations, seed)


def separate_comparisons(
    differences: Sequence[ArrayLike],
    clusters: Sequence[Labels | None],
    confidence: float = 0.95,
    *,
    score_ranges: Sequence[float | None],
    num_permutations: int = 10_000,
    seed: int = 0,
) -> list[FamilyRow]:
    """Differences that each have samples of their own, as those of several tasks, as one family.

    Args:
        differences: Of each row ``[num_samples of the row]``.
        clusters: Of each row; for this and all others see :func:`paired_comparisons`.

    Example:
        >>> rows = separate_comparisons([[1.0] * 9 + [0.0] * 247, [1.0] * 6], [None, None], score_ranges=[1.0, 1.0])
        >>> [(round(row.p_value, 3), round(row.p_holm, 3)) for row in rows]
        [(0.004, 0.008), (0.031, 0.031)]
    """
    check_share(confidence=confidence)
    parts = [
        sum_clusters(np.asarray(row, dtype=np.float64)[None], labels, None, score_range)
        for row, labels, score_range in zip(differences, clusters, score_ranges, strict=True)
    ]
    return _family(parts, confidence, 1.0, num_permutations, seed) if parts else []


def _family(
    parts: Sequence[ClusterSums], confidence: float, scale: float, num_permutations: int, seed: int
) -> list[FamilyRow]:
    """Rows of all parts as one family; the rows of a part share their samples."""
    rows, alpha = sum(len(part.values) for part in parts), 1 - confidence
    draws = max(num_permutations, int(_RESOLUTION * rows / alpha))
    p_values = np.concatenate([flip_clusters(part.values, draws, seed) for part in parts])
    adjusted = holm(p_values)
    single: list[Interval] = []
    together: list[Interval] = []
    for part in parts:
        own = slice(len(single), len(single) + len(part.values))
        single += _dual_intervals(part, confidence, p_values[own] < alpha, scale)
        together += _dual_intervals(part, 1 - alpha / max(rows, 1), adjusted[own] < alpha, scale)
    return [FamilyRow(*row) for row in zip(single, p_values.tolist(), adjusted.tolist(), together)]


def mean_intervals(
    scores: ArrayLike,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    *,
    score_range: ArrayLike | None = 1.0,
    scale: float = 1.0,
    tasks: Labels | None = None,
) -> list[Interval]:
    """Mean scores of many rows, each with an interval; nothing is tested.

    Of independent scores 0 and 1 the limits are exact (Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404). Else they
    are Clopper and Pearson's for the number of independent 0/1 scores that would show the same variance (Korn &
    Graubard 1998, Survey Methodology 24, 193-201). The variance is that of the clusters and one more, half of it 0 and
    half the largest score: never 0, and exactly binomial where the scores are.

    Args:
        scores: ``[num_rows, num_samples]`` in ``[0, score_range]``.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        confidence: Coverage, in (0, 1).
        score_range: Largest possible score, the smallest being 0; as for :func:`paired_intervals`. None if it is not
            known: limits are then Student's.
        scale: As for :func:`paired_intervals`.
        tasks: As for :func:`paired_intervals`.

    Returns:
        One :class:`Interval` per row.

    Raises:
        ValueError: As for :func:`paired_intervals`, and on scores below 0 where the range is known.

    Example:
        >>> (interval,) = mean_intervals([[1.0, 1.0, 1.0]])
        >>> print(f"[{interval.low:.3f}, {interval.high:.3f}]")  # 0.025 ** (1 / 3) = 0.292
        [0.292, 1.000]
    """
    check_share(confidence=confidence)
    sums = sum_clusters(scores, clusters, tasks, score_range)
    if score_range is None:
        return _intervals(sums.means, *_limits_over_tasks(sums, lambda task: _student_limits(task, confidence, scale)))
    if np.any(np.asarray(scores) < 0):
        raise ValueError(f"expected scores of at least 0, got {float(np.min(scores)):g}")
    return _intervals(sums.means, *_limits_over_tasks(sums, lambda task: _effective_binomial_limits(task, confidence)))


def _intervals(estimates: Floats, lows: Floats, highs: Floats) -> list[Interval]:
    return [Interval(*row) for row in zip(estimates.tolist(), lows.tolist(), highs.tolist())]


def _dual_intervals(sums: ClusterSums, confidence: float, rejected: NDArray[np.bool_], scale: float) -> list[Interval]:
    """Limits of differences, of which 0 is one or within if and only if it was not rejected."""
    estimates = sums.means
    bounded = bool(sums.bounds.any())
    lows, highs = _limits_over_tasks(
        sums,
        lambda task: (
            _bounded_limits(task, confidence, rejected) if bounded else _student_limits(task, confidence, scale)
        ),
    )
    lows = np.where(rejected & (estimates > 0), np.maximum(lows, _ABOVE_ZERO), lows)
    highs = np.where(rejected & (estimates < 0), np.minimum(highs, -_ABOVE_ZERO), highs)
    return _intervals(
        estimates, np.where(rejected, lows, np.minimum(lows, 0.0)), np.where(rejected, highs, np.maximum(highs, 0.0))
    )


def _limits_over_tasks(
    sums: ClusterSums, limits: Callable[[ClusterSums], tuple[Floats, Floats]]
) -> tuple[Floats, Floats]:
    """Limits of means over tasks, from the distances of each task's own limits (Zou & Donner 2008)."""
    parts = sums.by_task
    if len(parts) == 1:
        return limits(sums)
    estimates, each = np.stack([part.means for part in parts]), np.stack([limits(part) for part in parts])
    lows, highs = each[:, 0], each[:, 1]
    below = np.sqrt(((estimates - lows) ** 2).sum(axis=0)) / len(parts)
    above = np.sqrt(((highs - estimates) ** 2).sum(axis=0)) / len(parts)
    # never beyond the mean of the limits, except by rounding
    return np.maximum(sums.means - below, lows.mean(axis=0)), np.minimum(sums.means + above, highs.mean(axis=0))


def _quantile(confidence: float, degrees: Floats | float) -> Floats:
    """Of Student's t, two-sided; infinite degrees of freedom make it normal."""
    return stats.t.ppf((1 + confidence) / 2, degrees)


def _prevailing(values: Floats) -> Floats:
    """sum(x^3) / sum(x^2) of each row, 0 where nothing differs."""
    squares = (values**2).sum(axis=1)
    return np.divide((values**3).sum(axis=1), squares, out=np.zeros_like(squares), where=squares > 0)


def _bounded_limits(sums: ClusterSums, confidence: float, rejected: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Limits of differences of known range, see `paired_intervals`; all in units of the mean."""
    total = sums.sizes.sum()
    largest = sums.bounds / total
    most = largest.sum(axis=1)
    unit = (largest**2).sum(axis=1) / most  # what a whole cluster of the largest difference adds to the mean
    count = most / unit
    shrink = count / (count + 2)
    estimates = sums.means
    estimated = (sums.residuals**2).sum(axis=1)
    variances = estimated + unit**2 + _prevailing(sums.values / total) ** 2 + 2 * estimates**2 / (count * (count + 2))
    degrees = np.maximum(count - 1, 1e-3)
    # where no spread was seen, all variance is added and none estimated: the degrees of freedom are infinite
    with np.errstate(divide="ignore"):
        degrees = degrees * (variances / estimated) ** 2
    margins = _quantile(confidence, degrees) * shrink * np.sqrt(variances)
    far = _far_distances(sums, confidence, rejected)
    lows = np.minimum(shrink * estimates - margins, np.where((sums.values <= 0).all(axis=1), -far, estimates))
    highs = np.maximum(shrink * estimates + margins, np.where((sums.values >= 0).all(axis=1), far, estimates))
    return np.minimum(np.maximum(lows, -most), estimates), np.maximum(np.minimum(highs, most), estimates)


def _far_distances(sums: ClusterSums, confidence: float, rejected: NDArray[np.bool_]) -> Floats:
    """Of the limit away from 0 where all differences have one sign: Clopper and Pearson's for as many of one size."""
    largest = sums.bounds / sums.sizes.sum()
    unit = (largest**2).sum(axis=1) / largest.sum(axis=1)
    count = largest.sum(axis=1) / unit
    sizes = np.abs(_prevailing(sums.values / sums.sizes.sum()))
    sizes = np.where(sizes > 0, sizes, unit)
    # a little below the count: the beta distribution needs parameters above 0
    seen = np.minimum(np.abs(sums.means) / sizes, count * (1 - 1e-12))
    tail = (1 - confidence) * np.where(rejected, _FAR_SHARE, 1.0)
    return sizes * count * stats.beta.ppf(1 - tail, seen + 1, count - seen)


def _student_limits(sums: ClusterSums, confidence: float, scale: float) -> tuple[Floats, Floats]:
    """Limits of values of unknown range, see `paired_intervals`."""
    shares = sums.sizes / sums.sizes.sum()
    count = 1 / float((shares**2).sum())
    residuals, estimates = sums.residuals, sums.means
    squares = (residuals**2).sum(axis=1) * len(shares) / (len(shares) - 1)
    # relative: sums of equal floats differ in the last bits, which is no spread
    flat = squares <= 1e-24 * ((sums.values / sums.sizes.sum()) ** 2).sum(axis=1)
    margins = _quantile(confidence, max(count - 1, 1e-3)) * np.sqrt(squares + _prevailing(residuals) ** 2)
    margins = np.where(flat, scale * (1 - (1 - confidence) ** (1 / count)), margins)
    return estimates - margins, estimates + margins


def _effective_binomial_limits(sums: ClusterSums, confidence: float) -> tuple[Floats, Floats]:
    """Limits of mean scores in a known range, see `mean_intervals`."""
    largest = sums.bounds / sums.sizes.sum()
    most = largest.sum(axis=1)
    count = most**2 / (largest**2).sum(axis=1)
    share = np.clip(sums.means / most, 0.0, 1.0)
    estimated = count**2 * ((sums.residuals / most[:, None]) ** 2).sum(axis=1)
    centre = (count * share + 0.5) / (count + 1)
    squares = estimated + (centre**2 + (1 - centre) ** 2) / 2 + count * (share - centre) ** 2
    binomial = (count + 1) * centre * (1 - centre)
    with np.errstate(divide="ignore"):
        degrees = np.maximum(count - 1, 1e-3) * (squares / estimated) ** 2
    lost = (stats.norm.ppf((1 + confidence) / 2) / _quantile(confidence, degrees)) ** 2
    effective = np.maximum(((count + 1) * binomial / squares - 1) * lost, 1e-6)
    # clusters that are each wholly right or wrong are a binomial sample, whose variance is not estimated
    effective = np.where(np.isclose(squares, binomial, rtol=1e-9), count, effective)
    hits, misses = effective * share, effective * (1 - share)
    tail = (1 - confidence) / 2
    some_hit, some_miss = share > 1e-12, share < 1 - 1e-12
    lows = np.where(some_hit, stats.beta.ppf(tail, np.where(some_hit, hits, 1.0), misses + 1), 0.0)
    highs = np.where(some_miss, stats.beta.ppf(1 - tail, hits + 1, np.where(some_miss, misses, 1.0)), 1.0)
    return most * lows, most * highs
