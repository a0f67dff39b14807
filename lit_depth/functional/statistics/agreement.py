"""Rank agreement of two noisy measurements: do two splits, or two tasks, order the blocks alike?

Importance is estimated from samples, and noise in either measurement makes ranks disagree: the rank correlation of two
noisy orders is below that of the orders themselves, the more so the fewer samples there are. What is asked for is the
correlation that measurements without noise would show.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.linalg import block_diag

from lit_depth.functional.arguments import check_share
from lit_depth.functional.statistics import Floats, Interval, cluster_covariance, cluster_sums, spearman

# dense near +-1, where they are told apart best
_CORRELATIONS = np.tanh(np.linspace(-4.5, 4.5, 61))
_NUM_DRAWS = 4000
_NUM_TRUTHS = 20
_GROWTH = 2 ** np.arange(0, 11)
# variance of what counts as exact, beside a spread of about 1
_EXACT = 1e-9


class Agreement(NamedTuple):
    """How two measurements order the same blocks.

    Attributes:
        spearman: Rank correlation of the two measurements as they are, noise and all.
        p_value: Of no correlation at all, two-sided; see :func:`lit_depth.functional.statistics.spearman`.
        low: Lower limit for the rank correlation that measurements without noise would show.
        high: Upper limit.
        factor: How many times as many samples would put the lower limit above the threshold with a probability of one
            half or more, if the two orders agree as closely as these samples allow; 1 = these samples do; None = no
            such number up to 1024.
    """

    spearman: float
    p_value: float
    low: float
    high: float
    factor: int | None


def rank_agreement(
    first: ArrayLike,
    second: ArrayLike,
    first_clusters: Sequence[str] | None = None,
    second_clusters: Sequence[str] | None = None,
    *,
    threshold: float = 0.9,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Rank correlation between two measurements of the same blocks on different samples.

    The limits come from a normal hierarchical model (empirical Bayes; Morris 1983, doi:10.1080/01621459.1983.10477920):
    the pair of true drops of each block is drawn from a bivariate normal with some correlation, and is measured with
    the noise that the samples show (covariance between blocks included, clustered by image). Every correlation that a
    likelihood-ratio test does not reject gives a posterior of the noise-free rank correlation; the limits hold the
    central part of all of them. Where noise hides all order they are wide, and they close as samples grow. The two
    measurements count as independent.

    Args:
        first: Per-sample drops ``[num_blocks, num_samples]`` of one measurement.
        second: Per-sample drops ``[num_blocks, num_samples]`` of the other, on samples of its own.
        first_clusters: Cluster (image) of each sample of ``first``; None = each its own.
        second_clusters: The same for ``second``.
        threshold: Correlation that counts as agreement.
        confidence: Probability between the limits.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are not as many blocks on either side, or fewer than 4, if the drops of one side are all
            equal or some are not finite, or if a side has fewer than 4 clusters.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> drops = np.arange(12.0)[:, None]
        >>> found = rank_agreement(drops + rng.normal(size=(12, 400)), drops + rng.normal(size=(12, 400)))
        >>> found.spearman, found.low > 0.9, found.factor
        (1.0, True, 1)
    """
    sides = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    num_blocks = len(sides[0])
    if len(sides[1]) != num_blocks or num_blocks < 4:
        raise ValueError(f"expected the same 4 or more blocks twice, got {num_blocks} and {len(sides[1])}")
    if not -1 <= threshold < 1:
        raise ValueError(f"expected a threshold in [-1, 1), got {threshold}")
    check_share(confidence=confidence)
    means = np.stack([values.mean(axis=1) for values in sides])
    observed, p_value = _observed(*means)
    noise, degrees = _noises(zip(sides, (first_clusters, second_clusters)))
    rng = np.random.default_rng(seed)
    posterior = _Posterior(means, block_diag(*noise), confidence, degrees)
    low, high = posterior.limits(_NUM_DRAWS, rng)
    factor = None
    if low >= threshold:
        factor = 1
    elif high >= threshold:
        factor = _needed(posterior, means, noise, threshold, confidence, degrees, rng)
    return Agreement(observed, p_value, low, high, factor)


