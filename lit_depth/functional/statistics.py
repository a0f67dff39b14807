"""Paired tests, cluster bootstrap intervals and rank correlation.

Every mask sees the same samples, so a difference between two masks is judged on per-sample differences. Several
questions can share one image and are then not independent: the image is the cluster, resampled or flipped whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

# 64 MB of float64 weights: one block for 2,000 resamples of 4,194 clusters, several blocks above that.
_MAX_WEIGHTS_PER_BLOCK = 2**23
_MAX_EXACT_SUMS = 2**14
_MAX_BINOMIALS = 32
_MAX_EXACT_PERMUTATION_LENGTH = 8
_MAX_RANDOM_PERMUTATION_LENGTH = 100
_NUM_RANDOM_PERMUTATIONS = 9999


class Interval(NamedTuple):
    """An estimate with its confidence limits."""

    estimate: float
    low: float
    high: float


def paired_interval(
    differences: ArrayLike,
    clusters: Sequence[str] | NDArray | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of per-sample differences with a cluster bootstrap interval; see :func:`paired_intervals`.

    Plain scores instead of differences give the interval of a mean.

    Example:
        >>> interval = paired_interval([0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
        >>> print(f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]")
        0.50 [0.10, 0.90]
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"expected differences of shape [num_samples], got {list(values.shape)}")
    return paired_intervals(values[None], clusters, confidence, num_resamples, seed)[0]


def paired_intervals(
    differences: ArrayLike,
    clusters: Sequence[str] | NDArray | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """Means of many rows of per-sample differences, all on the same bootstrap resamples of the clusters.

    The statistic is a ratio (sum of the differences over number of samples), so clusters may differ in size. Limits are
    BCa (bias corrected and accelerated; Efron 1987, doi:10.1080/01621459.1987.10478410), with the acceleration from
    the jackknife over clusters. The nominal level is expanded to that of a t interval with ``num_clusters - 1`` degrees
    of freedom (Hesterberg 2015, doi:10.1080/00031305.2015.1089789), because the plain bootstrap is too narrow for few
    clusters; the expansion is invisible from some hundred clusters on.

    Where BCa is undefined (the estimate lies outside all resampled values), the limits are plain percentiles. If all
    clusters have the same mean, resampling shows no spread and the interval is the estimate itself: read it as
    "no sample differed", not as certainty.

    Args:
        differences: ``[num_masks, num_samples]``, finite.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        confidence: Coverage of the interval, in (0, 1).
        num_resamples: Number of bootstrap resamples.
        seed: Seed of the resamples. The same seed and clustering give the same resamples in every call.

    Returns:
        One :class:`Interval` per row.

    Raises:
        ValueError: On a wrong shape, on values that are not finite, and on fewer than two clusters.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"expected differences of shape [num_masks, num_samples > 0], got {list(values.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence in (0, 1), got {confidence}")
    sums, sizes = cluster_sums(values, clusters)
    num_clusters = len(sizes)
    if num_clusters < 2:
        raise ValueError(f"expected at least 2 clusters (images) to estimate an interval, got {num_clusters}")
    estimates = sums.sum(axis=1) / sizes.sum()
    leave_one_out = (sums.sum(axis=1, keepdims=True) - sums) / (sizes.sum() - sizes)
    resampled = np.concatenate(
        [(sums @ weights.T) / (weights @ sizes) for weights in _weight_blocks(num_clusters, num_resamples, seed)],
        axis=1,
    )
    tail = stats.t.ppf((1 + confidence) / 2, num_clusters - 1) * np.sqrt(num_clusters / (num_clusters - 1))
    return [_bca(*row, tail) for row in zip(estimates, leave_one_out, resampled)]


