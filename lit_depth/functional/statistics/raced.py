"""How firmly a choice stands among rows that were not all evaluated on the same samples, as candidates of a race.

A race (`lit_depth.functional.search.racing`) spends no further samples on a row that falls behind: its mean is over
fewer samples, and it is less sure to be worse. What was left out depends on nothing but scores that were seen, so that
true means are as plausible as if it had been planned (Rubin 1976, doi:10.1093/biomet/63.3.581). Where every row has
every sample, both functions give what `decision_stability` and `winner_interval` give.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lit_depth.functional.arguments import check_share
from lit_depth.functional.statistics.clusters import Floats, Labels, cluster_sums
from lit_depth.functional.statistics.stability import (
    PlausibleMeans,
    Stability,
    TieBrokenMeans,
    best_of,
    draw_true_means,
    foresee,
    lattice_unit,
)
from lit_depth.functional.statistics.winner import Winner, correct_for_choice, count_rivals

# keeps a covariance invertible where rows are alike
_LEAST = 1e-18


def raced_stability(
    values: ArrayLike,
    members: ArrayLike,
    row: int,
    clusters: Labels | None = None,
    probability: float = 0.9,
    seed: int = 0,
    *,
    second: ArrayLike | None = None,
) -> Stability:
    """`decision_stability` of a race: what the best row would be, were all rows evaluated on a fresh sample in full.

    Args:
        values: ``[rows, num_samples]``, larger = better; NaN where a row was not evaluated.
        members: bool ``[rows, num_blocks]``: what each row chooses.
        row: The row that the race chose.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        probability: Of two fresh samples agreeing, for ``times``.
        seed: Of the simulation.
        second: Values of another score, between -1 and 1, of the same rows and samples, which orders rows whose means
            are equal; None = of equal ones the first is the best. It decides nothing where means have no common unit.

    Raises:
        ValueError: On a wrong shape, infinite values, and a row with samples of fewer than two clusters.

    Example:
        >>> drops = np.random.default_rng(0).random((3, 400)) < np.array([[0.03], [0.04], [0.4]])
        >>> values = np.where(np.arange(400) < [[400], [400], [64]], -drops.astype(float), np.nan)
        >>> found = raced_stability(values, np.eye(3), row=0)
        >>> [round(float(each), 1) for each in found.inclusion]
        [0.6, 0.4, 0.0]
    """
    check_share(probability=probability)
    array, table = _checked(values), np.asarray(members, dtype=bool)
    generator = np.random.default_rng(seed)
    first, _ = _plausible(array, clusters, lattice_unit(array), generator)
    plausible: PlausibleMeans | TieBrokenMeans = first
    if second is not None and first.unit:
        breaker = _checked(second)
        if (np.isfinite(breaker) != np.isfinite(array)).any():
            raise ValueError("expected the second score where the first one is, and nowhere else")
        plausible = TieBrokenMeans(first, _plausible(breaker, clusters, 0.0, generator)[0])
    return foresee(plausible, best_of(table), table[row], probability, generator)


def raced_winner(
    values: ArrayLike,
    row: int,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    *,
    score_range: float | None = 1.0,
    seed: int = 0,
) -> Winner:
    """`winner_interval` of a race: every other row is compared with the chosen one on the samples that both have.

    Args:
        values: ``[rows, num_samples]``, larger = better; NaN where a row was not evaluated.
        row: The row that the race chose.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        confidence: Coverage, in (0, 1).
        score_range: Largest less smallest possible score; None = unknown.
        seed: Of the simulated means, and of random sign patterns.

    Raises:
        ValueError: As `raced_stability`, and values beyond the range.
    """
    check_share(confidence=confidence)
    array = _checked(values)
    own = np.isfinite(array[row])
    names = np.arange(array.shape[1]) if clusters is None else np.asarray(clusters)
    others = np.delete(array, row, axis=0)
    patterns: dict[bytes, list[int]] = {}
    for place, common in enumerate(np.isfinite(others) & own):
        patterns.setdefault(common.tobytes(), []).append(place)
    options: dict[str, Any] = {"score_range": score_range, "seed": seed}
    rivals = 0
    for pattern, places in patterns.items():
        common = np.frombuffer(pattern, dtype=bool)
        if len(np.unique(names[common])) < 2:
            rivals += len(places)  # nothing tells them apart
            continue
        differences = array[row, common] - others[places][:, common]
        rivals += count_rivals(differences, len(others), confidence, clusters=names[common], **options)
    draws, means = _plausible(array, clusters, 0.0, np.random.default_rng(seed))
    plausible = float(draws.means[:, row].mean() if rivals else means[row])
    given: dict[str, Any] = {"clusters": names[own], **options}
    return correct_for_choice(row, array[[row]][:, own], len(array), rivals, plausible, confidence, **given)


def _checked(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"expected values of shape [num_rows > 0, num_samples > 0], got {list(array.shape)}")
    if np.isinf(array).any():
        raise ValueError(
            f"expected finite values, or NaN where there is none, got {int(np.isinf(array).sum())} infinite"
        )
    return array


def _plausible(
    values: Floats, clusters: Labels | None, unit: float, generator: np.random.Generator
) -> tuple[PlausibleMeans, Floats]:
    """Draws of the true means, the noise of one sample of full size, and the means as they are.

    Each row adds the residuals of its own samples, by cluster (Cochran 1977, eq. 11.25). Of two rows, the covariance on
    the samples that both have stands for all samples.
    """
    seen = np.isfinite(values)
    sums, full = cluster_sums(np.where(seen, values, 0.0), clusters)
    sizes, _ = cluster_sums(seen.astype(np.float64), clusters)
    numbers, counts = sizes.sum(axis=1), (sizes > 0).sum(axis=1)
    if counts.min() < 2:
        raise ValueError(f"expected samples of at least 2 clusters (images) in every row, got {counts.min()}")
    means = sums.sum(axis=1) / numbers
    residuals = (sums - means[:, None] * sizes) * np.sqrt(counts / (counts - 1))[:, None]
    products, total = residuals @ residuals.T, full.sum()
    # half a lost and half a gained sample that may have been missed, see `stability.mean_covariance`
    missed, rows = (np.abs(sums).max(initial=0.0) or 1.0) ** 2 / 2, np.eye(len(values))
    covariance = products / np.outer(numbers, numbers) + rows * (missed / numbers**2 + _LEAST)
    if not seen.all():
        shares = sizes @ sizes.T / (full**2).sum()
        products = _nearest(np.where(shares > 0, products / np.where(shares > 0, shares, 1.0), 0.0))
    fresh = products / total**2 + rows * (missed / total**2 + _LEAST)
    draws = draw_true_means(means, covariance, generator)
    return PlausibleMeans(draws, np.linalg.cholesky(fresh), unit), means


def _nearest(matrix: Floats) -> Floats:
    """The nearest covariance: pairs of rows on samples of their own need not make one."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T
