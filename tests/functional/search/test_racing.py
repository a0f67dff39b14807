"""The samples of a race, the table of their scores, and what is proven of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from lit_depth.functional.search.racing import MaskScores, Rule, Samples, ScoreTable, as_scores, race

RULE = Rule("accuracy", width=1, epsilon=0.02, drop=0.01, confirm=0.05, proof=0.01)
MASKS = ~torch.eye(4, dtype=torch.bool)


def table_of(accuracy: np.ndarray, samples: Samples | None = None) -> ScoreTable:
    """Scores ``[4, samples]`` of the masks, with the mask's row read off its removed unit."""

    def evaluate(masks: torch.Tensor, positions: Sequence[int]) -> MaskScores:
        rows = (~masks).int().argmax(1).numpy()
        return MaskScores(accuracy[np.ix_(rows, np.array(positions))])

    return ScoreTable(evaluate, MASKS, samples or Samples(accuracy.shape[1], None, seed=0))


def test_samples_are_dealt_in_a_random_order_in_which_each_cluster_counts_once():
    samples = Samples(6, ["a", "a", "b", "b", "b", "c"], seed=3)
    assert sorted(samples.order) == list(range(6)) and samples.is_first.sum() == 3
    seen = [["a", "a", "b", "b", "b", "c"][position] for position in samples.order]
    assert samples.is_first.tolist() == [cluster not in seen[:place] for place, cluster in enumerate(seen)]
    before = samples.order.tolist()
    samples.bad[0] = True
    samples.shuffle()
    assert samples.order.tolist() != before and samples.order[samples.bad].tolist() == before[:1]


def test_rounds_grow_by_half_of_what_came_before_and_leave_out_bad_samples():
    samples = Samples(100, None, seed=0)
    samples.bad[:10] = True
    rounds = samples.rounds(batch=10)
    assert np.concatenate(rounds).tolist() == list(range(10, 100))
    assert [len(places) for places in rounds] == [10, 10, 10, 10, 20, 30]
    samples.bad[:] = True
    assert samples.rounds(batch=10) == []


def test_the_table_counts_what_it_asks_for_and_a_bad_sample_counts_for_no_mask():
    accuracy = np.tile([1.0, 0.0, 1.0, 1.0], (4, 1))
    accuracy[2, 3] = np.nan
    table = table_of(accuracy)
    table.ask(range(4), np.arange(4))
    assert (table.evaluations, table.full) == (16, 16)
    assert [table.num_good(row) for row in range(4)] == [3] * 4
    assert table.mean(0, table.accuracy) == pytest.approx(2 / 3)
    assert table.ranked([3, 1, 2], "accuracy") == [1, 2, 3]  # of equal ones the earlier first


@pytest.mark.parametrize("accuracy", [np.full((4, 5), 1.5), np.full((4, 5), -0.1)])
def test_scores_outside_their_range_are_refused(accuracy):
    with pytest.raises(ValueError, match="expected accuracy between 0 and 1"):
        table_of(accuracy).ask(range(4), np.arange(5))


def test_what_is_better_on_every_sample_is_proven_and_its_equal_is_not():
    accuracy = np.ones((4, 200))
    accuracy[1] = 0.0
    table = table_of(accuracy)
    table.ask(range(4), np.arange(200))
    proven = table.proves("accuracy", better=[0], worse=range(4), alpha=0.01)[:, 0]
    assert proven.tolist() == [False, True, False, False]


def test_a_race_drops_the_hopeless_early_and_keeps_the_best():
    accuracy = np.random.default_rng(0).random((4, 512)) < np.array([[0.2], [0.9], [0.3], [0.1]])
    table = table_of(accuracy.astype(float))
    outcome = race(table, 32, RULE)
    assert outcome.settled and 1 not in outcome.dropped and 1 not in outcome.beaten
    assert outcome.beaten == {0, 2, 3} and table.evaluations < table.full
    assert set(outcome.dropped.values()) <= {"accuracy"}


@pytest.mark.parametrize(("num_samples", "asked"), [(32, [32]), (33, [33]), (64, [64]), (65, [32, 32])])
def test_a_race_that_could_drop_nobody_is_one_round(num_samples, asked):
    """Candidates are compared with rivals from the second round on. Of three rounds the last one is saved here."""
    accuracy = np.zeros((4, num_samples))
    accuracy[1] = 1.0
    calls: list[int] = []
    table = table_of(accuracy)
    evaluate = table.evaluate
    table.evaluate = lambda masks, positions: calls.append(len(positions)) or evaluate(masks, positions)
    outcome = race(table, 32, RULE)
    assert calls == asked and 1 not in outcome.beaten


def test_only_bad_samples_are_an_error():
    with pytest.raises(ValueError, match="with a score for every mask, got 8 bad ones"):
        race(table_of(np.full((4, 8), np.nan)), 4, RULE)


def test_scores_are_told_from_other_values():
    accuracy, logprob, bad = as_scores(MaskScores(np.array([[1.0, np.nan]]), np.array([[-math.inf, -1.0]]))).as_arrays()
    assert bad.tolist() == [False, True] and logprob[0, 0] == -math.inf and accuracy[0, 0] == 1.0
    with pytest.raises(ValueError, match="expected evaluate to return MaskScores, got 3"):
        as_scores(3)
