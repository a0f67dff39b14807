"""Would a fresh sample choose the same blocks? Inclusion probabilities, and how many samples would settle the choice.

A bootstrap draws from a sample that is noisy already, so the spread of its choices is not that of fresh samples. Here a
fresh sample is predicted in two steps: the true means of the rows are drawn given the data, and noise of one sample is
added to them. The prior of the true means is learned from the rows themselves (empirical Bayes): a common centre, and
around it a scale mixture of normal distributions (Stephens 2017, doi:10.1093/biostatistics/kxw041), so that many rows
may be nearly tied while a few lie far off. ``benchmarks/stability.py`` compares it with the bootstrap, on models whose
truth is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional.arguments import check_least, check_share, checked
from lit_depth.functional.statistics.clusters import ClusterSums, Floats, Labels, as_numbers, sum_clusters

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Rule = Callable[[Floats], NDArray[np.bool_]]

# a mean of two draws of each of so many chains
_CHAINS, _STEPS, _KEPT = 100, 24, 2
_NUM_SCALES = 8
_MOST_TIMES = 64.0
_STEPS_PER_DOUBLING = 2
# scores that are multiples of one of these have means on a lattice, where ties are exact
_DENOMINATORS = (1, 2, 3, 10)


class Stability(NamedTuple):
    """How firmly a choice stands.

    Attributes:
        chosen: ``[num_blocks]``, by the data.
        inclusion: ``[num_blocks]`` probability that a fresh sample of the same size chooses the block.
        repeated: Probability that a fresh sample of the same size chooses exactly the same blocks.
        agreement: Probability that two fresh samples of the same size choose the same blocks as each other.
        times: How many times as many samples it takes until two fresh samples agree with the probability asked for; 1
            if these are enough, None if 64 times as many are not.
    """

    chosen: NDArray[np.bool_]
    inclusion: Floats
    repeated: float
    agreement: float
    times: float | None


class PlausibleMeans(NamedTuple):
    """True means of rows that are plausible given a sample, and the noise of one such sample.

    Attributes:
        means: ``[draws, rows]``.
        root: ``[rows, rows]``, a root of the covariance of the means of one sample.
        unit: Of which sample means are multiples; 0 where they have none.
    """

    means: Floats
    root: NDArray[np.floating]
    unit: float

    def fresh(self, noise: Floats, times: float = 1.0) -> Floats:
        """Means ``[draws, rows]`` of fresh samples of ``times`` the size, given standard normal noise of that shape."""
        found = self.means + noise @ self.root.T / np.sqrt(times)
        unit = self.unit / times
        return np.rint(found / unit) * unit if unit else found


class TieBrokenMeans(NamedTuple):
    """`PlausibleMeans` of a score on a lattice, and of a second score that orders rows of equal means.

    The two scores of one fresh sample are drawn as if they had nothing to do with each other.

    Attributes:
        first: Its ``unit`` is above 0.
        second: Of values between -1 and 1.
    """

    first: PlausibleMeans
    second: PlausibleMeans

    @property
    def means(self) -> Floats:
        """``[draws, 2 rows]``: those of the first score, then those of the second."""
        return np.concatenate([self.first.means, self.second.means], axis=1)

    def fresh(self, noise: Floats, times: float = 1.0) -> Floats:
        """As of `PlausibleMeans`, given noise ``[draws, 2 rows]``: the second score moves less than half a unit."""
        rows = self.first.means.shape[1]
        nudge = np.clip(self.second.fresh(noise[:, rows:], times), -1, 1) * self.first.unit / times / 4
        return self.first.fresh(noise[:, :rows], times) + nudge


@checked
def least(count: int) -> Rule:
    """The rule that chooses the ``count`` rows of the smallest means; of equal ones the first.

    >>> least(2)(np.array([[0.3, 0.1, 0.2, 0.1]])).tolist()
    [[False, True, False, True]]

    Raises:
        ValueError: On a count below 1.
    """
    check_least(1, count=count)

    def choose(means: Floats) -> NDArray[np.bool_]:
        order = np.argsort(means, axis=1, kind="stable")[:, :count]
        chosen = np.zeros(means.shape, dtype=bool)
        np.put_along_axis(chosen, order, True, axis=1)
        return chosen

    return choose


@checked
def best_of(members: ArrayLike) -> Rule:
    """The rule that takes the row of the largest mean, of equal ones the first, and chooses its members.

    Args:
        members: bool ``[rows, num_blocks]``: what each row chooses.

    >>> best_of([[True, False], [False, True]])(np.array([[0.5, 0.5], [0.4, 0.6]])).tolist()
    [[True, False], [False, True]]

    Raises:
        ValueError: On a wrong shape.
    """
    table = as_numbers(bool, members=members)
    if table.ndim != 2:
        raise ValueError(f"expected members of shape [rows, num_blocks], got {list(table.shape)}")
    return lambda means: table[np.argmax(means, axis=1)]


@checked
def decision_stability(
    values: ArrayLike,
    rule: Rule,
    clusters: Labels | None = None,
    tasks: Labels | None = None,
    probability: float = 0.9,
    seed: int = 0,
) -> Stability:
    """How probably a fresh sample chooses the same blocks, and how many samples it takes until two of them agree.

    Larger samples are predicted by the same model: the true means stay, and the noise shrinks with the root of the
    size. The sizes tried grow by the root of 2, up to 64 times.

    Args:
        values: ``[rows, num_samples]``: per-sample scores, or differences of scores, of everything to choose among.
        rule: Given means ``[draws, rows]``, the choice bool ``[draws, num_blocks]``.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        tasks: ``[num_samples]`` task of each sample, see `paired_intervals`.
        probability: Of two fresh samples agreeing, for ``times``.
        seed: Of the simulation.

    Raises:
        ValueError: On a wrong shape, values that are not finite, and fewer than two clusters.

    Example:
        >>> values = np.zeros((3, 400))
        >>> values[0, :120] = values[1, 200:206] = values[2, 300:305] = 1.0  # drops of .3, .015 and .0125
        >>> found = decision_stability(values, least(1))
        >>> found.chosen.tolist(), [round(float(each), 1) for each in found.inclusion]
        ([False, False, True], [0.0, 0.5, 0.5])
    """
    check_share(probability=probability)
    array = as_numbers(float, values=values)
    sums = sum_clusters(array, clusters, tasks)
    generator = np.random.default_rng(seed)
    plausible = plausible_means(sums, lattice_unit(array) if tasks is None else 0.0, generator)
    return foresee(plausible, rule, rule(sums.means[None])[0], probability, generator)


def foresee(
    plausible: PlausibleMeans | TieBrokenMeans,
    rule: Rule,
    chosen: NDArray[np.bool_],
    probability: float,
    generator: np.random.Generator,
) -> Stability:
    """What fresh samples choose by ``rule``, against what is ``chosen`` now, bool ``[num_blocks]``."""
    first, second = generator.standard_normal((2, *plausible.means.shape))
    fresh = rule(plausible.fresh(first))

    def agreement(times: float) -> float:
        pair = (rule(plausible.fresh(noise, times)) for noise in (first, second))
        return float(np.mean(np.all(np.equal(*pair), axis=1)))

    sizes = 2.0 ** (np.arange(np.log2(_MOST_TIMES) * _STEPS_PER_DOUBLING + 1) / _STEPS_PER_DOUBLING)
    return Stability(
        chosen,
        fresh.mean(axis=0),
        float(np.mean((fresh == chosen).all(axis=1))),
        agreement(1.0),
        next((float(times) for times in sizes if agreement(times) >= probability), None),
    )


def mean_covariance(sums: ClusterSums) -> Floats:
    """Covariance ``[rows, rows]`` of the means, with half a lost and half a gained sample that may have been missed.

    Rows share their samples. Half a sample of size 1 is added to every row's own variance (Agresti & Min 2005,
    doi:10.1002/sim.1781), of the size of the row's values where these are smaller or larger.
    """
    total, covariance = sums.sizes.sum(), np.zeros((len(sums.values), len(sums.values)))
    for task in sums.by_task:
        share, count = task.sizes.sum() / total, len(task.sizes)
        covariance += share**2 * count / (count - 1) * task.residuals @ task.residuals.T
        # what no row has differed in yet may be as large as a whole score
        largest = (np.abs(task.values).max(initial=0.0) or 1.0) / task.sizes.sum()
        covariance += np.eye(len(covariance)) * share**2 * largest**2 / 2
    return covariance + np.eye(len(covariance)) * 1e-18


def plausible_means(sums: ClusterSums, unit: float, generator: np.random.Generator) -> PlausibleMeans:
    """Draws of the true means given the data, by Gibbs sampling in many chains at once.

    Args:
        sums: The data.
        unit: Of which means are multiples; 0 = none.
        generator: Of the draws.
    """
    means, covariance = sums.means, mean_covariance(sums)
    draws = draw_true_means(means, covariance, generator)
    return PlausibleMeans(draws, np.linalg.cholesky(covariance), unit)


def draw_true_means(means: Floats, covariance: Floats, generator: np.random.Generator) -> Floats:
    """``[draws, rows]``: normal data, a scale mixture of normals as prior, weights and centre unknown."""
    rows = len(means)
    if rows == 1:
        return means + generator.standard_normal((_CHAINS * _KEPT, 1)) * np.sqrt(covariance[0, 0])
    noise = float(np.sqrt(np.median(np.diag(covariance))))
    variances = np.geomspace(noise / 8, 2 * max(float(np.ptp(means)), noise), _NUM_SCALES) ** 2
    precision, identity = np.linalg.inv(covariance), np.eye(rows)
    seen = precision @ means
    weights = np.full((_CHAINS, _NUM_SCALES), 1 / _NUM_SCALES)
    scales = generator.integers(0, _NUM_SCALES, (_CHAINS, rows))
    centres, kept = np.full(_CHAINS, np.median(means)), []
    for step in range(_STEPS):
        prior = 1 / variances[scales]
        roots = np.linalg.cholesky(precision + identity * prior[:, None, :])
        whitened = np.linalg.solve(roots, (seen + centres[:, None] * prior)[..., None])
        whitened += generator.standard_normal((_CHAINS, rows, 1))
        draws = np.linalg.solve(np.swapaxes(roots, 1, 2), whitened)[..., 0]
        total = prior.sum(axis=1)
        centres = (draws * prior).sum(axis=1) / total + generator.standard_normal(_CHAINS) / np.sqrt(total)
        scales = _draw_scales(draws - centres[:, None], variances, weights, generator)
        counts = (scales[..., None] == np.arange(_NUM_SCALES)).sum(axis=1)
        weights = generator.standard_gamma(counts + 2 / _NUM_SCALES) + 1e-12
        if step >= _STEPS - _KEPT:
            kept.append(draws)
    return np.concatenate(kept)


def _draw_scales(
    deviations: Floats, variances: Floats, weights: Floats, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Component ``[chains, rows]`` of the mixture that each deviation may have come from."""
    logs = np.log(weights)[:, None, :] - 0.5 * np.log(variances) - 0.5 * deviations[..., None] ** 2 / variances
    shares = np.exp(logs - logs.max(axis=2, keepdims=True)).cumsum(axis=2)
    found = (shares < generator.random((*deviations.shape, 1)) * shares[..., -1:]).sum(axis=2)
    return np.minimum(found, len(variances) - 1)


def lattice_unit(values: Floats) -> float:
    """Of which the means of rows ``[rows, num_samples]`` are multiples; 0 where there is none. NaN says nothing."""
    known = values[np.isfinite(values)]
    for denominator in _DENOMINATORS:
        if np.all(np.abs(known * denominator - np.rint(known * denominator)) < 1e-9):
            return 1 / (denominator * values.shape[1])
    return 0.0
