"""Search over ablations, against brute force on random tables of scores, and simulated races with known qualities."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lit_depth.functional import (
    Ablation,
    MaskScores,
    SearchResult,
    ablation_masks,
    beam_search,
    exhaustive_search,
    score_ablations,
)
from lit_depth.functional.search import racing as racing
from lit_depth.functional.search.racing import Evaluate

Removed = tuple[int, ...]
DISCRETE = [0.0, 0.25, 0.5, 1.0]  # sums of few of them are exact, and ties are common


class Table:
    """An evaluator over stored scores, which remembers what it was asked.

    Args:
        scores: For each ablation accuracy ``[num_samples]`` and reference log-probability ``[num_samples]``.
    """

    def __init__(self, scores: dict[Removed, tuple[np.ndarray, np.ndarray]]) -> None:
        self.scores = scores
        self.calls: list[tuple[list[Removed], list[int]]] = []

    def __call__(self, masks: Tensor, positions: Sequence[int]) -> MaskScores:
        assert masks.dtype == torch.bool and len(positions) == len(set(positions))
        removed = [tuple((~mask).nonzero().flatten().tolist()) for mask in masks]
        self.calls.append((removed, list(positions)))
        return MaskScores(*(np.stack([self.scores[r][i][list(positions)] for r in removed]) for i in (0, 1)))

    @property
    def cells(self) -> list[tuple[Removed, int]]:
        return [(r, position) for removed, positions in self.calls for r in removed for position in positions]

    @property
    def num_samples(self) -> int:
        return len(next(iter(self.scores.values()))[0])


def combinations(num_units: int, max_removed: int) -> list[Removed]:
    return [c for size in range(1, max_removed + 1) for c in itertools.combinations(range(num_units), size)]


def random_table(seed: int, num_units: int, max_removed: int, num_samples: int, spread: float = 0.0) -> Table:
    """Scores that share their samples' difficulty; with ``spread`` the ablations differ in quality."""
    generator = np.random.default_rng(seed)
    difficulty = generator.random(num_samples)
    scores = {}
    for removed in combinations(num_units, max_removed):
        ease = 0.5 + spread * generator.normal() + 0.5 * (0.5 - difficulty) + 0.3 * generator.normal(size=num_samples)
        accuracy = np.array(DISCRETE)[np.digitize(ease, [0.3, 0.5, 0.7])]
        scores[removed] = accuracy, np.minimum(0, np.log(np.clip(ease, 0.01, 1)))
    return Table(scores)


def exact_mean(values: np.ndarray) -> Fraction:
    return sum(map(Fraction, values.tolist()), Fraction()) / len(values)


def second(table: Table, removed: Removed) -> float:
    """What orders equal accuracies."""
    return round(math.fsum(np.exp(table.scores[removed][1])) / table.num_samples, 6)


def plain_beam(table: Table, num_units: int, width: int, max_removed: int, keep: Sequence[int]) -> list[list[Removed]]:
    """The ranking of each level by exact mean accuracy, the slow way."""
    levels: list[list[Removed]] = []
    beam: list[Removed] = [()]
    for _ in range(max_removed):
        candidates = {
            tuple(sorted({*b, unit})) for b in beam for unit in range(num_units) if unit not in b and unit not in keep
        }
        key = {each: (-exact_mean(table.scores[each][0]), -second(table, each), each) for each in candidates}
        levels.append(sorted(candidates, key=key.__getitem__))
        beam = levels[-1][:width]
    return levels


def ranking(result: SearchResult) -> list[list[Removed]]:
    return [[ablation.removed for ablation in level.ablations] for level in result.levels]


# --- the full search


@pytest.mark.parametrize("rank_by", ["accuracy", "reference_logprob"])
def test_full_width_equals_exhaustive_equals_brute_force(rank_by: str) -> None:
    table = random_table(0, 6, 4, 20)
    column = ["accuracy", "reference_logprob"].index(rank_by)
    exhaustive = exhaustive_search(table, 6, 20, max_removed=4, rank_by=rank_by)
    assert len(table.calls) == 1 and len(table.cells) == 56 * 20
    beam = beam_search(table, 6, 20, beam_width=56, max_removed=4, rank_by=rank_by, racing=False)
    assert beam == exhaustive
    for size, level in enumerate(beam.levels, 1):
        means = {}
        for removed in itertools.combinations(range(6), size):
            values = table.scores[removed][column]
            means[removed] = float(np.mean(values if column == 0 else np.exp(values)))
        ties = {removed: second(table, removed) if column == 0 else 0.0 for removed in means}
        in_order = sorted(means, key=lambda removed: (-means[removed], -ties[removed], removed))
        assert [a.removed for a in level.ablations] == in_order
        for ablation in level.ablations:
            assert ablation.score == pytest.approx(means[ablation.removed], abs=1e-12)
            assert ablation.parents == tuple(p for p in itertools.combinations(ablation.removed, size - 1))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4), st.sets(st.integers(0, 5), max_size=2))
