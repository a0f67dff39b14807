"""Race candidates for the beam of one level: samples go only to those whose place is still open.

Candidates are rows of a table, samples its columns, spent from left to right in a random order. What is decided on the
way, who gets no further samples, and what is claimed in the end, who is proven worse, are two things:

- *Dropping* predicts what the full search would find on the same samples. Chance lies in their order alone, so it takes
  neither independent samples nor a distribution; and the more of them are spent, the less is left to be wrong about:
  two candidates that gave the same answers on 200 of 512 samples can hardly differ by more than 0.02 on all of them.
- *Proving* is about the true means, of which the samples are independent draws (those of one cluster are not: its first
  one counts, and the true mean is then that over clusters). It takes many samples, and nothing is dropped by it.

Both look after every round, so they take evidence that may be looked at as often as one likes:
`lit_depth.functional.statistics.log_evidence`. It needs bounded scores, and samples in proportion to their range.
Accuracy lies in [0, 1]. A mean log-probability has no lower bound; so ``reference_logprob`` is ranked and raced as the
*reference probability* ``exp(reference_logprob)``, the geometric mean probability of a reference token: in [0, 1],
monotone in each sample, and no single hopeless sample decides a mean.

Accuracies of few samples are often equal. Where they are, the reference probability orders them: it costs nothing
besides, and says more than the index of a block. Only what is equal in both goes by its index.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lit_depth.functional.arguments import shorten
from lit_depth.functional.statistics import Floats, log_evidence

RankBy = Literal["accuracy", "reference_logprob"]
# of the reference probability where it orders equal accuracies: float32 in another batch changes the digits behind them
_DIGITS = 6


class MaskScores(NamedTuple):
    """Scores of masks on samples; NaN marks a bad sample, which then counts for no mask.

    Attributes:
        accuracy: ``[masks, samples]`` in [0, 1]; a metric of another range is divided by its largest value first.
        reference_logprob: ``[masks, samples]``, at most 0; minus infinity is allowed. None where it is not measured:
            then accuracy alone decides.
    """

    accuracy: Floats
    reference_logprob: Floats | None = None

    def as_arrays(self) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Accuracy and reference log-probability (NaN where it is not measured), float64; which samples are bad."""
        accuracy = np.asarray(self.accuracy, dtype=np.float64)
        bad: NDArray[np.bool_] = np.asarray(np.isnan(accuracy).any(axis=0))
        if self.reference_logprob is None:
            return accuracy, np.full(accuracy.shape, np.nan), bad
        logprob = np.asarray(self.reference_logprob, dtype=np.float64)
        if logprob.shape == accuracy.shape:  # of other shapes the caller complains
            bad = bad | np.isnan(logprob).any(axis=0)
        return accuracy, logprob, bad


Evaluate = Callable[[Tensor, Sequence[int]], MaskScores]


def as_scores(found: Any) -> MaskScores:
    if not isinstance(found, MaskScores):
        raise ValueError(f"expected evaluate to return MaskScores, got {shorten(found)}")
    return found


def second_score(reference_probability: float) -> float:
    """What orders candidates of equal accuracy, given their mean reference probability; 0 where that is not known.

    >>> second_score(0.12345678), second_score(math.nan)
    (0.123457, 0.0)
    """
    return 0.0 if math.isnan(reference_probability) else round(reference_probability, _DIGITS)


@dataclass(frozen=True)
class Rule:
    """When a candidate is settled.

    Attributes:
        rank_by: The score that decides.
        width: Places in the beam.
        epsilon: Differences up to this do not matter.
        drop: Probability that the best candidate of a level is dropped though no finalist comes within epsilon of it.
        confirm: The same where accuracy confirms what ``reference_logprob`` settled.
        proof: Probability that it is wrongly proven that one candidate is better than another.
    """

    rank_by: RankBy
    width: int
    epsilon: float
    drop: float
    confirm: float
    proof: float


