"""Pairwise search against exhaustive search, where effects end with pairs and where they do not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_depth.functional import MaskScores, exhaustive_search
from lit_depth.functional.search.pairwise import pairwise_search

NUM_UNITS, NUM_SAMPLES = 7, 12


class SecondOrderScores:
    """Accuracies in [0, 1] that singles and pairs explain, but for ``third`` on every set with units 0, 1 and 2."""

    def __init__(self, seed: int, third: float = 0.0, bad: Sequence[int] = ()) -> None:
        generator = np.random.default_rng(seed)
        # multiples of 2^-10 add up exactly, and ties are common
        self.alone = generator.integers(0, 40, (NUM_UNITS, NUM_SAMPLES)) / 1024
        self.pairs = {
            pair: generator.integers(-8, 16, NUM_SAMPLES) / 1024 for pair in itertools.combinations(range(7), 2)
        }
        self.third, self.bad = third, list(bad)
        self.calls: list[int] = []

    def __call__(self, masks: Tensor, positions: Sequence[int]) -> MaskScores:
        assert masks.dtype == torch.bool
        self.calls.append(len(masks))
        rows = np.stack([self.of(tuple((~mask).nonzero().flatten().tolist())) for mask in masks])[:, list(positions)]
        rows[:, [index for index, position in enumerate(positions) if position in self.bad]] = np.nan
        return MaskScores(rows, np.log(np.maximum(rows, 1e-9)))

    def of(self, removed: Sequence[int]) -> np.ndarray:
        score = 0.95 - sum((self.alone[unit] for unit in removed), np.zeros(NUM_SAMPLES))
        score = score - sum((self.pairs[pair] for pair in itertools.combinations(removed, 2)), np.zeros(NUM_SAMPLES))
        return np.clip(score - self.third * ({0, 1, 2} <= set(removed)), 0, 1)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(), (1,), (0, 5)]), st.sampled_from([(), (3,), (0, 7)]))
def test_it_is_exhaustive_search_where_effects_end_with_pairs(seed: int, keep: tuple, bad: tuple) -> None:
    scores, options = SecondOrderScores(seed, bad=bad), {"max_removed": 4, "keep": keep}
    found = pairwise_search(scores, NUM_UNITS, NUM_SAMPLES, beam_width=3, num_held_out=5, **options)
    every = exhaustive_search(scores, NUM_UNITS, NUM_SAMPLES, **options)
    for level, expected in zip(found.search.levels, every.levels, strict=True):
        assert level.best.score == expected.best.score
        ranked = [ablation.score for ablation in expected.ablations[:3]]
        assert [ablation.score for ablation in level.ablations[:3]] == ranked
    assert found.search.bad_samples == every.bad_samples == tuple(sorted(bad))
    for each in (*found.held_out, *found.proposed):
        assert each.predicted == pytest.approx(each.drop, abs=1e-9)
    # whatever was tried, its score is that of exhaustive search
    whole = {ablation.removed: ablation.score for level in every.levels for ablation in level.ablations}
    scored = [ablation for level in found.search.levels for ablation in level.ablations]
    assert all(whole[ablation.removed] == ablation.score for ablation in scored)


def test_it_asks_twice_for_all_samples_and_no_mask_twice() -> None:
    scores = SecondOrderScores(0)
    found = pairwise_search(scores, NUM_UNITS, NUM_SAMPLES, beam_width=2, num_held_out=4, max_removed=4)
    known = 1 + 7 + comb(7, 2) + 4
    assert scores.calls[0] == known and len(scores.calls) == 2
    assert found.search.evaluations == (sum(scores.calls) - 1) * NUM_SAMPLES and found.search.saved == 0
    assert len(found.held_out) == 4 and len(found.proposed) == scores.calls[1] <= 4


def test_equal_accuracies_are_told_apart_by_the_reference_probability() -> None:
    """All masks answer alike; unit 6 is the least needed one, then 5, and so on."""

    def evaluate(masks: Tensor, positions: Sequence[int]) -> MaskScores:
        cost = (~masks * (NUM_UNITS - torch.arange(NUM_UNITS))).sum(1).double().numpy()[:, None]
        return MaskScores(np.ones((len(masks), len(positions))), np.repeat(-0.01 * cost, len(positions), axis=1))

    found = pairwise_search(evaluate, NUM_UNITS, NUM_SAMPLES, beam_width=1, max_removed=4, num_held_out=2)
    assert [level.best.removed for level in found.search.levels] == [(6,), (5, 6), (4, 5, 6), (3, 4, 5, 6)]
    assert {each.removed for each in found.proposed} | {each.removed for each in found.held_out} >= {(3, 4, 5, 6)}
    # where the probability is not known the order is lexicographic
    alone = lambda masks, positions: evaluate(masks, positions)._replace(reference_logprob=None)  # noqa: E731
    found = pairwise_search(alone, NUM_UNITS, NUM_SAMPLES, beam_width=1, max_removed=4, num_held_out=2)
    assert [level.best.removed for level in found.search.levels] == [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]


def test_three_that_only_hurt_together_show_in_the_held_out_errors() -> None:
    scores = SecondOrderScores(1, third=0.5)
    found = pairwise_search(scores, NUM_UNITS, NUM_SAMPLES, num_held_out=100, max_removed=3, beam_width=1)
    assert len(found.held_out) == comb(7, 3) and not found.proposed  # every triple was held out
    for each in found.held_out:
        missed = 0.5 if each.removed == (0, 1, 2) else 0.0
        assert each.drop - each.predicted == pytest.approx(missed, abs=0.05)
    # scores decide, not predictions
    assert found.search.levels[2].best.removed != (0, 1, 2)


@pytest.mark.parametrize("rank_by", ["accuracy", "reference_logprob"])
def test_it_is_fitted_to_the_score_that_ranks(rank_by: str) -> None:
    scores = SecondOrderScores(2)
    found = pairwise_search(scores, NUM_UNITS, NUM_SAMPLES, rank_by=rank_by, max_removed=3)
    assert float(found.model.full) == pytest.approx(0.95)
    drop = float((scores.of(()) - scores.of((2,))).mean())
    assert float(found.model.drops[2]) == pytest.approx(drop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_removed": 2}, "max_removed of at least 3, got 2"),
        ({"max_removed": 7}, "between 1 and 6 of 7"),
        ({"beam_width": 0}, "beam_width of at least 1"),
        ({"delta": 0.0}, "delta"),
        ({"num_held_out": -1}, "num_ablations of at least 0"),
    ],
)
def test_mistakes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairwise_search(SecondOrderScores(0), NUM_UNITS, NUM_SAMPLES, **options)


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(ValueError, match="bad ones"):
        pairwise_search(SecondOrderScores(0, bad=range(NUM_SAMPLES)), NUM_UNITS, NUM_SAMPLES)
    without = lambda masks, positions: MaskScores(np.zeros((len(masks), len(positions))))  # noqa: E731
    with pytest.raises(ValueError, match="which evaluate does not measure"):
        pairwise_search(without, NUM_UNITS, NUM_SAMPLES, rank_by="reference_logprob")
    with pytest.raises(ValueError, match="at most 5,000 singles and pairs, got 5,050 of 100 units"):
        pairwise_search(without, 100, NUM_SAMPLES)