def test_without_racing_levels_are_ranked_by_plain_means(seed: int, width: int, max_removed: int, keep: set) -> None:
    table = random_table(seed, 6, 4, 6)
    options = {"beam_width": width, "max_removed": max_removed, "keep": sorted(keep), "racing": False}
    result = beam_search(table, 6, 6, **options)
    assert ranking(result) == plain_beam(table, 6, width, max_removed, sorted(keep))
    assert [len(level.ablations) * 6 for level in result.levels] == [level.evaluations for level in result.levels]
    assert result.saved == 0 and len(table.calls) == max_removed
    assert all(a.num_samples == 6 and a.dropped_on is None for level in result.levels for a in level.ablations)


@pytest.mark.parametrize("racing_on", [True, False])
def test_equal_accuracies_go_by_the_reference_probability_and_then_by_their_units(racing_on: bool) -> None:
    """All answer alike; removing unit 3 costs the least probability, then 2; 0 and 1 cost the same up to rounding."""
    cost = np.array([0.4, 0.4 + 1e-8, 0.2, 0.1])

    def evaluate(masks: Tensor, positions: Sequence[int]) -> MaskScores:
        logprob = -(~masks).double().numpy() @ cost
        return MaskScores(np.ones((len(masks), len(positions))), np.repeat(logprob[:, None], len(positions), axis=1))

    def order(evaluate: Evaluate, size: int) -> list[Removed]:
        found = beam_search(evaluate, 4, 40, beam_width=2, max_removed=2, racing=racing_on, batch=10)
        return [ablation.removed for ablation in found.levels[size - 1].ablations if ablation.dropped_on is None]

    assert order(evaluate, 1)[:2] == [(3,), (2,)] and order(evaluate, 2)[0] == (2, 3)
    assert order(lambda *asked: MaskScores(evaluate(*asked).accuracy), 1)[:2] == [(0,), (1,)]
    if not racing_on:
        assert order(evaluate, 1) == [(3,), (2,), (0,), (1,)]


def test_width_one_is_greedy() -> None:
    table = random_table(1, 6, 5, 30)
    result = beam_search(table, 6, 30, beam_width=1, max_removed=5, racing=False)
    removed: Removed = ()
    for level in result.levels:
        extended = [tuple(sorted({*removed, unit})) for unit in range(6) if unit not in removed]
        removed = min(extended, key=lambda r: (-exact_mean(table.scores[r][0]), -second(table, r), r))
        assert level.best.removed == removed and level.beam == (removed,)
        assert len(level.best.parents) == 1