def rank_agreement_with(
    scores: ArrayLike,
    drops: ArrayLike,
    clusters: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, float]:
    """Rank correlation of scores that count as exact with the noisy drops of the same blocks.

    The limits are those of `rank_agreement` for one measurement instead of two: they cover the noise that the samples
    put on the drops, and hold the correlation of these scores with the drops that all possible samples would give. Only
    the order of the scores matters: the model sees their normal scores (van der Waerden). Scores that were measured on
    the same samples have noise of their own, which is not in the limits.

    Args:
        scores: One score per block ``[num_blocks]``, not all equal.
        drops: Per-sample drops ``[num_blocks, num_samples]``.
        clusters: Cluster (image) of each sample; None = each its own.
        confidence: Probability between the limits.
        seed: Seed of the draws.

    Returns:
        Spearman's correlation as measured, with the limits for that without noise (which may not hold the measured one:
        noise hides order), and the p-value of no correlation.

    Raises:
        ValueError: As `rank_agreement`.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=(12, 400))
        >>> interval, _ = rank_agreement_with(np.arange(12.0) ** 3, np.arange(12.0)[:, None] + noise)
        >>> interval.estimate, interval.low > 0.9
        (1.0, True)
    """
    known, measured = np.asarray(scores, dtype=np.float64), np.asarray(drops, dtype=np.float64)
    if measured.ndim != 2 or known.shape != measured.shape[:1] or len(known) < 4:
        raise ValueError(
            f"expected scores [num_blocks >= 4] and drops [num_blocks, num_samples], "
            f"got {list(known.shape)} and {list(measured.shape)}"
        )
    check_share(confidence=confidence)
    means = measured.mean(axis=1)
    observed, p_value = _observed(known, means)
    noise, degrees = _noises([(measured, clusters)])
    normal = stats.norm.ppf(stats.rankdata(known) / (len(known) + 1))
    exact = _EXACT * np.eye(len(known))
    posterior = _Posterior(np.stack([means, normal]), block_diag(*noise, exact), confidence, degrees)
    low, high = posterior.limits(_NUM_DRAWS, np.random.default_rng(seed))
    return Interval(observed, low, high), p_value


def rank_agreement_on_same_samples(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, float]:
    """Rank correlation between two measurements on the same samples, such as of masks before and after healing.

    As `rank_agreement`, but for the noise of the two measurements, which is that of the same samples: its covariance
    within and between them is estimated together. Percentiles over resampled images are no limits for this: each
    resampling adds its own noise to that of the samples, which hides more order, and where masks lie close together
    they stay below the correlation.

    Args:
        first: Per-sample drops ``[num_masks, num_samples]`` of one measurement.
        second: Those of the other on the same samples.
        clusters: Cluster (image) of each sample; None = each its own.
        confidence: Probability between the limits.
        seed: Seed of the draws.

    Returns:
        Spearman's correlation as measured, with the limits for that without noise (which may not hold the measured
        one), and the p-value of no correlation.

    Raises:
        ValueError: As `rank_agreement`, and if the sides have other samples.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=(2, 8, 400))
        >>> interval, _ = rank_agreement_on_same_samples(*(np.arange(8.0)[:, None] + noise))
        >>> interval.estimate, interval.low > 0.9
        (1.0, True)
    """
    sides = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if sides[0].ndim != 2 or sides[0].shape != sides[1].shape or len(sides[0]) < 4:
        raise ValueError(
            f"expected drops [num_masks >= 4, num_samples] twice, got {list(sides[0].shape)} and {list(sides[1].shape)}"
        )
    check_share(confidence=confidence)
    means = np.stack([values.mean(axis=1) for values in sides])
    # equal means stay ties, whatever the order of their sums
    observed, p_value = _observed(*means.round(12))
    (noise,), degrees = _noises([(np.concatenate(sides), clusters)])
    low, high = _Posterior(means, noise, confidence, degrees).limits(_NUM_DRAWS, np.random.default_rng(seed))
    return Interval(observed, low, high), p_value


