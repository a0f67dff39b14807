"""Beam search over ablations: which units cost least when they are removed together. With racing.

A search is a pure function of an evaluator, which is given masks and sample positions and returns scores. The search
decides from these scores alone, so whoever evaluates from stored records resumes it for free (the same pairs are asked
for again), and several processes that all see all scores take the same way. One call is one round: candidates of one
level that differ in few units, best evaluated in one pass of the engine.

What racing guarantees, each with a probability of at least ``1 - delta`` for all levels of a search together:

- *Nothing is missed that the full search would find.* The best candidate of a level on all samples is dropped only if
  one that was not dropped would come within epsilon of it. Each level spends the samples in a random order of its own,
  and only this order is left to chance: the guarantee holds for any samples, and however the candidates of a level came
  about. Ranked by accuracy, a candidate is also dropped where the reference probability settles it and accuracy
  confirms that at level ``delta``: there the probability is for each level by itself.
- *The tied set of every level holds its candidate with the highest true mean*, for samples (or clusters of them) that
  are independent draws. Levels share their samples, and each level's candidates were chosen on them. So ``delta`` is
  split over the levels and there over all pairs of ablations that *could* have been candidates. This takes many
  samples: a candidate that was dropped early is seldom proven worse, and stays in the tied set.

Neither speaks of the second and third of a beam: they are the best by their means on the samples that were spent.

Equal accuracies are ordered by the reference probability where it is measured, in beams and in what is told: see
`lit_depth.functional.search.racing`.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from lit_depth.functional.arguments import check_least, check_share, checked
from lit_depth.functional.masks import MaskSet
from lit_depth.functional.search.ablations import Removed, ablation_masks, free_units
from lit_depth.functional.search.racing import (
    Evaluate,
    MaskScores,
    Outcome,
    RankBy,
    Rule,
    Samples,
    ScoreTable,
    as_scores,
    race,
    second_score,
)

MAX_COMBINATIONS = 5000


class Ablation(NamedTuple):
    """Units removed together, and what is left.

    Attributes:
        removed: The units, ascending.
        parents: Members of the beam before that it extends; duplicates are merged.
        score: What ranks it, higher is better: mean accuracy, or mean ``exp(reference_logprob)``, see
            `lit_depth.functional.search.racing`.
        accuracy: Mean over its samples.
        reference_logprob: Mean over its samples.
        num_samples: Good samples that the means are over.
        dropped_on: The score that settled it before the race was over; None if it stayed.
        reference_probability: Mean of ``exp(reference_logprob)`` over its samples; NaN where that is not measured. To 6
            digits it orders equal accuracies, higher is better.
    """

    removed: Removed
    parents: tuple[Removed, ...]
    score: float
    accuracy: float
    reference_logprob: float
    num_samples: int
    dropped_on: RankBy | None
    reference_probability: float


class SearchLevel(NamedTuple):
    """All ablations of one size that were looked at.

    Attributes:
        ablations: Best first: those that stayed by falling score, then the dropped ones, whose means are over fewer
            samples, by falling number of samples and score. Equal accuracies are ordered by the mean reference
            probability to 6 digits, and what is equal in both lexicographically by ``removed``.
        beam: The first ``beam_width`` of them: parents of the next level.
        tied: Those not proven worse than another one in the true mean of the score. The first ablation leads them.
        settled: The level ended before the samples were spent: none that was left would end more than epsilon above the
            first.
        evaluations: Pairs (mask, sample) asked for.
        saved: Pairs that the full search asks for besides.
    """

    ablations: tuple[Ablation, ...]
    beam: tuple[Removed, ...]
    tied: tuple[Removed, ...]
    settled: bool
    evaluations: int
    saved: int

    @property
    def best(self) -> Ablation:
        """The first of the ablations."""
        return self.ablations[0]


class SearchResult(NamedTuple):
    """A search by level: level i removes i + 1 units.

    Attributes:
        levels: One for each number of removed units.
        bad_samples: Positions, ascending, of samples that a mask had no score for; they count for no mask of its level
            and are not asked for again. (A level before, whose masks could all be scored on it, has counted it.)
    """

    levels: tuple[SearchLevel, ...]
    bad_samples: tuple[int, ...]

    @property
    def evaluations(self) -> int:
        """Pairs (mask, sample) asked for."""
        return sum(level.evaluations for level in self.levels)

    @property
    def saved(self) -> int:
        """Pairs that the full search of the same candidates asks for besides."""
        return sum(level.saved for level in self.levels)


@checked
def beam_search(
    evaluate: Evaluate,
    num_units: int,
    num_samples: int,
    *,
    beam_width: int = 3,
    max_removed: int = 4,
    keep: Sequence[int] = (),
    rank_by: RankBy = "accuracy",
    racing: bool = True,
    epsilon: float = 0.02,
    delta: float = 0.05,
    batch: int = 64,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> SearchResult:
    """Remove one more unit per level from each of the ``beam_width`` best ablations of the level before.

    With racing, the candidates of a level get ``batch`` new samples per round, later half as many as they had before;
    where that would be two rounds, all at once, because nobody is dropped before a third.
    One is dropped when it is settled that members of the beam, against whom it is compared, would not end more than
    epsilon below it if all samples were spent. The level ends when only those that others were compared with are left,
    and none of them would end more than epsilon above the first. It is settled:

    - ranked by ``reference_logprob``: by the reference probability;
    - ranked by ``accuracy``: by accuracy, or first by the reference probability, where its smaller variance takes fewer
      samples, if accuracy then confirms it at level ``delta`` instead of ``delta / max_removed``.

    What this guarantees is said at the top of this module. Without racing, each level is one call with all samples.

    Args:
        evaluate: Given bool masks ``[M, num_units]`` and ``n`` sample positions in 0..num_samples-1, returns
            `MaskScores` with arrays ``[M, n]`` in this order, the same whenever it is asked.
        num_units: Units that a mask switches (blocks).
        num_samples: Samples of the calibration split.
        beam_width: Ablations kept per level; 1 is greedy search.
        max_removed: Levels.
        keep: Units that are never removed.
        rank_by: The score that decides.
        racing: Whether to stop spending samples on settled candidates; False is the full search.
        epsilon: Difference in the score that does not matter, at least 0. The default is about what the interval of a
            difference on 500 samples cannot tell from 0. Half of it drops far later: to settle that two candidates do
            not differ takes some 6 / epsilon samples, fewer where that is most of all.
        delta: Probability that a guarantee fails, in (0, 1).
        batch: Samples in the first rounds; up to twice as many are one round.
        clusters: Cluster (image) of each sample, where several share one.
        seed: Seed of the orders in which samples are spent.

    Raises:
        ValueError: A beam or batch of 0, more removals than units that may go (one stays active), nothing to remove,
            an index in ``keep`` out of range or repeated, epsilon or delta out of range, wrong scores, no good sample.

    Example:
        >>> import torch
        >>> def evaluate(masks, positions):  # each removed unit costs its index in percent, 2 and 3 together 20 more
        ...     drop = (~masks * torch.arange(4)).sum(1) / 100 + 0.2 * (~masks[:, 2:]).all(1)
        ...     accuracy = (1 - drop).double().repeat(len(positions), 1).T.numpy()
        ...     return MaskScores(accuracy, -drop.double().repeat(len(positions), 1).T.numpy())
        >>> result = beam_search(evaluate, 4, 10, beam_width=2, max_removed=2)
        >>> [(level.best.removed, round(level.best.score, 2)) for level in result.levels]
        [((0,), 1.0), ((0, 1), 0.99)]
    """
    free = free_units(num_units, max_removed, keep)
    check_least(1, beam_width=beam_width, batch=batch)
    check_least(0, epsilon=epsilon, seed=seed)
    check_share(delta=delta)
    samples = Samples(num_samples, clusters, int(seed))
    levels: list[SearchLevel] = []
    beam: tuple[Removed, ...] = ((),)
    for size in range(1, max_removed + 1):
        parents = _extend(beam, free)
        rule = level_rule(len(free), size, max_removed, rank_by, beam_width, epsilon, delta)
        table = ScoreTable(evaluate, ablation_masks(num_units, list(parents)), samples)
        levels.append(describe_race(table, parents, race(table, batch if racing else num_samples, rule), rule))
        samples.shuffle()
        if math.isnan(levels[-1].best.score):
            raise ValueError(f"expected scores to rank by {rank_by}, which evaluate does not measure")
        beam = levels[-1].beam
    bad = sorted(samples.order[samples.bad].tolist())
    return SearchResult(tuple(levels), tuple(bad))


@checked
def exhaustive_search(
    evaluate: Evaluate,
    num_units: int,
    num_samples: int,
    *,
    max_removed: int = 4,
    keep: Sequence[int] = (),
    rank_by: RankBy = "accuracy",
    delta: float = 0.05,
    clusters: Sequence[Hashable] | None = None,
) -> SearchResult:
    """Score every combination of 1 to ``max_removed`` units on all samples, in a single call of ``evaluate``.

    Returns:
        What `beam_search` finds with a beam that holds everything.

    Raises:
        ValueError: More than 5,000 combinations, and as `beam_search`.
    """
    free = free_units(num_units, max_removed, keep)
    count = sum(math.comb(len(free), size) for size in range(1, max_removed + 1))
    if count > MAX_COMBINATIONS:
        raise ValueError(
            f"expected at most {MAX_COMBINATIONS:,} combinations for an exhaustive search, got {count:,} "
            f"(1 to {max_removed} of {len(free)} units); remove fewer units, keep more, or use a beam"
        )
    combinations = [c for size in range(1, max_removed + 1) for c in itertools.combinations(free, size)]
    masks = ablation_masks(num_units, combinations)
    check_least(1, num_samples=num_samples)
    return beam_search(
        recall_scores(masks, as_scores(evaluate(masks, range(num_samples)))),
        num_units,
        num_samples,
        beam_width=count,
        max_removed=max_removed,
        keep=keep,
        rank_by=rank_by,
        racing=False,
        delta=delta,
        clusters=clusters,
    )


def recall_scores(masks: Tensor, found: MaskScores) -> Evaluate:
    """An evaluator of masks whose scores on all samples, ``[masks, samples]``, were found before."""
    accuracy, logprob, bad = found.as_arrays()
    accuracy = np.where(bad, np.nan, accuracy)
    rows = {name: row for row, name in enumerate(MaskSet.of(masks).ids)}

    def recall(masks: Tensor, positions: Sequence[int]) -> MaskScores:
        asked = [rows[name] for name in MaskSet.of(masks).ids]
        pairs = np.ix_(np.array(asked), np.array(positions, dtype=np.int64))
        return MaskScores(accuracy[pairs], None if found.reference_logprob is None else logprob[pairs])

    return recall


@checked
def score_ablations(
    evaluate: Evaluate,
    num_units: int,
    num_samples: int,
    ablations: Sequence[Sequence[int]],
    *,
    rank_by: RankBy = "accuracy",
) -> tuple[Ablation, ...]:
    """Score given ablations on all samples in one call: baselines, or the winners of a search on another split.

    Returns:
        One `Ablation` each, in the order given, without parents.

    Raises:
        ValueError: As `ablation_masks` and `beam_search` for indices and scores.
    """
    samples = Samples(num_samples, None, seed=0)
    table = ScoreTable(evaluate, ablation_masks(num_units, ablations), samples)
    table.ask(range(len(ablations)), samples.rounds(num_samples)[0])
    table.check_scored()
    return tuple(
        _ablation(table, row, tuple(sorted(removed)), (), rank_by, None) for row, removed in enumerate(ablations)
    )


def second_of(ablation: Ablation, rank_by: RankBy) -> float:
    """What orders ablations of equal score, higher is better, see `lit_depth.functional.search.racing`."""
    return second_score(ablation.reference_probability) if rank_by == "accuracy" else 0.0


def level_rule(
    num_free: int, size: int, max_removed: int, rank_by: RankBy, beam_width: int, epsilon: float, delta: float
) -> Rule:
    """The rule of one level, whose share of ``delta`` is the same for each of ``max_removed``."""
    # of each pair that could meet at this level, only the truly better one may be wronged
    pairs, share = max(1, math.comb(math.comb(num_free, size), 2)), delta / max_removed
    return Rule(rank_by, beam_width, epsilon, drop=share, confirm=delta, proof=share / pairs)


def _extend(beam: Sequence[Removed], free: Sequence[int]) -> dict[Removed, tuple[Removed, ...]]:
    """Every ablation with one unit more, in lexicographic order, and the ablations that it extends."""
    parents: dict[Removed, list[Removed]] = {}
    for removed in sorted(beam):
        for unit in free:
            if unit not in removed:
                parents.setdefault(tuple(sorted((*removed, unit))), []).append(removed)
    return {removed: tuple(parents[removed]) for removed in sorted(parents)}


def describe_race(
    table: ScoreTable, parents: dict[Removed, tuple[Removed, ...]], outcome: Outcome, rule: Rule
) -> SearchLevel:
    """The level that a race was run for; ``parents`` has one entry for each row of the table."""
    ablations = {
        row: _ablation(table, row, removed, extended, rule.rank_by, outcome.dropped.get(row))
        for row, (removed, extended) in enumerate(parents.items())
    }
    in_order = {row: place for place, row in enumerate(table.ranked(list(ablations), rule.rank_by))}
    order = sorted(ablations, key=lambda row: (row in outcome.dropped, -ablations[row].num_samples, in_order[row]))
    return SearchLevel(
        ablations=tuple(ablations[row] for row in order),
        beam=tuple(ablations[row].removed for row in order[: rule.width]),
        tied=tuple(ablations[row].removed for row in order if row == order[0] or row not in outcome.beaten),
        settled=outcome.settled,
        evaluations=table.evaluations,
        saved=table.full - table.evaluations,
    )


def _ablation(
    table: ScoreTable,
    row: int,
    removed: Removed,
    parents: tuple[Removed, ...],
    rank_by: RankBy,
    dropped_on: RankBy | None,
) -> Ablation:
    return Ablation(
        removed=removed,
        parents=parents,
        score=table.mean(row, table.bounded(rank_by)),
        accuracy=table.mean(row, table.accuracy),
        reference_logprob=table.mean(row, table.logprob),
        num_samples=table.num_good(row),
        dropped_on=dropped_on,
        reference_probability=table.mean(row, table.probability),
    )