def macro_intervals(
    tasks: Sequence[tuple[ArrayLike, Sequence[str] | NDArray | None]], confidence: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Means over tasks, each task with the same weight however many samples it has.

    Each task's differences are centred and weighted to what they contribute, so that resampling all clusters together
    shows the noise within tasks but not the differences between them: the tasks are the given ones, not a sample.
    Tasks count as independent: where they share images, the limits are too narrow.

    Args:
        tasks: For each task differences ``[num_masks, num_samples of the task]`` and the cluster of each sample.
        confidence: As for :func:`paired_intervals`, which gives the limits.
        seed: Seed of the resamples.

    Returns:
        One :class:`Interval` per mask.

    Example:
        >>> easy, hard = np.zeros((1, 4)), np.array([[1.0, 0.0] * 8])
        >>> print(f"{macro_intervals([(easy, None), (hard, None)])[0].estimate:.2f}")
        0.25
    """
    arrays = [np.asarray(values, dtype=np.float64) for values, _ in tasks]
    means = np.stack([values.mean(axis=1) for values in arrays])
    total = sum(values.shape[1] for values in arrays)
    noise = np.concatenate(
        [(values - mean[:, None]) * (total / (len(arrays) * values.shape[1])) for values, mean in zip(arrays, means)],
        axis=1,
    )
    names = [
        f"{task}/{cluster}"
        for task, (values, (_, clusters)) in enumerate(zip(arrays, tasks))
        for cluster in (range(values.shape[1]) if clusters is None else clusters)
    ]
    macro = means.mean(axis=0)
    intervals = paired_intervals(noise, names, confidence, seed=seed)
    return [Interval(float(m), float(m + i.low), float(m + i.high)) for m, i in zip(macro, intervals)]


def _bca(estimate: float, leave_one_out: Floats, resampled: Floats, tail: float) -> Interval:
    """BCa limits whose nominal tail quantiles are -tail and +tail on the normal scale."""
    deviations = leave_one_out.mean() - leave_one_out
    squares = np.sum(deviations**2)
    # Relative: sums of equal floats differ in the last bits, which is no spread.
    if squares <= 1e-24 * max(estimate**2, np.finfo(np.float64).tiny):
        return Interval(float(estimate), float(estimate), float(estimate))
    tolerance = 1e-12 * max(1.0, abs(estimate))
    below = np.mean(resampled < estimate - tolerance)
    # Half of the ties count as below: with 0/1 scores many resamples hit the estimate exactly.
    share = below + np.mean(np.abs(resampled - estimate) <= tolerance) / 2
    levels = stats.norm.cdf([-tail, tail])
    if 0 < share < 1:
        bias = stats.norm.ppf(share)
        acceleration = np.sum(deviations**3) / (6 * squares**1.5)
        shifted = bias + np.array([-tail, tail])
        denominator = 1 - acceleration * shifted
        if np.all(denominator > 0):
            levels = stats.norm.cdf(bias + shifted / denominator)
    low, high = np.quantile(resampled, levels)
    return Interval(float(estimate), float(low), float(high))


def cluster_sums(values: Floats, clusters: Sequence[str] | NDArray | None) -> tuple[Floats, Floats]:
    """Sums ``[num_masks, num_clusters]`` of values ``[num_masks, num_samples]`` by cluster, and sizes."""
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


def _weight_blocks(num_clusters: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """How often each resample draws each cluster, in blocks ``[rows, num_clusters]`` of bounded memory."""
    rows = max(1, _MAX_WEIGHTS_PER_BLOCK // num_clusters)
    for start in range(0, num_resamples, rows):
        yield _weights(num_clusters, min(rows, num_resamples - start), seed, start)


@lru_cache(maxsize=1)  # a run asks for hundreds of intervals on the same samples; drawing costs more than using
def _weights(num_clusters: int, rows: int, seed: int, start: int) -> Floats:
    draws = np.random.default_rng([seed, start]).integers(num_clusters, size=(rows, num_clusters))
    draws += num_clusters * np.arange(rows)[:, None]
    weights = np.bincount(draws.ravel(), minlength=rows * num_clusters).reshape(rows, num_clusters).astype(np.float64)
    weights.setflags(write=False)
    return weights


def sign_flip_test(
    differences: ArrayLike,
    clusters: Sequence[str] | NDArray | None = None,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of "the differences are symmetric about zero", flipping the sign of whole clusters.

    Clusters with the same absolute sum are interchangeable, so the distribution of the total is a sum over their
    distinct values of scaled binomials. It is enumerated exactly if it has at most 2^14 points (always so with up to 14
    clusters that differ, and for differences of 0/1 scores without clusters, where the test is McNemar's), and
    sampled otherwise with the add-one rule (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585): never 0.

    Args:
        differences: ``[num_samples]``, finite.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        num_permutations: Number of random sign patterns where the test is not exact.
        seed: Seed of the random sign patterns.

    Returns:
        p-value in (0, 1]; 1 if no cluster differs.

    Example:
        >>> round(sign_flip_test([1.0, 1.0, 1.0, 1.0, 1.0]), 6)
        0.0625
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"expected differences of shape [num_samples], got {list(values.shape)}")
    sums = cluster_sums(values[None], clusters)[0][0]
    # Rounded, because 0.9 - 0.6 and 0.6 - 0.3 are the same difference.
    sizes, counts = np.unique(np.round(np.abs(sums), 12), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    observed = abs(sums.sum()) - 1e-9 * sizes.sum()  # totals that are equal but for rounding count as at least as large
    if np.sum(np.log2(counts + 1)) <= np.log2(_MAX_EXACT_SUMS):
        totals, probabilities = np.zeros(1), np.ones(1)
        for size, count in zip(sizes, counts):
            positive = np.arange(count + 1)
            totals = np.add.outer(totals, size * (2 * positive - count)).ravel()
            probabilities = np.multiply.outer(probabilities, stats.binom.pmf(positive, count, 0.5)).ravel()
        return min(1.0, float(probabilities[np.abs(totals) >= observed].sum()))
    generator = np.random.default_rng(seed)
    if len(sizes) > _MAX_BINOMIALS:  # graded scores: hardly two clusters agree, so one sign each is cheaper
        sums = sums[sums != 0]
        rows = max(1, _MAX_WEIGHTS_PER_BLOCK // len(sums))
        totals = np.concatenate(
            [
                (2.0 * generator.integers(2, size=(min(rows, num_permutations - start), len(sums)), dtype=np.int8) - 1)
                @ sums
                for start in range(0, num_permutations, rows)
            ]
        )
    else:
        totals = np.zeros(num_permutations)
        for size, count in zip(sizes, counts):
            totals += size * (2 * generator.binomial(count, 0.5, size=num_permutations) - count)
    return float(1 + np.sum(np.abs(totals) >= observed)) / (1 + num_permutations)


def pairwise_sign_flip_tests(
    values: ArrayLike,
    clusters: Sequence[str] | NDArray | None = None,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> dict[tuple[int, int], float]:
    """Sign-flip tests of all pairs of rows, p-values corrected for testing all of them together.

    All pairs share the same random signs, and a pair is judged against the largest statistic among itself and the pairs
    with weaker evidence (step-down maxT: Westfall & Young 1993; Romano & Wolf 2005, doi:10.1198/016214504000000539). So
    the correction knows how strongly the pairs depend on one another, and the resolution of the p-values does not
    shrink with their number, as it would under Holm's.

    Args:
        values: ``[rows, num_samples]``, finite.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        num_permutations: Number of random sign patterns.
        seed: Seed of the sign patterns.

    Returns:
        ``{(a, b): adjusted p-value}`` for all a < b; 1 where no cluster differs.

    Example:
        >>> p_values = pairwise_sign_flip_tests([[1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0], [0.0] * 7, [0.0] * 7])
        >>> {pair: round(p, 2) for pair, p in p_values.items()}
        {(0, 1): 0.02, (0, 2): 0.02, (1, 2): 1.0}
    """
    sums, _ = cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    pairs = list(itertools.combinations(range(len(sums)), 2))
    if not pairs:
        return {}
    first, second = np.array(pairs).T
    # the sum of squares of a pair's differences does not change when signs flip
    squares = (sums**2).sum(axis=1)
    spread = np.sqrt(np.maximum(0.0, squares[first] + squares[second] - 2 * (sums @ sums.T)[first, second]))
    spread[spread <= 1e-9 * np.sqrt(squares.max(initial=1.0))] = np.inf
    means = sums.sum(axis=1)
    observed = np.abs(means[first] - means[second]) / spread
    order = np.argsort(-observed)
    exceed = np.zeros(len(pairs))
    generator = np.random.default_rng(seed)
    rows = max(1, _MAX_WEIGHTS_PER_BLOCK // max(len(pairs), sums.shape[1]))
    for start in range(0, num_permutations, rows):
        size = (min(rows, num_permutations - start), sums.shape[1])
        totals = (2.0 * generator.integers(2, size=size, dtype=np.int8) - 1) @ sums.T
        statistics = (np.abs(totals[:, first] - totals[:, second]) / spread)[:, order]
        largest = np.maximum.accumulate(statistics[:, ::-1], axis=1)[:, ::-1]
        exceed += (largest >= observed[order] - 1e-9).sum(axis=0)
    adjusted = np.empty(len(pairs))
    adjusted[order] = np.maximum.accumulate((1 + exceed) / (1 + num_permutations))
    return {pair: float(p) for pair, p in zip(pairs, adjusted)}


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided McNemar test of paired binary outcomes (McNemar 1947): a binomial test on the discordant pairs.

    Args:
        a: ``[num_samples]`` of 0 and 1 (or bool).
        b: The same samples under the other condition.

    Returns:
        p-value in (0, 1]; 1 without discordant pairs.

    Example:
        >>> mcnemar_exact([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
        0.0625
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected two sequences of one length, got {list(first.shape)} and {list(second.shape)}")
    if not np.all(np.isin([first, second], [0, 1])):
        raise ValueError("expected binary outcomes (0 or 1); for graded scores use sign_flip_test")
    only_first, only_second = int(np.sum(first > second)), int(np.sum(second > first))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def confidence_sequence(
    values: ArrayLike, confidence: float = 0.95, low: float = -1.0, high: float = 1.0, resolution: int = 1000
) -> tuple[Floats, Floats]:
    """Intervals for a mean that hold at all sample sizes at once: look after every sample, stop whenever you like.

    The probability that the mean leaves *any* of the intervals is at most ``1 - confidence`` (a bootstrap interval
    looked at n times has no such guarantee). A mean is ruled out when a gambler who bets on it being too low, or too
    high, has multiplied the stake by ``1 / (1 - confidence)``: the hedged capital process with predictable plug-in bets
    of Waudby-Smith & Ramdas 2024 (doi:10.1093/jrsssb/qkad009, equations 24 to 26).

    Args:
        values: ``[n]`` in ``[low, high]``, independent given what came before, such as paired differences of scores in
            [-1, 1]. Samples that share an image are not independent: give one value per image.
        confidence: Coverage, in (0, 1).
        low: Smallest possible value.
        high: Largest possible value.
        resolution: Steps between ``low`` and ``high`` at which means are tried; limits err outwards by up to a step.

    Returns:
        Lower and upper limits after each sample, both ``[n]``; they never widen.

    Raises:
        ValueError: If a value lies outside the bounds, or is not finite.

    Example:
        >>> lows, highs = confidence_sequence([0.5, 0.3, 0.4] * 40)
        >>> print(f"[{lows[9]:.2f}, {highs[9]:.2f}] after 10, [{lows[-1]:.2f}, {highs[-1]:.2f}] after 120")
        [-0.26, 0.69] after 10, [0.32, 0.44] after 120
    """
    observed = np.asarray(values, dtype=np.float64)
    if observed.ndim != 1:
        raise ValueError(f"expected values of shape [n], got {list(observed.shape)}")
    if not np.all((observed >= low) & (observed <= high)):  # false for NaN too
        raise ValueError(f"expected finite values in [{low}, {high}]")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence in (0, 1), got {confidence}")
    scaled = (observed - low) / (high - low)
    bets = _predictable_bets(scaled, 1 - confidence)
    means = np.linspace(0, 1, resolution + 1)
    # half of the stake on each side; a bet can lose at most half of what it has
    rising, falling = np.zeros_like(means), np.zeros_like(means)
    with np.errstate(divide="ignore"):
        most_rising, most_falling = 0.5 / means, 0.5 / (1 - means)
    threshold = np.log(2 / (1 - confidence))
    possible = np.ones(len(means), dtype=bool)
    limits = np.empty((2, len(scaled)))
    first, last = 0, resolution
    for index, (value, bet) in enumerate(zip(scaled, bets)):
        rising += np.log1p(np.minimum(bet, most_rising) * (value - means))
        falling += np.log1p(-np.minimum(bet, most_falling) * (value - means))
        # the larger of the halves is at most their sum, and its set of means is always an interval
        possible &= np.maximum(rising, falling) < threshold
        kept = np.flatnonzero(possible)
        if len(kept):  # otherwise what is left lies between two tried means, and the last interval holds it
            first, last = kept[0], kept[-1]
        limits[:, index] = first - 1, last + 1
    scale = (high - low) / resolution
    lows, highs = low + scale * limits.clip(0, resolution)
    return lows, highs


# shares of the largest possible bet, and of the stake that is laid so: from means that lie next to the bound to those
# of values that hardly vary
_BETS = ((0.05, 0.1), (0.1, 0.1), (0.2, 0.1), (0.35, 0.1), (0.5, 0.1), (0.7, 0.1), (0.95, 0.4))


def log_evidence(values: ArrayLike, bounds: ArrayLike = 0.0) -> Floats:
    """Evidence, value by value, that values in [-1, 1] come from means above their bounds.

    The logarithm of the capital of a gambler who bets on it from 1, the stake spread over bets of several sizes, for
    many rows at once. If each value, given those before it, has a mean of at most its bound, the probability that the
    evidence *ever* reaches ``log(1 / alpha)`` is at most ``alpha`` (Ville's inequality; Waudby-Smith & Ramdas 2024,
    doi:10.1093/jrsssb/qkad009). It falls with the bound: whoever errs at one bound errs at all smaller ones, and
    several bounds need no correction.

    Args:
        values: ``[..., n]`` in [-1, 1].
        bounds: Of any shape that broadcasts against the values; that of a value may depend on those before it. A value
            with a bound below -1 is infinite evidence: no such mean exists.

    Returns:
        ``[..., n]``.

    Raises:
        ValueError: If a value lies outside [-1, 1] or is not finite.

    Example:
        >>> evidence = log_evidence([1.0, 0.0, 1.0, 1.0] * 10)
        >>> int(np.argmax(evidence >= np.log(1 / 0.001))) + 1  # values until it is settled at 0.001
        16
    """
    observed = np.asarray(values, dtype=np.float64)
    if not np.all(np.abs(observed) <= 1):  # false for NaN too
        raise ValueError("expected finite values in [-1.0, 1.0]")
    room = 1 + np.asarray(bounds, dtype=np.float64)  # what a bet of 1 can lose
    possible = room > 0
    gains = (1 + observed) / np.where(possible, room, 1.0) - 1
    capital = np.full(gains.shape, -np.inf)
    for share, stake in _BETS:
        capital = np.logaddexp(capital, np.log(stake) + np.cumsum(np.log1p(share * gains), axis=-1))
    return np.where(np.logical_and.accumulate(possible & np.isfinite(gains), axis=-1), capital, np.inf)


def _predictable_bets(values: Floats, alpha: float) -> Floats:
    """Size of each bet ``[..., n]``, from values before it: sqrt(2 log(2 / alpha) / (variance * t * log(t + 1)))."""
    t = np.arange(1, values.shape[-1] + 1)
    means = (0.5 + np.cumsum(values, axis=-1)) / (t + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2, axis=-1)) / (t + 1)
    before = np.concatenate([np.full_like(variances[..., :1], 0.25), variances[..., :-1]], axis=-1)
    return np.sqrt(2 * np.log(2 / alpha) / (before * t * np.log(t + 1)))


def holm(p_values: ArrayLike) -> Floats:
    """p-values adjusted for multiple comparisons by Holm's step-down method (Holm 1979), in the order given.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(4).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"expected a sequence of p-values in [0, 1], got {p_values!r}")
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * values[order]))
    return adjusted