@pytest.mark.parametrize("options", [{}, {"racing": False}, {"batch": 7}, {"clusters": [i // 3 for i in range(90)]}])
def test_no_cell_is_asked_for_twice(options: dict) -> None:
    """A candidate that extends several members of the beam is one candidate."""
    table = random_table(2, 7, 4, 90, spread=0.3)
    result = beam_search(table, 7, 90, beam_width=4, **options)
    assert any(len(ablation.parents) > 1 for level in result.levels for ablation in level.ablations)
    assert len(table.cells) == len(set(table.cells)) == result.evaluations
    for before, level in zip(result.levels, result.levels[1:]):
        for ablation in level.ablations:
            expected = [b for b in before.beam if set(b) < set(ablation.removed)]
            assert list(ablation.parents) == sorted(expected)


def test_reference_logprob_is_ranked_as_a_probability() -> None:
    # one hopeless sample outweighs nine good ones in the mean of logarithms, not in that of probabilities
    good, even = np.array([-0.1] * 9 + [-50.0]), np.full(10, -1.0)
    table = Table({(0,): (np.zeros(10), even), (1,): (np.zeros(10), good), (2,): (np.zeros(10), np.full(10, -np.inf))})
    (level,) = beam_search(table, 3, 10, max_removed=1, rank_by="reference_logprob").levels
    assert ranking(SearchResult((level,), ())) == [[(1,), (0,), (2,)]]
    assert level.best.score == pytest.approx(0.9 * math.exp(-0.1)) and level.best.reference_logprob < -1
    assert level.ablations[2].score == 0.0 and level.ablations[2].reference_logprob == -math.inf


# --- bad samples


@pytest.mark.parametrize("racing_on", [True, False])
def test_bad_samples_count_for_no_mask(racing_on: bool) -> None:
    table = random_table(3, 5, 3, 40)
    good = [i for i in range(40) if i not in (4, 17)]
    rest = Table({removed: (a[good], p[good]) for removed, (a, p) in table.scores.items()})
    expected = beam_search(rest, 5, 38, max_removed=3, racing=False)
    for accuracy, logprob in table.scores.values():
        accuracy[4] = logprob[17] = np.nan
    # a single round holds all samples
    result = beam_search(table, 5, 40, max_removed=3, racing=racing_on)
    assert result.bad_samples == (4, 17)
    assert [level.ablations for level in result.levels] == [level.ablations for level in expected.levels]
    # known to be bad from the first level on: not asked for again
    assert [set(positions) >= {4, 17} for _, positions in table.calls] == [True, False, False]


def test_sample_that_is_bad_for_one_mask_counts_for_none() -> None:
    table = random_table(4, 4, 1, 30)
    table.scores[(2,)][0][5] = np.nan
    for search in (beam_search, exhaustive_search):
        result = search(table, 4, 30, max_removed=1)
        assert result.bad_samples == (5,)
        for ablation in result.levels[0].ablations:
            assert ablation.num_samples == 29
            assert ablation.accuracy == pytest.approx(np.delete(table.scores[ablation.removed][0], 5).mean())


@pytest.mark.parametrize("rows", [[(0,), (1,)], [(1,)]])
def test_no_good_sample_is_an_error(rows: list) -> None:
    table = random_table(4, 2, 1, 100)
    for removed in rows:
        table.scores[removed][1][:] = np.nan
    with pytest.raises(ValueError, match="got 100 bad ones"):
        beam_search(table, 2, 100, max_removed=1)
    with pytest.raises(ValueError, match="got 100 bad ones"):
        score_ablations(table, 2, 100, [(0,), (1,)])


def test_first_round_of_bad_samples_only() -> None:
    table = random_table(5, 4, 1, 100)
    order = racing.Samples(100, None, 0).order
    for accuracy, _ in table.scores.values():
        accuracy[order[:64]] = np.nan
    result = beam_search(table, 4, 100, max_removed=1)
    assert [ablation.num_samples for ablation in result.levels[0].ablations] == [36] * 4


# --- racing: laws


def settled_problem(seed: int, num_samples: int = 512) -> Table:
    """Three of seven units cost little, the others much."""
    generator = np.random.default_rng(seed)
    scores = {}
    for removed in combinations(7, 3):
        probability = np.clip(0.9 - 0.3 * sum(unit > 2 for unit in removed), 0.02, 1)
        right = generator.random(num_samples) < probability
        scores[removed] = right.astype(float), np.log(probability * generator.uniform(0.9, 1, num_samples))
    return Table(scores)


@pytest.mark.parametrize("rank_by", ["accuracy", "reference_logprob"])
@pytest.mark.parametrize("batch", [16, 64, 100])
def test_racing_drops_the_hopeless_and_never_spends_more(rank_by: str, batch: int) -> None:
    table = settled_problem(0)
    options = {"max_removed": 3, "rank_by": rank_by}
    full = beam_search(table, 7, 512, racing=False, **options)
    table.calls.clear()
    result = beam_search(table, 7, 512, batch=batch, **options)
    for level in result.levels:
        assert level.evaluations + level.saved == len(level.ablations) * 512
        assert level.evaluations == sum(ablation.num_samples for ablation in level.ablations)
        stayed = {a.removed for a in level.ablations if a.dropped_on is None}
        assert set(level.beam) <= stayed
        spent = {a.num_samples for a in level.ablations if a.removed in stayed}
        assert len(spent) == 1 and (level.settled or spent == {512})
        assert all(a.num_samples <= min(spent) for a in level.ablations)
        # what was dropped would not have been chosen, and what was chosen is as good, up to epsilon
        values = {r: table.scores[r][0] if rank_by == "accuracy" else np.exp(table.scores[r][1]) for r in table.scores}
        best = max(values[a.removed].mean() for a in level.ablations)
        assert values[level.best.removed].mean() >= best - 0.02
    assert result.saved > 0.3 * full.evaluations
    assert set(result.levels[0].beam) == set(full.levels[0].beam) == {(0,), (1,), (2,)}
    # rounds shrink, and a round is one call
    for (before, _), (after, positions) in zip(table.calls, table.calls[1:]):
        assert len(positions) <= max(batch, 512 // 3)
        if len(before[0]) == len(after[0]):
            assert set(after) <= set(before)


@pytest.mark.parametrize("batch", [60, 59, 30])
def test_racing_of_up_to_two_rounds_is_the_full_search(batch) -> None:
    table = random_table(6, 6, 3, 60, spread=0.3)
    full = beam_search(table, 6, 60, max_removed=3, racing=False)
    result = beam_search(table, 6, 60, max_removed=3, batch=batch)
    assert result == full and result.saved == 0


def test_same_arguments_same_result_and_seed_is_only_the_order() -> None:
    table = settled_problem(1)
    first, second = (beam_search(table, 7, 512, max_removed=3) for _ in range(2))
    assert first == second
    half = len(table.calls) // 2
    assert table.calls[:half] == table.calls[half:]
    other = beam_search(table, 7, 512, max_removed=3, seed=1)
    assert [set(level.beam) for level in other.levels[:2]] == [set(level.beam) for level in first.levels[:2]]
    full = [beam_search(table, 7, 512, max_removed=3, seed=seed, racing=False).levels for seed in (0, 1)]
    assert [level.ablations for level in full[0]] == [level.ablations for level in full[1]]


class Killed(Exception):
    pass


@pytest.mark.parametrize("lives", [1, 3, 5])
def test_resumed_search_asks_for_the_same_cells(lives: int) -> None:
    table = settled_problem(2)
    expected = beam_search(table, 7, 512, max_removed=3, batch=100)
    cells = table.cells
    records: dict[tuple[str, int], tuple[float, float]] = {}
    new: list[tuple[Removed, int]] = []

    def evaluate(masks: Tensor, positions: Sequence[int]) -> MaskScores:
        """Backed by records; killed after a number of rounds that needed the model."""
        nonlocal budget
        keys = [[(str(mask.tolist()), position) for position in positions] for mask in masks]
        if any(key not in records for row in keys for key in row):
            if not budget:
                raise Killed
            budget -= 1
            table.calls.clear()
            scores = table(masks, positions)
            new.extend(cell for cell in table.cells)
            for row, *values in zip(keys, *scores):
                records.update(zip(row, zip(*values)))
        stored = np.array([[records[key] for key in row] for row in keys])
        return MaskScores(stored[..., 0], stored[..., 1])

    result = None
    while result is None:
        budget = lives
        with contextlib.suppress(Killed):
            result = beam_search(evaluate, 7, 512, max_removed=3, batch=100)
    assert result == expected and new == cells


def test_epsilon_ends_a_race_of_equals() -> None:
    equal = np.ones(2000)
    table = Table({(unit,): (equal, np.zeros(2000)) for unit in range(5)})
    assert not beam_search(table, 5, 2000, max_removed=1, epsilon=0).levels[0].settled
    (level,) = beam_search(table, 5, 2000, max_removed=1, epsilon=0.05).levels
    assert level.settled and level.tied == tuple((unit,) for unit in range(5)) and level.saved > 0
    # after n samples the mean of the rest would have to be below -100 / (2000 - n); most of the stake bets 0.95 on it
    gain, n = math.log(0.4), 64
    while gain < math.log(1 / 0.05):
        gain += math.log1p(0.95 * (1 / (1 - 100 / (2000 - n)) - 1))
        n += 1
    assert n <= level.best.num_samples < n + 64


def test_logprob_alone_drops_nothing_that_is_more_accurate() -> None:
    """Skipping flattens the distribution: the reference is less probable, yet more answers are right."""
    generator = np.random.default_rng(0)
    right = (generator.random((5, 600)) < np.array([0.7, 0.7, 0.7, 0.7, 0.85])[:, None]).astype(float)
    table = Table({(unit,): (right[unit], np.full(600, math.log(0.9 - 0.15 * unit))) for unit in range(5)})
    (level,) = beam_search(table, 5, 600, max_removed=1, beam_width=1).levels
    assert level.best.removed == (4,) and level.saved > 0
    (level,) = beam_search(table, 5, 600, max_removed=1, beam_width=1, rank_by="reference_logprob").levels
    assert level.tied == ((0,),) and level.best.removed == (0,) and level.saved > 0


def test_logprob_settles_sooner_what_accuracy_confirms() -> None:
    generator = np.random.default_rng(1)
    difficulty = generator.random(1000)
    qualities = (0.85, 0.84, 0.7, 0.7, 0.7)
    right = {unit: (difficulty + 0.1 * generator.normal(size=1000) < q) * 1.0 for unit, q in enumerate(qualities)}
    clear = Table({(u,): (right[u], np.log(q * generator.uniform(0.95, 1, 1000))) for u, q in enumerate(qualities)})
    blind = Table({(u,): (right[u], np.full(1000, -0.5)) for u in right})
    rule = racing.Rule("accuracy", width=2, epsilon=0.01, drop=1e-6, confirm=0.05, proof=1e-6)
    outcomes, spent = [], []
    for table in (clear, blind):
        filled = racing.ScoreTable(table, ablation_masks(5, [(u,) for u in range(5)]), racing.Samples(1000, None, 0))
        outcomes.append(racing.race(filled, 20, rule).dropped)
        spent.append(filled.evaluations)
    assert outcomes[0].keys() == outcomes[1].keys() == {2, 3, 4}
    assert set(outcomes[0].values()) == {"reference_logprob"}
    assert spent[0] < spent[1]


def test_accuracy_alone_decides_where_no_logprob_is_measured() -> None:
    generator = np.random.default_rng(0)
    right = (generator.random((5, 2000)) < np.array([0.9, 0.5, 0.5, 0.5, 0.5])[:, None]).astype(float)

    def evaluate(masks: torch.Tensor, positions: list[int]) -> MaskScores:
        return MaskScores(right[[int((~mask).nonzero()) for mask in masks]][:, positions])

    (level,) = beam_search(evaluate, 5, 2000, max_removed=1, beam_width=1).levels
    assert level.best.removed == (0,) and level.best.accuracy == level.best.score
    assert {ablation.dropped_on for ablation in level.ablations} == {None, "accuracy"}
    assert all(math.isnan(ablation.reference_logprob) for ablation in level.ablations)
    (everything,) = exhaustive_search(evaluate, 5, 2000, max_removed=1).levels
    assert [ablation.score for ablation in everything.ablations] == sorted(right.mean(1), reverse=True)
    with pytest.raises(ValueError, match="rank by reference_logprob, which evaluate does not measure"):
        beam_search(evaluate, 5, 2000, max_removed=1, rank_by="reference_logprob")


def test_proofs_take_one_sample_of_each_cluster() -> None:
    """Copies are no evidence: a table of them proves what the table without them does, in the same order."""
    table = settled_problem(3, 256)
    removed = list(itertools.combinations(range(7), 2))
    clusters = np.random.default_rng(1).integers(256, size=900).tolist()
    copies = Table({r: (a[clusters], p[clusters]) for r, (a, p) in table.scores.items()})
    samples = racing.Samples(900, clusters, seed=0)
    filled = racing.ScoreTable(copies, ablation_masks(7, removed), samples)
    filled.ask(range(len(removed)), np.arange(900))
    once = [clusters[position] for position in samples.order]
    once = list(dict.fromkeys(once))  # in the order in which they first come
    assert samples.is_first.sum() == len(once)
    single = racing.ScoreTable(table, ablation_masks(7, removed), racing.Samples(256, None, seed=0))
    single.samples.order[: len(once)] = once
    single.ask(range(len(removed)), np.arange(len(once)))
    for alpha in (0.5, 1e-3, 1e-9):
        proven = filled.proves("accuracy", [0, 1], range(len(removed)), alpha)
        np.testing.assert_array_equal(proven, single.proves("accuracy", [0, 1], range(len(removed)), alpha))
    assert filled.proves("accuracy", [0, 1], range(len(removed)), 1e-3).any()


def test_rounds_grow_and_every_level_has_its_own_order() -> None:
    samples = racing.Samples(500, None, seed=0)
    rounds = samples.rounds(32)
    assert [len(places) for places in rounds] == [32, 32, 32, 32, 64, 96, 128, 84]
    assert np.concatenate(rounds).tolist() == list(range(500))
    samples.bad[[3, 40]] = True
    bad, order = set(samples.order[samples.bad]), samples.order.copy()
    assert [len(places) for places in samples.rounds(600)] == [498]
    samples.shuffle()
    assert set(samples.order[samples.bad]) == bad and sorted(samples.order) == list(range(500))
    assert np.mean(samples.order == order) < 0.02


@pytest.mark.parametrize("gap", [0.03, 0.05])
def test_what_would_end_better_by_more_than_epsilon_is_rarely_dropped(gap: float) -> None:
    """Two candidates whose means on all samples differ by a known gap, in 2,000 random orders."""
    generator = np.random.default_rng(0)
    shape = (2, 200)
    scores = np.zeros(shape)
    scores[0, :120], scores[1, : 120 - round(gap * 200)], scores[1, 150:155], scores[0, 160:165] = 1, 1, 1, 1
    assert scores[0].mean() - scores[1].mean() == pytest.approx(gap)
    table = racing.ScoreTable(
        lambda masks, positions: None, ablation_masks(3, [(0,), (1,)]), racing.Samples(200, None, 0)
    )
    wrong, fine = [], []
    for _ in range(2000):
        table.accuracy[:] = scores[:, generator.permutation(200)]
        rivals = np.ones((1, 1, 200), dtype=int)
        rivals[..., :20] = -1  # the first round
        wrong.append(table.evidence_to_drop("accuracy", [0], rivals, gap - 1e-9)[0, 0])
        fine.append(table.evidence_to_drop("accuracy", [0], rivals, gap + 0.06)[0, 0])
    assert np.mean(np.array(wrong) >= math.log(20)) <= 0.05
    assert np.mean(np.array(wrong) >= math.log(5)) <= 0.2
    assert np.mean(np.array(fine) >= math.log(20)) > 0.9


# --- racing: 500 simulated problems of known qualities


def simulate(kind: str, generator: np.random.Generator, num_arms: int = 16, num_samples: int = 256) -> tuple:
    """Qualities (true means of accuracy and of the reference probability) and a table with these means.

    Samples share a difficulty, so that arms err on the same ones: correlated as real paired data are, except for noisy.
    """
    if kind == "clear":
        quality = np.append(generator.uniform(0.3, 0.7, num_arms - 1), 0.9)
    elif kind == "ties":
        quality = np.where(generator.random(num_arms) < 0.75, 0.8, 0.4)
    elif kind == "realistic":  # most blocks cost about 0.01, a few much
        quality = 0.85 - np.abs(generator.normal(0.01, 0.01, num_arms))
        quality[:4] -= np.array([0.6, 0.3, 0.15, 0.08])
    else:
        quality = generator.uniform(0.5, 0.6, num_arms)
    generator.shuffle(quality)
    shared = {"noisy": 0.0, "ties": 0.9, "clear": 0.7, "realistic": 0.97}[kind]
    difficulty = generator.normal(size=num_samples)
    own = generator.normal(size=(num_arms, num_samples))
    # uniform on [0, 1] for each arm, so each is right with exactly the probability that its quality says
    ease = stats.norm.cdf(math.sqrt(shared) * difficulty + math.sqrt(1 - shared) * own)
    accuracy = (ease > 1 - quality[:, None]).astype(float)
    # symmetric about the quality, with a much smaller variance than right or wrong
    probability = quality[:, None] + 0.4 * np.minimum(quality, 1 - quality)[:, None] * (2 * ease - 1)
    return quality, Table({(arm,): (a, np.log(p)) for arm, (a, p) in enumerate(zip(accuracy, probability))})


def is_epsilon_best(quality: np.ndarray, chosen: Sequence[Removed]) -> bool:
    return max(quality[arm] for (arm,) in chosen) >= quality.max() - 0.01


# share of the evaluations; measured by accuracy: 0.50, 0.20, 0.25, 0.11, by reference_logprob 0.50, 0.31, 0.33, 0.40
LEAST_SAVED = {"clear": 0.4, "ties": 0.18, "realistic": 0.22, "noisy": 0.08}


@pytest.mark.slow
@pytest.mark.parametrize("rank_by", ["accuracy", "reference_logprob"])
def test_500_simulated_problems(rank_by: str) -> None:
    """125 problems of each kind: the tied set holds an epsilon-best choice in at least 95% of them.

    And what racing promises beside: of those that were not dropped one comes within epsilon of the best on all samples.
    The mean saving is what it was measured to be; three quarters at most, as the first of the rounds is everybody's.

    Half of the problems are the whole search (one level), half allow for three levels more, as the defaults do.
    """
    generator = np.random.default_rng(0)
    lines = []
    for kind in LEAST_SAVED:
        tied, beam, full, kept, saved = [], [], [], [], []
        for index in range(125):
            quality, table = simulate(kind, generator)
            options = {"max_removed": 1, "rank_by": rank_by, "delta": 0.05 if index % 2 else 0.05 / 4}
            (level,) = beam_search(table, 16, 256, **options).levels
            tied.append(is_epsilon_best(quality, level.tied))
            column = ["accuracy", "reference_logprob"].index(rank_by)
            means = {r: (v[0] if column == 0 else np.exp(v[1])).mean() for r, v in table.scores.items()}
            stayed = max(means[ablation.removed] for ablation in level.ablations if not ablation.dropped_on)
            kept.append(stayed >= max(means.values()) - 0.02)
            beam.append(is_epsilon_best(quality, level.beam))
            (exact,) = beam_search(table, 16, 256, racing=False, **options).levels
            full.append(is_epsilon_best(quality, exact.beam))
            saved.append(level.saved / exact.evaluations)
        lines.append(
            f"{rank_by:>17} {kind:>9}: epsilon-best in tied set {np.mean(tied):.3f}, in beam {np.mean(beam):.3f} "
            f"(full search {np.mean(full):.3f}), on all samples {np.mean(kept):.3f}, saved {np.mean(saved):.3f}"
        )
        assert np.mean(tied) >= 0.95 and np.mean(kept) >= 0.95
        assert np.mean(beam) >= np.mean(full) - 0.02
        assert np.mean(saved) >= LEAST_SAVED[kind]
    print(*lines, sep="\n")


def test_settled_races_are_right_up_to_epsilon() -> None:
    """80 problems with more samples and a larger epsilon: what is called settled before the samples are spent."""
    generator = np.random.default_rng(3)
    right, saved = [], []
    for index in range(80):
        quality, table = simulate(("clear", "realistic")[index % 2], generator, num_arms=8, num_samples=1024)
        options = {"max_removed": 1, "rank_by": "reference_logprob", "epsilon": 0.05}
        (level,) = beam_search(table, 8, 1024, **options).levels
        saved.append(level.saved / (level.saved + level.evaluations))
        if level.settled:
            first, *others = (quality[unit] for (unit,) in level.beam)
            right.append(first > quality.max() - 0.05 and min(first, *others) > np.sort(quality)[-3] - 0.05)
    assert len(right) >= 40 and np.mean(right) >= 0.95 and np.mean(saved) > 0.3


def looks_at_5_percent(differences: np.ndarray, bounds: object = 0.0) -> np.ndarray:
    """What racing must not do: a t-test at 5% again and again, for every pair, as often as there are samples."""
    n = np.arange(1, differences.shape[-1] + 1)
    mean = np.cumsum(differences, axis=-1) / n
    error = np.sqrt(np.maximum(np.cumsum(differences**2, axis=-1) / n - mean**2, 1e-12) / n)
    return np.where((mean > stats.norm.ppf(0.95) * error) & (n >= 32), np.inf, -np.inf)


def test_simulated_problems_tell_a_valid_test_from_an_invalid_one(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {}
    for name in ("valid", "invalid"):
        if name == "invalid":
            monkeypatch.setattr(racing, "log_evidence", looks_at_5_percent)
        generator = np.random.default_rng(1)
        problems = [simulate("noisy", generator) for _ in range(60)]
        tied = [beam_search(table, 16, 256, max_removed=1, batch=32).levels[0].tied for _, table in problems]
        held[name] = np.mean([is_epsilon_best(quality, level) for (quality, _), level in zip(problems, tied)])
    assert held["valid"] >= 0.95 and held["invalid"] < 0.9


def test_tied_sets_hold_at_all_levels_of_a_search() -> None:
    """60 searches of 3 levels, whose later candidates were chosen on the same samples: all levels at once."""
    generator = np.random.default_rng(2)
    held = []
    for _ in range(60):
        quality, scores = {}, {}
        difficulty = generator.normal(size=200)
        for removed in combinations(6, 3):
            quality[removed] = generator.uniform(0.2, 0.8)
            ease = stats.norm.cdf(0.7 * difficulty + math.sqrt(0.51) * generator.normal(size=200))
            scores[removed] = (ease > 1 - quality[removed]) * 1.0, np.log(quality[removed] * (0.5 + ease))
        scores = {removed: (a, np.minimum(p, 0)) for removed, (a, p) in scores.items()}
        result = beam_search(Table(scores), 6, 200, max_removed=3, batch=25)
        assert any(len(level.tied) < len(level.ablations) for level in result.levels)
        held.append(
            all(
                max(quality[r] for r in level.tied) >= max(quality[a.removed] for a in level.ablations) - 0.01
                for level in result.levels
            )
        )
    assert np.mean(held) >= 0.95


# --- baselines


def test_given_ablations_are_scored_on_all_samples() -> None:
    table = random_table(7, 5, 3, 40)
    table.scores[()] = np.ones(40), np.zeros(40)
    table.scores[(1,)][1][3] = np.nan
    wanted: list[Removed] = [(), (2, 1), (1,), (0, 3, 4)]
    full, *rest = score_ablations(table, 5, 40, wanted)
    assert len(table.calls) == 1 and len(table.cells) == 4 * 40
    assert full == Ablation((), (), 1.0, 1.0, 0.0, 39, None, 1.0)
    for removed, ablation in zip(wanted[1:], rest):
        accuracy, logprob = (np.delete(values, 3) for values in table.scores[tuple(sorted(removed))])
        assert ablation.removed == tuple(sorted(removed)) and ablation.num_samples == 39
        assert ablation.accuracy == ablation.score == pytest.approx(accuracy.mean(), abs=1e-12)
        assert ablation.reference_logprob == pytest.approx(logprob.mean(), abs=1e-12)


# --- bad input


@pytest.mark.parametrize(
    "num_units,options,message",
    [
        (6, {"beam_width": 0}, "beam_width of at least 1, got 0"),
        (6, {"batch": 0}, "batch of at least 1, got 0"),
        (6, {"max_removed": 7}, r"between 1 and 5 of 6 units \(one has to stay\), got 7"),
        (6, {"max_removed": 6}, r"between 1 and 5 of 6 units \(one has to stay\), got 6"),
        (6, {"max_removed": 0}, "between 1 and 5 of 6 units"),
        (6, {"max_removed": 4, "keep": [0, 1, 5]}, "between 1 and 3 of 6 units, of which 3 are kept, got 4"),
        (3, {"max_removed": 1, "keep": [0, 1, 2]}, r"a unit that may be removed, got keep=\[0, 1, 2\] of 3"),
        (1, {"max_removed": 1}, "a unit that may be removed"),
        (6, {"keep": [6]}, "between 0 and 5, got 6"),
        (6, {"keep": [1, 1]}, "distinct"),
        (6, {"epsilon": -0.1}, "epsilon of at least 0"),
        (6, {"epsilon": math.nan}, "epsilon of at least 0"),
        (6, {"delta": 0.0}, "delta between 0 and 1"),
        (6, {"delta": 1.0}, "delta between 0 and 1"),
        (6, {"rank_by": "f1"}, "'accuracy' or 'reference_logprob', got 'f1'"),
        (6, {"clusters": ["a"]}, r"one cluster per sample \(8\), got 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_evaluated(num_units: int, options: dict, message: str) -> None:
    table = random_table(0, 6, 4, 8)
    with pytest.raises(ValueError, match=message):
        beam_search(table, num_units, 8, **options)
    assert not table.calls


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        beam_search(random_table(0, 3, 2, 8), 3, 0, max_removed=1)


def test_too_many_combinations_are_refused_with_their_number() -> None:
    table = random_table(0, 3, 2, 8)
    with pytest.raises(ValueError, match=r"at most 5,000 combinations for an exhaustive search, got 41,448 \(1 to 4"):
        exhaustive_search(table, 32, 8, max_removed=4)
    assert not table.calls


@pytest.mark.parametrize(
    "accuracy,logprob,message",
    [
        (np.full((3, 8), 1.5), np.zeros((3, 8)), "accuracy between 0 and 1, got 1.5"),
        (np.zeros((3, 8)), np.full((3, 8), 0.5), "reference_logprob between -inf and 1e-06, got 0.5"),
        (np.zeros((8, 3)), np.zeros((3, 8)), r"accuracy of shape \[3, 8\], got \[8, 3\]"),
        (np.zeros((3, 8)), np.zeros(3), r"reference_logprob of shape \[3, 8\], got \[3\]"),
    ],
)
def test_wrong_scores_are_refused(accuracy: np.ndarray, logprob: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(lambda masks, positions: MaskScores(accuracy, logprob), 3, 8, max_removed=1)
