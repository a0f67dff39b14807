"""Pairwise search: all singles and pairs are scored, and a second-order model of them proposes the larger ablations.

A beam sees pairs of what it kept, so two units that are cheap together with a third, but not the best at their own
size, are lost to it. Here every pair is scored once, and sets of any size are compared by what
`lit_depth.functional.search.second_order` predicts of them. Predictions propose, scores decide: the best predicted
ablations of each size are scored on all samples, and so are random ones, which show how far predictions are off.

Accuracies of few samples are often equal. Where they are, predicted or scored, the reference probability decides.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from lit_depth.functional.arguments import check_least, check_share, checked
from lit_depth.functional.search.ablations import Removed, ablation_masks, free_units
from lit_depth.functional.search.beam import (
    MAX_COMBINATIONS,
    SearchLevel,
    SearchResult,
    describe_race,
    level_rule,
    recall_scores,
)
from lit_depth.functional.search.racing import (
    Evaluate,
    MaskScores,
    RankBy,
    Samples,
    ScoreTable,
    as_scores,
    race,
    second_score,
)
from lit_depth.functional.search.second_order import (
    SecondOrder,
    best_predicted,
    fit_second_order,
    held_out_ablations,
    singles_and_pairs,
)
from lit_depth.functional.statistics import Floats


class Prediction(NamedTuple):
    """Drop in the mean score, from the full model's, of one ablation.

    Attributes:
        removed: Its units.
        additive: Sum of its units' own drops.
        predicted: With the interactions of all its pairs.
        drop: As it was then scored.
    """

    removed: Removed
    additive: float
    predicted: float
    drop: float


class PairwiseResult(NamedTuple):
    """What a pairwise search found.

    Attributes:
        search: As of a beam search: of one and two removed units every ablation, of more the proposed and the random
            ones. Nothing was raced. Equal accuracies are ordered by the reference probability.
        model: The second-order model of the mean score.
        held_out: Predictions of random ablations, against their scores: how far the model can be trusted.
        proposed: The same of the ablations that it proposed, which look better than they are.
    """

    search: SearchResult
    model: SecondOrder
    held_out: tuple[Prediction, ...]
    proposed: tuple[Prediction, ...]


@checked
def pairwise_search(
    evaluate: Evaluate,
    num_units: int,
    num_samples: int,
    *,
    beam_width: int = 3,
    max_removed: int = 4,
    num_held_out: int = 16,
    keep: Sequence[int] = (),
    rank_by: RankBy = "accuracy",
    delta: float = 0.05,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> PairwiseResult:
    """Score the full model, every unit, every pair and some random ablations; then what these predict to be best.

    Two calls of ``evaluate``, each with all samples.

    Args:
        evaluate: As for `lit_depth.functional.beam_search`, and so all that is not named here.
        beam_width: Ablations of each size, from three units on, that are proposed and scored.
        max_removed: Largest size, at least 3.
        num_held_out: Random ablations of three units and more, in sizes that take turns.
        seed: Seed of these.

    Raises:
        ValueError: More than 5,000 singles and pairs, and as `beam_search`.

    Example:
        >>> import torch
        >>> def evaluate(masks, positions):  # units cost their index in percent; 0 and 1 stand in for one another
        ...     drop = (~masks * torch.arange(5)).sum(1) / 100 + 0.2 * (~masks[:, :2]).all(1)
        ...     return MaskScores((1 - drop).double().repeat(len(positions), 1).T.numpy())
        >>> found = pairwise_search(evaluate, 5, 10, max_removed=3, beam_width=1)
        >>> found.search.levels[2].best.removed, round(float(found.model.interactions[0, 1]), 2)
        ((0, 2, 3), 0.2)
    """
    free = free_units(num_units, max_removed, keep)
    check_least(3, max_removed=max_removed)
    check_least(1, beam_width=beam_width, num_samples=num_samples)
    check_share(delta=delta)
    known = singles_and_pairs(free)
    if len(known) - 1 > MAX_COMBINATIONS:
        raise ValueError(
            f"expected at most {MAX_COMBINATIONS:,} singles and pairs, got {len(known) - 1:,} of {len(free)} units; "
            "keep more, or use a beam"
        )
    held_out = held_out_ablations(num_units, free, num_held_out, max_removed, seed)
    masks = ablation_masks(num_units, [*known, *held_out])
    first = as_scores(evaluate(masks, range(num_samples)))
    model = fit_second_order(free, _mean_scores(first, rank_by)[: len(known)])
    ties = _tie_breaker(first, rank_by)
    second_model = None if ties is None else fit_second_order(free, ties[: len(known)])
    proposed = [
        removed
        for size in range(3, max_removed + 1)
        for removed in best_predicted(model, num_units, size, beam_width, second=second_model)
        if removed not in held_out
    ]
    second = as_scores(evaluate(ablation_masks(num_units, proposed), range(num_samples))) if proposed else None
    every = [*known, *held_out, *proposed]
    scores = first if second is None else _join(first, second)
    ordered = sorted(removed for removed in every if removed)
    recall = recall_scores(ablation_masks(num_units, every), scores)
    levels, bad = _levels(recall, num_units, ordered, free, num_samples, clusters, rank_by, beam_width, delta)
    scored = {ablation.removed: ablation.score for level in levels for ablation in level.ablations}
    predictions = [
        tuple(
            Prediction(removed, float(additive), float(predicted), float(model.full) - scored[removed])
            for removed, additive, predicted in zip(
                removed_sets, model.predict_drops(removed_sets, 1), model.predict_drops(removed_sets)
            )
        )
        for removed_sets in (held_out, proposed)
    ]
    return PairwiseResult(SearchResult(levels, bad), model, predictions[0], predictions[1])


def _mean_scores(found: MaskScores, rank_by: RankBy) -> Floats:
    """Mean of the score that ranks, over the samples that all masks have one for; ``[masks]``."""
    accuracy, logprob, bad = found.as_arrays()
    if bad.all():
        raise ValueError(f"expected a sample with a score for every mask, got {bad.size} bad ones")
    values = accuracy if rank_by == "accuracy" else np.exp(np.minimum(logprob, 0.0))
    if np.isnan(values[:, ~bad]).any():
        raise ValueError(f"expected scores to rank by {rank_by}, which evaluate does not measure")
    # exactly rounded, as the scores of a search are: equal scores have equal means
    return np.array([math.fsum(row) / len(row) for row in values[:, ~bad]])


def _tie_breaker(found: MaskScores, rank_by: RankBy) -> Floats | None:
    """Mean reference probability of each mask, where accuracy ranks and the probability is known."""
    if rank_by != "accuracy" or found.reference_logprob is None:
        return None
    return np.array([second_score(mean) for mean in _mean_scores(found, "reference_logprob")])


def _join(first: MaskScores, second: MaskScores) -> MaskScores:
    accuracy = np.concatenate([first.accuracy, second.accuracy])
    if first.reference_logprob is None or second.reference_logprob is None:
        return MaskScores(accuracy)
    return MaskScores(accuracy, np.concatenate([first.reference_logprob, second.reference_logprob]))


def _levels(
    recall: Evaluate,
    num_units: int,
    ablations: Sequence[Removed],
    free: Sequence[int],
    num_samples: int,
    clusters: Sequence[Hashable] | None,
    rank_by: RankBy,
    beam_width: int,
    delta: float,
) -> tuple[tuple[SearchLevel, ...], tuple[int, ...]]:
    """The ablations by size, as a beam search without racing describes them; and the bad samples."""
    samples = Samples(num_samples, clusters, seed=0)
    levels: list[SearchLevel] = []
    beam: tuple[Removed, ...] = ((),)
    most = max(map(len, ablations))
    for size in range(1, most + 1):
        of_size = [removed for removed in ablations if len(removed) == size]
        parents = {each: tuple(parent for parent in beam if set(parent) < set(each)) for each in of_size}
        rule = level_rule(len(free), size, most, rank_by, beam_width, epsilon=0.0, delta=delta)
        table = ScoreTable(recall, ablation_masks(num_units, of_size), samples)
        levels.append(describe_race(table, parents, race(table, num_samples, rule), rule))
        beam = levels[-1].beam
    return tuple(levels), tuple(sorted(samples.order[samples.bad].tolist()))