def _observed(first: Floats, second: Floats) -> tuple[float, float]:
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("expected finite scores and drops, got some that are NaN or infinite")
    correlation, p_value = spearman(first, second)
    if correlation.estimate is None or p_value is None:
        raise ValueError("expected values that are not all equal on either side, got one side without any order")
    return correlation.estimate, p_value


def _noises(sides: Iterable[tuple[Floats, Sequence[str] | None]]) -> tuple[list[Floats], int]:
    """Covariance of the means of each side, and the degrees of freedom of the less certain one."""
    found = [_noise(values, clusters) for values, clusters in sides]
    fewest = min(count for _, count in found)
    if fewest < 4:
        raise ValueError(f"expected at least 4 clusters (images) on either side, got {fewest}")
    degrees = fewest - 1
    # variances that are estimated themselves: as for Student's t
    return [covariance * (degrees / max(degrees - 2, 1)) for covariance, _ in found], degrees


def _noise(values: Floats, clusters: Sequence[str] | None) -> tuple[Floats, int]:
    """Covariance of the means, and how many clusters it was estimated from.

    Correlations between blocks are shrunk towards none as far as few clusters leave them open (Schaefer & Strimmer
    2005, doi:10.2202/1544-6115.1175): as they are, they would pretend to know some contrasts of blocks exactly.
    """
    covariance = cluster_covariance(values, clusters)
    sums, sizes = cluster_sums(values, clusters)
    count = len(sizes)
    # no difference seen is not certainty: as if one more image had differed in each block
    largest = np.abs(sums).max(axis=1)
    largest[largest == 0] = largest[largest > 0].min()
    variances = covariance.diagonal() + (largest / sizes.sum()) ** 2
    deviations = sums - sums.sum(axis=1, keepdims=True) / sizes.sum() * sizes
    scale = np.sqrt((deviations**2).mean(axis=1, keepdims=True))
    unit = np.divide(deviations, scale, out=np.zeros_like(deviations), where=scale > 0)
    correlations = unit @ unit.T / count
    errors = ((unit**2) @ (unit**2).T / count - correlations**2) / (count - 1)
    off = ~np.eye(len(values), dtype=bool)
    share = min(1.0, errors[off].sum() / max(float((correlations[off] ** 2).sum()), np.finfo(np.float64).tiny))
    shrunk = np.where(off, (1 - share) * correlations, 1.0) * np.sqrt(np.outer(variances, variances))
    return shrunk, count