class Outcome(NamedTuple):
    """What a race found.

    Attributes:
        dropped: Row of each candidate that got no further samples, and the score that settled it.
        beaten: Rows that the deciding score has proven worse than another one.
        settled: Only finalists and the beam are left, none of them more than epsilon above the first.
    """

    dropped: dict[int, RankBy]
    beaten: frozenset[int]
    settled: bool


class Samples:
    """The samples of a search, and the random order in which a level spends them.

    Attributes:
        order: ``[num_samples]`` sample positions; a place in it is a column of the table.
        is_first: ``[num_samples]`` bool, True at places whose cluster has no sample before.
        bad: ``[num_samples]`` bool, True at places that a mask had no score for so far.
    """

    def __init__(self, num_samples: int, clusters: Sequence[Hashable] | None, seed: int) -> None:
        if num_samples < 1:
            raise ValueError(f"expected at least one sample, got {num_samples}")
        if clusters is not None and len(clusters) != num_samples:
            raise ValueError(f"expected one cluster per sample ({num_samples}), got {len(clusters)}")
        self._clusters = list(range(num_samples) if clusters is None else clusters)
        self._generator = np.random.default_rng(seed)
        self.order: NDArray[np.int64] = np.arange(num_samples)
        self.bad = np.zeros(num_samples, dtype=bool)
        self.shuffle()

    def shuffle(self) -> None:
        """Put them in another order."""
        new = self._generator.permutation(len(self.order))
        self.order, self.bad = self.order[new], self.bad[new]
        clusters = [self._clusters[position] for position in self.order.tolist()]
        first = {cluster: place for place, cluster in reversed(list(enumerate(clusters)))}
        self.is_first = np.isin(np.arange(len(clusters)), list(first.values()))

    def rounds(self, batch: int) -> list[NDArray[np.int64]]:
        """Places not known to be bad, in rounds of ``batch``, later of as many batches as are half of those before."""
        places = np.flatnonzero(~self.bad)
        ends = [0]
        while ends[-1] < len(places):
            ends.append(ends[-1] + max(batch, ends[-1] // 2 // batch * batch))
        return np.split(places, ends[1:-1]) if len(places) else []


class ScoreTable:
    """Scores ``[candidates, samples]``, filled as the race asks for them.

    Attributes:
        evaluations: Pairs (mask, sample) asked for.
        full: Pairs that the full search asks for.
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
        accuracy, logprob, bad = as_scores(scores).as_arrays()
        for name, values, low, high in (
            ("accuracy", accuracy, 0.0, 1.0),
            ("reference_logprob", logprob, -math.inf, 1e-6),  # rounding may leave a logarithm of 1 above 0
        ):
            if values.shape != (len(rows), len(places)):
                raise ValueError(f"expected {name} of shape [{len(rows)}, {len(places)}], got {list(values.shape)}")
            wrong = values[(values < low) | (values > high)]
            if len(wrong):
                raise ValueError(f"expected {name} between {low:g} and {high:g}, got {wrong[0]:g}")
        pairs = np.ix_(np.array(rows), places)
        self.accuracy[pairs], self.logprob[pairs] = accuracy, logprob
        self.probability[pairs] = np.exp(np.minimum(logprob, 0.0))
        self.samples.bad[places] |= bad
        self.evaluations += len(rows) * len(places)

    def bounded(self, score: RankBy) -> Floats:
        """The score that is ranked and raced, in [0, 1]: accuracy, or the reference probability."""
        return self.accuracy if score == "accuracy" else self.probability

    def mean(self, row: int, values: Floats) -> float:
        """Mean over the good samples that a candidate was asked for; NaN without any."""
        seen = values[row, ~self.samples.bad & ~np.isnan(self.accuracy[row])]
        # exactly rounded: equal scores are equal in whatever order the samples came
        return math.fsum(seen) / len(seen) if len(seen) else math.nan

    def second(self, row: int, score: RankBy) -> float:
        """What orders rows of equal score, higher is better; 0 where the score is the reference probability itself."""
        return second_score(self.mean(row, self.probability)) if score == "accuracy" else 0.0

    def num_good(self, row: int) -> int:
        """Good samples that a candidate was asked for."""
        return int(np.sum(~self.samples.bad & ~np.isnan(self.accuracy[row])))

    def check_scored(self) -> None:
        """Raise ValueError if all samples are bad."""
        if self.samples.bad.all():
            raise ValueError(f"expected a sample with a score for every mask, got {len(self.samples.bad)} bad ones")

    def ranked(self, rows: Sequence[int], score: RankBy) -> list[int]:
        """Rows by falling mean, equal ones by `second`, what is equal in both the earlier first."""
        return sorted(rows, key=lambda row: (-self.mean(row, self.bounded(score)), -self.second(row, score), row))

    def proves(self, score: RankBy, better: Sequence[int], worse: Sequence[int], alpha: float) -> NDArray[np.bool_]:
        """Whether rows are proven better than others on samples that both have seen, the first of each cluster.

        Bool ``[worse, better]``. The probability that an entry whose "worse" has no smaller true mean is ever True, in
        any round, is at most ``alpha``.
        """
        values = self.bounded(score)[:, self.samples.is_first & ~self.samples.bad]
        differences = values[list(better)][None] - values[list(worse)][:, None]
        # where one of the two was not asked, a difference of 0 leaves the evidence as it is
        evidence = log_evidence(np.where(np.isfinite(differences), differences, 0.0))
        return evidence.max(axis=-1, initial=0.0) >= -math.log(alpha)

    def evidence_to_drop(self, score: RankBy, rows: ArrayLike, rivals: NDArray[np.int64], margin: float) -> Floats:
        """Evidence that not all rivals of a row would end more than ``margin`` below it, were all samples spent.

        Samples come in random order, without replacement: were a rival to end so far below, the mean difference of
        those that are left would follow from that of those before, and the next one is drawn from what is left.

        Gives ``[rows, any number]``: the most that there was after any sample, see
        `lit_depth.functional.statistics.log_evidence`. The rivals, ``[rows, any number, places]``, were each chosen
        before its sample was seen; -1 = none.
        """
        places = np.flatnonzero(~self.samples.bad)
        values, opponents = self.bounded(score)[:, places], rivals[..., places]
        index = np.asarray(rows, dtype=np.int64)
        # [rows, any number, places]: the sum of each rival up to a place, less that of the row
        sums = np.cumsum(np.nan_to_num(values), axis=-1)
        before = np.concatenate([np.zeros_like(sums[:, :1]), sums[:, :-1]], axis=-1)
        columns = np.arange(len(places))
        lead = before[opponents, columns] - before[index][:, None]
        differences = values[opponents, columns] - values[index][:, None]
        # where one of the two was not asked, nothing is learnt
        seen = (opponents >= 0) & np.isfinite(differences)
        bounds = (-margin * len(places) - lead) / (len(places) - columns)
        evidence = log_evidence(np.where(seen, differences, 0.0), np.where(seen, bounds, 0.0))
        return evidence.max(axis=-1, initial=0.0)


def race(table: ScoreTable, batch: int, rule: Rule) -> Outcome:
    """Spend samples, round by round, on the candidates whose place is still open.

    After a round the ``width`` best are the beam. In the next one every candidate is compared with one of them, its
    rival; whoever was a rival is a finalist. A candidate that is neither in the beam nor a finalist is dropped when it
    is settled that not all its rivals would end more than epsilon below it. The race ends when no other candidates are
    left, and the same is settled of each of them against the first alone.

    So the best candidate is dropped only if a finalist comes within epsilon of it, or by mistake. Rivals are chosen
    before the samples that they are compared on: however often they change, the evidence against a candidate is the
    gain of a single bet. And there is one best candidate to be wronged. Hence ``rule.drop`` needs no correction for the
    number of candidates, rivals or rounds. As finalists are not dropped, epsilon does not add up over rounds.

    Raises:
        ValueError: See `ScoreTable.ask`; no sample with a score for every mask.
    """
    alive = list(range(len(table.masks)))
    rivals = np.full(table.accuracy.shape, -1)  # -1: not compared at this place
    dropped: dict[int, RankBy] = {}
    finalists: set[int] = set()
    beam: list[int] = []
    settled = False
    # nobody leaves a beam that holds them all
    rounds = table.samples.rounds(batch if len(alive) > rule.width else len(table.samples.order))
    # rivals come with the second round, so nobody could be dropped before a third: two would save nothing. In one, all
    # is as in the full search, what is proven too
    if len(rounds) == 2:
        rounds = [np.concatenate(rounds)]
    for places in rounds:
        if beam:
            rivals[np.ix_(np.array(alive), places)] = _choose_rivals(table, alive, beam, rule)[:, None]
            finalists |= set(rivals[:, places[0]].tolist()) - {-1}
        table.ask(alive, places)
        if places is rounds[-1]:
            break
        beam = table.ranked(alive, rule.rank_by)[: rule.width]
        dropped |= _outdone(table, [row for row in alive if row not in finalists.union(beam)], rivals, rule)
        alive = [row for row in alive if row not in dropped]
        if finalists.union(beam).issuperset(alive) and _leads(table, table.ranked(alive, rule.rank_by), rule):
            settled = True
            break
    table.check_scored()
    best = table.ranked(alive, rule.rank_by)[0]
    proven = table.proves(rule.rank_by, sorted({best, *finalists}), range(len(table.masks)), rule.proof)
    return Outcome(dropped, frozenset(np.flatnonzero(proven.any(axis=1)).tolist()), settled)


def _choose_rivals(table: ScoreTable, rows: list[int], beam: list[int], rule: Rule) -> NDArray[np.int64]:
    """For each row the member of the beam, other than itself, with the most evidence so far."""
    pairs = np.broadcast_to(np.array(beam)[None, :, None], (len(rows), len(beam), len(table.samples.order)))
    evidence = table.evidence_to_drop(rule.rank_by, rows, pairs, rule.epsilon)
    is_self = np.array(rows)[:, None] == np.array(beam)
    best = np.where(is_self, -np.inf, evidence).argmax(axis=1)
    return np.where(np.take_along_axis(is_self, best[:, None], axis=1)[:, 0], -1, np.array(beam)[best])


def _leads(table: ScoreTable, rows: list[int], rule: Rule) -> bool:
    """Whether none of the other rows would end more than epsilon above the first."""
    rivals = np.full((len(rows) - 1, 1, len(table.samples.order)), rows[0])
    evidence = table.evidence_to_drop(rule.rank_by, rows[1:], rivals, rule.epsilon)
    return bool((evidence >= -math.log(rule.drop)).all())


def _outdone(table: ScoreTable, rows: list[int], rivals: NDArray[np.int64], rule: Rule) -> dict[int, RankBy]:
    """Rows whose rivals would come within epsilon of them, and the score that settled it."""
    if not rows:
        return {}
    against = {
        score: table.evidence_to_drop(score, rows, rivals[rows][:, None], rule.epsilon)[:, 0]
        for score in {rule.rank_by, "reference_logprob"}
    }
    settled: dict[int, RankBy] = {}
    for index, row in enumerate(rows):
        by_score, by_logprob = against[rule.rank_by][index], against["reference_logprob"][index]
        if by_score >= -math.log(rule.drop):
            settled[row] = rule.rank_by
        elif by_logprob >= -math.log(rule.drop) and by_score >= -math.log(rule.confirm):
            settled[row] = "reference_logprob"
    return settled
