"""Race candidates for the beam of one level: samples go only to those whose place is still open.

Candidates are rows of a table, samples its columns, spent from left to right. A comparison of two rows looks at their
paired differences after every round, so it takes a test that may be looked at as often as one likes:
`lit_depth.functional.statistics.log_evidence`. Such a test needs bounded scores, and spends samples in proportion to
their range. Accuracy lies in [0, 1]. A mean log-probability has no lower bound; so ``reference_logprob`` is ranked and
raced as the *reference probability* ``exp(reference_logprob)``, the geometric mean probability of a reference token: in
[0, 1], monotone in each sample, and no single hopeless sample decides a mean. On masks of the bundled model whose
accuracies differ by 0.1 to 0.2 (medians of 46 pairs) it settles a comparison after 190 samples, accuracy after 250, the
logarithm cut at -5 after 400, cut at -10 after 680. Cut at -1 or -2 it does as well as the probability does uncut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_depth.functional.statistics import Floats, log_evidence

RankBy = Literal["accuracy", "reference_logprob"]


class MaskScores(NamedTuple):
    """Scores of masks on samples; NaN marks a bad sample, which then counts for no mask.

    Attributes:
        accuracy: ``[masks, samples]`` in [0, 1]; a metric of another range is divided by its largest value first.
        reference_logprob: ``[masks, samples]``, at most 0; minus infinity is allowed.
    """

    accuracy: Floats
    reference_logprob: Floats


Evaluate = Callable[[Tensor, Sequence[int]], MaskScores]


@dataclass(frozen=True)
class Rule:
    """When a candidate is settled.

    Attributes:
        rank_by: The score that decides.
        width: Places in the beam.
        epsilon: Differences up to this do not matter.
        alpha: Probability that one comparison of one score errs, at whatever time it is looked at.
        confirm: The same for the accuracy that has to confirm what ``reference_logprob`` settled.
    """

    rank_by: RankBy
    width: int
    epsilon: float
    alpha: float
    confirm: float


class Outcome(NamedTuple):
    """What a race found.

    Attributes:
        dropped: Row of each candidate that got no further samples, and the score that settled it.
        beaten: Rows that the deciding score has proven worse than another one.
        settled: The beam and the best in it are proven up to epsilon.
    """

    dropped: dict[int, RankBy]
    beaten: frozenset[int]
    settled: bool


class Samples:
    """The samples of a search, in a random order in which those of one cluster stand together.

    Args:
        num_samples: Their number.
        clusters: Cluster (image) of each sample; None makes every sample its own.
        seed: Seed of the order.

    Attributes:
        order: ``[num_samples]`` sample positions; a place in it is a column of the table.
        cluster: ``[num_samples]`` number of the cluster at each place, ascending.
        largest: Samples in the largest cluster.
        bad: ``[num_samples]`` bool, True at places that a mask had no score for so far.
    """

    def __init__(self, num_samples: int, clusters: Sequence[Hashable] | None, seed: int) -> None:
        if num_samples < 1:
            raise ValueError(f"expected at least one sample, given {num_samples}")
        if clusters is not None and len(clusters) != num_samples:
            raise ValueError(f"expected one cluster per sample ({num_samples}), given {len(clusters)}")
        members: dict[Hashable, list[int]] = {}
        for position, name in enumerate(range(num_samples) if clusters is None else clusters):
            members.setdefault(name, []).append(position)
        groups = list(members.values())
        shuffled = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
        self.order: NDArray[np.int64] = np.concatenate(shuffled)
        self.cluster = np.repeat(np.arange(len(groups)), [len(group) for group in shuffled])
        self.largest = max(map(len, groups))
        self.bad = np.zeros(num_samples, dtype=bool)

    def rounds(self, batch: int) -> list[NDArray[np.int64]]:
        """Places not known to be bad, in rounds of ``batch``, or of more where that would tear a cluster."""
        rounds: list[list[int]] = [[]]
        before = -1
        for place in np.flatnonzero(~self.bad).tolist():
            if len(rounds[-1]) >= batch and self.cluster[place] != before:
                rounds.append([])
            rounds[-1].append(place)
            before = self.cluster[place]
        return [np.array(places, dtype=np.int64) for places in rounds if places]


class ScoreTable:
    """Scores ``[candidates, samples]``, filled as the race asks for them.

    Args:
        evaluate: See `lit_depth.functional.search.beam_search`.
        masks: Bool ``[candidates, num_units]``.
        samples: Shared by all levels of a search, as is the knowledge which of them are bad.

    Attributes:
        evaluations: Cells (mask, sample) asked for.
        full: Cells that the full search asks for.
    """

    def __init__(self, evaluate: Evaluate, masks: Tensor, samples: Samples) -> None:
        self.evaluate, self.masks, self.samples = evaluate, masks, samples
        shape = (len(masks), len(samples.order))
        self.accuracy, self.logprob, self.probability = (np.full(shape, np.nan) for _ in range(3))
        self.evaluations, self.full = 0, len(masks) * int(np.sum(~samples.bad))

    def ask(self, rows: Sequence[int], places: NDArray[np.int64]) -> None:
        """Evaluate candidates at some places.

        Raises:
            ValueError: Scores of a wrong shape or outside their range.
        """
        scores = self.evaluate(self.masks[list(rows)], self.samples.order[places].tolist())
        accuracy, logprob = (np.asarray(values, dtype=np.float64) for values in scores)
        for name, values, low, high in (
            ("accuracy", accuracy, 0.0, 1.0),
            ("reference_logprob", logprob, -math.inf, 1e-6),  # rounding may leave a logarithm of 1 above 0
        ):
            if values.shape != (len(rows), len(places)):
                raise ValueError(f"expected {name} of shape [{len(rows)}, {len(places)}], given {list(values.shape)}")
            wrong = values[(values < low) | (values > high)]
            if len(wrong):
                raise ValueError(f"expected {name} between {low:g} and {high:g}, given {wrong[0]:g}")
        cells = np.ix_(np.array(rows), places)
        self.accuracy[cells], self.logprob[cells] = accuracy, logprob
        self.probability[cells] = np.exp(np.minimum(logprob, 0.0))
        self.samples.bad[places] |= np.isnan(accuracy).any(axis=0) | np.isnan(logprob).any(axis=0)
        self.evaluations += len(rows) * len(places)

    def bounded(self, score: RankBy) -> Floats:
        """The score that is ranked and raced, in [0, 1]: accuracy, or the reference probability."""
        return self.accuracy if score == "accuracy" else self.probability

    def mean(self, row: int, values: Floats) -> float:
        """Mean over the good samples that a candidate was asked for; NaN without any."""
        seen = values[row, ~self.samples.bad & ~np.isnan(self.accuracy[row])]
        # exactly rounded: equal scores are equal in whatever order the samples came
        return math.fsum(seen) / len(seen) if len(seen) else math.nan

    def num_good(self, row: int) -> int:
        """Good samples that a candidate was asked for."""
        return int(np.sum(~self.samples.bad & ~np.isnan(self.accuracy[row])))

    def check_scored(self) -> None:
        """Raise ValueError if all samples are bad."""
        if self.samples.bad.all():
            raise ValueError(f"expected a sample with a score for every mask, given {len(self.samples.bad)} bad ones")

    def ranked(self, rows: Sequence[int], score: RankBy) -> list[int]:
        """Rows by falling mean, of equal ones the earlier first."""
        return sorted(rows, key=lambda row: (-self.mean(row, self.bounded(score)), row))

    def proves(
        self, score: RankBy, better: Sequence[int], worse: Sequence[int], alpha: float, margin: float = 0.0
    ) -> NDArray[np.bool_]:
        """Whether rows are proven better, up to ``margin``, than others on the samples that both have seen.

        Samples of one cluster make one observation, their sum over the size of the largest cluster: it keeps the sign
        of the mean over samples.

        Returns:
            Bool ``[worse, better]``. An entry for which "worse is better by at least ``margin``" holds is ever True, in
            any round, with a probability of at most ``alpha``.
        """
        good = ~self.samples.bad & ~np.isnan(self.accuracy[list(better)]).any(axis=0)
        cluster = self.samples.cluster[good]
        if not len(cluster) or not len(worse):
            return np.zeros((len(worse), len(better)), dtype=bool)
        values = self.bounded(score)[:, good]
        differences = values[list(better)][None] - values[list(worse)][:, None]
        # what one of the two has not seen adds nothing to the evidence
        seen = np.isfinite(differences)
        starts = np.flatnonzero(np.diff(cluster, prepend=-1))
        sums = np.add.reduceat(np.where(seen, differences, 0.0), starts, axis=-1) / self.samples.largest
        sizes = np.add.reduceat(seen.astype(np.float64), starts, axis=-1) / self.samples.largest
        return np.any(log_evidence(sums, alpha, margin * sizes) >= -math.log(alpha), axis=-1)


def race(table: ScoreTable, batch: int, rule: Rule) -> Outcome:
    """Spend samples, round by round, on the candidates whose place is still open.

    A candidate is dropped when ``width`` others are each settled to be better than it (one alone might be in the beam
    together with it). Comparisons are with margin 0, so that dropping does not add up over rounds; epsilon decides
    when the race ends: no candidate left is better by epsilon than the best, and none outside the beam than any in it.

    Raises:
        ValueError: See `ScoreTable.ask`; no sample with a score for every mask.
    """
    alive = list(range(len(table.masks)))
    beaten, doubted = (np.zeros((len(alive), len(alive)), dtype=bool) for _ in range(2))  # [worse, better]
    dropped: dict[int, RankBy] = {}
    is_over = False
    for places, is_last in _with_last(table.samples.rounds(batch)):
        table.ask(alive, places)
        ranked = table.ranked(alive, rule.rank_by)
        beam, rest = ranked[: rule.width], ranked[rule.width :]
        cells = np.ix_(rest, beam)
        beaten[cells] |= table.proves(rule.rank_by, beam, rest, rule.alpha)
        is_over = _is_over(table, beam, rest, rule)
        if is_over or is_last:
            break
        doubted[cells] |= _settled_by_logprob(table, beam, rest, rule)
        dropped |= {row: "reference_logprob" for row in rest if doubted[row].sum() >= rule.width}
        dropped |= {row: rule.rank_by for row in rest if beaten[row].sum() >= rule.width}
        alive = [row for row in alive if row not in dropped]
    table.check_scored()
    best, *others = table.ranked(alive, rule.rank_by)
    others += dropped
    beaten[others, best] |= table.proves(rule.rank_by, [best], others, rule.alpha)[:, 0]
    return Outcome(dropped, frozenset(np.flatnonzero(beaten.any(axis=1)).tolist()), is_over)


def _with_last(rounds: list[NDArray[np.int64]]) -> Iterator[tuple[NDArray[np.int64], bool]]:
    for number, places in enumerate(rounds, 1):
        yield places, number == len(rounds)


def _is_over(table: ScoreTable, beam: list[int], rest: list[int], rule: Rule) -> bool:
    """Whether the first of the beam is proven best and the beam proven, both up to epsilon."""
    if not table.num_good(beam[0]):
        return False
    first = table.proves(rule.rank_by, beam[:1], [*beam[1:], *rest], rule.alpha, rule.epsilon)
    return bool(first.all() and table.proves(rule.rank_by, beam, rest, rule.alpha, rule.epsilon).all())


def _settled_by_logprob(table: ScoreTable, beam: list[int], rest: list[int], rule: Rule) -> NDArray[np.bool_]:
    if rule.rank_by == "reference_logprob":
        return np.zeros((len(rest), len(beam)), dtype=bool)  # it has been looked at
    first = table.proves("reference_logprob", beam, rest, rule.alpha)
    return first & table.proves("accuracy", beam, rest, rule.confirm)