def spearman(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> tuple[Interval, float]:
    """Spearman's rank correlation with a confidence interval and a two-sided p-value; ties get mean ranks.

    The interval is Fisher's z with the standard error ``sqrt((1 + r^2 / 2) / (n - 3))`` (Bonett & Wright 2000,
    doi:10.1007/BF02294183). It is [-1, 1] for n <= 3 and shrinks to the estimate at r = 1 or r = -1. The p-value is
    an exact permutation test for n <= 8, of 9,999 random orders for up to 100 values of which half are tied, or which
    agree wholly, and else the t approximation of :func:`scipy.stats.spearmanr`.

    Args:
        x: ``[n]``, not constant.
        y: ``[n]``, not constant.
        confidence: Coverage of the interval, in (0, 1).

    Raises:
        ValueError: If the lengths differ, or if a side is constant: its ranks carry no order.

    Example:
        >>> interval, p_value = spearman([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5])
        >>> print(f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}], p = {p_value:.3f}")
        0.829 [-0.127, 0.986], p = 0.058
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected two sequences of one length, got {list(first.shape)} and {list(second.shape)}")
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        raise ValueError(f"expected at least 2 values that are not all equal on either side, got {len(first)} values")
    result = stats.spearmanr(first, second)
    estimate, n = float(np.clip(result.statistic, -1, 1)), len(first)
    p_value = float(result.pvalue)
    # the approximation takes heavy ties, or no disorder at all, for certainty
    untidy = 2 * min(len(np.unique(first)), len(np.unique(second))) <= n or 1 - abs(estimate) < 1e-12
    if n <= _MAX_EXACT_PERMUTATION_LENGTH or (untidy and n <= _MAX_RANDOM_PERMUTATION_LENGTH):
        p_value = _permutation_p(first, second)
    if n <= 3:
        return Interval(estimate, -1.0, 1.0), p_value
    if 1 - abs(estimate) < 1e-12:
        return Interval(estimate, estimate, estimate), p_value
    margin = stats.norm.ppf((1 + confidence) / 2) * np.sqrt((1 + estimate**2 / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(estimate) + np.array([-margin, margin]))
    return Interval(estimate, float(low), float(high)), p_value


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
