"""Tests of paired differences: sign flips of whole clusters, McNemar's test, and corrections for testing many rows."""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, stats

from lit_depth.functional.statistics.clusters import Floats, Labels, cluster_sums

# 8 MB of float64 signs at a time
_MAX_SIGNS_PER_BLOCK = 2**20
_MAX_EXACT_SUMS = 2**14
_MAX_LATTICE_POINTS = 2**16
_MAX_DENOMINATOR = 60
# what the Fourier transform of a distribution leaves as noise
_SMALLEST_LATTICE_P = 1e-13


def sign_flip_tests(
    differences: ArrayLike, clusters: Labels | None = None, num_permutations: int = 10_000, seed: int = 0
) -> Floats:
    """Two-sided p-values of "the differences are symmetric about zero", one per row, flipping whole clusters.

    The distribution of the total over all sign patterns is known exactly wherever it is small, which is nearly always:

    - clusters of the same absolute sum are interchangeable, and give a scaled binomial; up to 2^14 combinations are
      enumerated (for 0/1 scores without clusters this is McNemar's exact test);
    - sums that are multiples of one unit, as those of graded scores are, have totals on a lattice, whose distribution
      is the Fourier transform of a product of cosines (Pagano & Tritchler 1983, doi:10.1080/01621459.1983.10477990).

    Else it is sampled, with the add-one rule (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585): never 0.

    Args:
        differences: ``[num_rows, num_samples]``, finite.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        num_permutations: Number of random sign patterns where the test is not exact.
        seed: Seed of the random sign patterns, which all rows share.

    Returns:
        ``[num_rows]`` p-values in (0, 1]; 1 if no cluster differs.

    Example:
        >>> sign_flip_tests([[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0, -1.0]]).round(6).tolist()
        [0.0625, 1.0]
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"expected differences of shape [num_rows, num_samples], got {list(values.shape)}")
    return flip_clusters(cluster_sums(values, clusters)[0], num_permutations, seed)


def flip_clusters(sums: Floats, num_permutations: int, seed: int) -> Floats:
    """`sign_flip_tests` of sums over clusters ``[num_rows, num_clusters]``."""
    exact = [_exact_p_value(row) for row in sums]
    sampled = [index for index, p in enumerate(exact) if p is None]
    p_values = np.array([np.nan if p is None else p for p in exact])
    if sampled:
        p_values[sampled] = _sampled_p_values(sums[sampled], num_permutations, seed)
    return p_values


def _exact_p_value(sums: Floats) -> float | None:
    """None where the distribution of the total is too large to be known exactly."""
    magnitudes = np.abs(sums)
    largest = magnitudes.max(initial=0.0)
    if largest == 0:
        return 1.0
    # rounded, because 0.9 - 0.6 and 0.6 - 0.3 are the same difference
    sizes, counts = np.unique(np.round(magnitudes / largest, 12), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    total = float(sizes @ counts)
    # totals that are equal but for rounding count as at least as large
    observed = abs(sums.sum()) / largest - 1e-9 * total
    if np.sum(np.log2(counts + 1)) <= np.log2(_MAX_EXACT_SUMS):
        return _enumerated_p_value(sizes, counts, observed)
    unit = _common_unit(sizes, total)
    return None if unit is None else _lattice_p_value(np.rint(sizes / unit).astype(np.int64), counts, observed / unit)


def _enumerated_p_value(sizes: Floats, counts: NDArray[np.int64], observed: float) -> float:
    totals, probabilities = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts):
        positive = np.arange(count + 1)
        totals = np.add.outer(totals, size * (2 * positive - count)).ravel()
        probabilities = np.multiply.outer(probabilities, _coin_tosses(int(count))).ravel()
    return min(1.0, float(probabilities[np.abs(totals) >= observed].sum()))


@lru_cache(maxsize=1024)  # rows of one table share their numbers of differing samples
def _coin_tosses(count: int) -> Floats:
    """Probability of each number of heads."""
    return stats.binom.pmf(np.arange(count + 1), count, 0.5)


def _common_unit(sizes: Floats, total: float) -> float | None:
    """Number of which all sizes are multiples, a small fraction of the smallest one; None if there is none."""
    candidates = sizes[0] / np.arange(1, _MAX_DENOMINATOR + 1)
    candidates = candidates[total <= candidates * (_MAX_LATTICE_POINTS - 1)]
    multiples = sizes / candidates[:, None]
    fits = np.all(np.abs(multiples - np.rint(multiples)) < 1e-6, axis=1)
    return float(candidates[fits.argmax()]) if fits.any() else None


def _lattice_p_value(sizes: NDArray[np.int64], counts: NDArray[np.int64], observed: float) -> float:
    """Of integer sizes: the sum W of positive ones has E exp(itW) = exp(it total / 2) prod cos(t size / 2)^count."""
    total = int(sizes @ counts)
    length = fft.next_fast_len(total + 1, real=True)
    frequencies = np.arange(length // 2 + 1)
    turn = np.pi / length
    # whole turns are taken off while the numbers are integers, and exact
    cosines = np.cos(turn * (frequencies[:, None] * sizes % (2 * length)))
    products = np.exp(np.log(np.maximum(np.abs(cosines), 1e-300)) @ counts) * (1.0 - 2 * ((cosines < 0) @ counts % 2))
    transform = products * np.exp(-1j * turn * (frequencies * total % (2 * length)))
    probabilities = fft.irfft(transform, n=length)
    tail = probabilities[: total + 1][np.abs(2 * np.arange(total + 1) - total) >= observed].sum()
    return float(np.clip(tail, max(2.0 ** (1 - int(counts.sum())), _SMALLEST_LATTICE_P), 1.0))


def _sampled_p_values(sums: Floats, num_permutations: int, seed: int) -> Floats:
    """Shares of random sign patterns, the same for all rows, whose totals are at least as large as those observed."""
    observed = np.abs(sums.sum(axis=1)) - 1e-9 * np.abs(sums).sum(axis=1)
    exceed = np.zeros(len(sums))
    for totals in _random_totals(sums, num_permutations, seed):
        exceed += (np.abs(totals) >= observed).sum(axis=0)
    return (1 + exceed) / (1 + num_permutations)


def _random_totals(sums: Floats, num_permutations: int, seed: int, num_rows: int = 1) -> Iterator[Floats]:
    """Totals ``[patterns, rows]`` under random sign patterns, a block of these at a time, small enough for memory."""
    generator = np.random.default_rng(seed)
    # what is computed of a pattern may be wider than its signs
    block = max(1, _MAX_SIGNS_PER_BLOCK // max(num_rows, sums.shape[1]))
    for start in range(0, num_permutations, block):
        size = (min(block, num_permutations - start), sums.shape[1])
        yield (2.0 * generator.integers(2, size=size, dtype=np.int8) - 1) @ sums.T


def pairwise_sign_flip_tests(
    values: ArrayLike, clusters: Labels | None = None, num_permutations: int = 10_000, seed: int = 0
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
    for totals in _random_totals(sums, num_permutations, seed, len(pairs)):
        statistics = (np.abs(totals[:, first] - totals[:, second]) / spread)[:, order]
        largest = np.maximum.accumulate(statistics[:, ::-1], axis=1)[:, ::-1]
        exceed += (largest >= observed[order] - 1e-9).sum(axis=0)
    adjusted = np.empty(len(pairs))
    adjusted[order] = np.maximum.accumulate((1 + exceed) / (1 + num_permutations))
    return {pair: float(p) for pair, p in zip(pairs, adjusted)}


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