class _Posterior:
    """Posterior of the true drops of both sides, for every correlation that is not rejected."""

    def __init__(self, means: Floats, noise: Floats, confidence: float, degrees: int) -> None:
        num_blocks = means.shape[1]
        own_noise = [noise[:num_blocks, :num_blocks], noise[num_blocks:, num_blocks:]]
        deviations = means - np.median(means, axis=1, keepdims=True)
        # noise that all blocks share moves no rank: only what tells them apart counts
        contrasts = np.array([np.trace(c) / num_blocks - c.mean() for c in own_noise])
        # spread of the bulk of the blocks; a block that stands out must not set the scale of the others
        width = np.maximum(stats.median_abs_deviation(means, axis=1, scale="normal"), np.sqrt(contrasts))
        typical = np.abs(deviations) <= 3 * width[:, None]
        spread = np.array([np.var(side[near], ddof=1) for side, near in zip(means, typical)])
        bulk = np.maximum(spread - contrasts, 0.01 * contrasts + np.finfo(np.float64).tiny)
        # ... and is hardly moved towards them
        own = deviations**2 - np.stack([c.diagonal() for c in own_noise])
        self.scales = np.sqrt(np.maximum(bulk[:, None], own / 4)).ravel()
        self.noise = noise  # [2 * num_blocks, 2 * num_blocks]
        self.measured = deviations.ravel()
        self.tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        # ... nor say how alike the others are
        self.rows = np.flatnonzero(np.tile(typical.all(axis=0), 2))
        logs = np.array([self._log_likelihood(correlation) for correlation in _CORRELATIONS])
        self.correlations = _CORRELATIONS[2 * (logs.max() - logs) <= stats.f.ppf(confidence, 1, degrees)]

    def _prior(self, correlation: float) -> Floats:
        pairs = np.kron(np.array([[1.0, correlation], [correlation, 1.0]]), np.eye(len(self.scales) // 2))
        return pairs * np.outer(self.scales, self.scales)

    def _log_likelihood(self, correlation: float) -> float:
        covariance = (self._prior(correlation) + self.noise)[np.ix_(self.rows, self.rows)]
        factor = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(factor, self.measured[self.rows])
        return float(-0.5 * whitened @ whitened - np.log(factor.diagonal()).sum())

    def draw(self, correlation: float, count: int, rng: np.random.Generator) -> Floats:
        """True drops ``[count, 2, num_blocks]`` given the correlation."""
        prior = self._prior(correlation)
        gain = np.linalg.solve(prior + self.noise, prior).T
        covariance = prior - gain @ prior
        # symmetric square root: the covariance may be singular
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        root = vectors * np.sqrt(np.maximum(values, 0))
        draws = gain @ self.measured + rng.normal(size=(count, len(root))) @ root.T
        return draws.reshape(count, 2, -1)

    def limits(self, count: int, rng: np.random.Generator) -> tuple[float, float]:
        """Of the rank correlation: at the lowest and the highest correlation that is not rejected."""
        ends = [self.draw(correlation, count, rng) for correlation in (self.correlations[0], self.correlations[-1])]
        low, high = (float(np.quantile(_spearman_rows(e[:, 0], e[:, 1]), tail)) for e, tail in zip(ends, self.tails))
        # the same order, and the opposite one, are limits that no draw reaches for certain
        low = -1.0 if self.correlations[0] == _CORRELATIONS[0] else low
        high = 1.0 if self.correlations[-1] == _CORRELATIONS[-1] else high
        # neighbours that change places are never ruled out for good: no interval is without width
        num_blocks = len(self.scales) // 2
        swap = 12 / (num_blocks * (num_blocks**2 - 1))
        if high - low < swap:
            low, high = max(-1.0, high - swap), min(1.0, low + swap)
        return low, high


def _spearman_rows(first: Floats, second: Floats) -> Floats:
    """Rank correlation of each row of one array with that of the other (no ties: the draws are continuous)."""
    ranks = [values.argsort(axis=1).argsort(axis=1) for values in (first, second)]
    count = first.shape[1]
    return 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum(axis=1) / (count * (count**2 - 1))


def _needed(
    posterior: _Posterior,
    means: Floats,
    noise: Sequence[Floats],
    threshold: float,
    confidence: float,
    degrees: int,
    rng: np.random.Generator,
) -> int | None:
    """Smallest power of two that both samples may grow by so that half of the simulations pass the threshold."""
    roots = [np.linalg.cholesky(covariance) for covariance in noise]
    centres = np.median(means, axis=1, keepdims=True)
    truths = posterior.draw(posterior.correlations[-1], _NUM_TRUTHS, rng) + centres

    def passes(growth: int) -> bool:
        passed = 0
        for number, truth in enumerate(truths):
            errors = np.stack([root @ rng.normal(size=len(root)) for root in roots]) / np.sqrt(growth)
            smaller = [covariance / growth for covariance in noise]
            passed += (
                _Posterior(truth + errors, block_diag(*smaller), confidence, growth * degrees).limits(200, rng)[0]
                >= threshold
            )
            if 2 * passed >= _NUM_TRUTHS or 2 * (number - passed) > _NUM_TRUTHS:
                break
        return 2 * passed >= _NUM_TRUTHS

    # more samples pass more often: halve the range of powers
    low, high = 0, len(_GROWTH)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(int(_GROWTH[middle])) else (middle, high)
    return int(_GROWTH[high]) if high < len(_GROWTH) else None
