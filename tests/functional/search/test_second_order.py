"""The second-order model against set functions whose effects are known, and its best sets against brute force."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.functional.search.second_order import (
    best_predicted,
    fit_second_order,
    held_out_ablations,
    singles_and_pairs,
)

NUM = 6
UNITS = (0, 2, 3, 5, 6, 7)  # of eight; 1 and 4 are kept


def effects(seed: int, *samples: int) -> tuple[np.ndarray, dict[int, np.ndarray], dict[tuple[int, int], np.ndarray]]:
    generator = np.random.default_rng(seed)
    draw = lambda: generator.normal(size=samples)  # noqa: E731
    return draw(), {unit: draw() for unit in UNITS}, {pair: draw() for pair in itertools.combinations(UNITS, 2)}


def score(full, alone, pairs, removed):
    """A set function of second order, by its definition."""
    return full - sum(alone[u] for u in removed) - sum(pairs[pair] for pair in itertools.combinations(removed, 2))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(), (3,)]))
def test_a_set_function_of_second_order_is_recovered_on_every_set(seed: int, samples: tuple[int, ...]) -> None:
    full, alone, pairs = effects(seed, *samples)
    model = fit_second_order(UNITS, [score(full, alone, pairs, removed) for removed in singles_and_pairs(UNITS)])
    for a, b in itertools.combinations(range(NUM), 2):
        np.testing.assert_allclose(model.interactions[a, b], pairs[UNITS[a], UNITS[b]], atol=1e-10)
        np.testing.assert_array_equal(model.interactions[a, b], model.interactions[b, a])
    every = [removed for size in range(NUM + 1) for removed in itertools.combinations(UNITS, size)]
    expected = np.array([full - score(full, alone, pairs, removed) for removed in every])
    np.testing.assert_allclose(model.predict_drops(every), expected, atol=1e-9)
    first = np.array([sum((alone[u] for u in removed), np.zeros(samples)) for removed in every])
    np.testing.assert_allclose(model.predict_drops(every, order=1), first, atol=1e-10)


@given(st.integers(0, 2**32 - 1), st.data())
def test_it_is_the_weighted_sum_of_scores_that_its_definition_expands_to(seed: int, data: st.DataObject) -> None:
    """k removed: pairs once, singles -(k - 2) times, the full model (k - 1)(k - 2) / 2 times."""
    scores = dict(zip(singles_and_pairs(UNITS), np.random.default_rng(seed).normal(size=1 + NUM + comb(NUM, 2))))
    removed = tuple(sorted(data.draw(st.sets(st.sampled_from(UNITS), min_size=1))))
    size = len(removed)
    predicted = (size - 1) * (size - 2) / 2 * scores[()]
    predicted -= (size - 2) * sum(scores[unit,] for unit in removed)
    predicted += sum(scores[pair] for pair in itertools.combinations(removed, 2))
    model = fit_second_order(UNITS, list(scores.values()))
    assert model.predict_drops([removed])[0] == pytest.approx(scores[()] - predicted, abs=1e-10)


@given(st.integers(0, 2**32 - 1))
def test_independent_units_do_not_interact(seed: int) -> None:
    """Log-probabilities that add up, unit by unit."""
    full, alone, pairs = effects(seed, 4)
    pairs = dict.fromkeys(pairs, np.zeros(4))
    model = fit_second_order(UNITS, [score(full, alone, pairs, removed) for removed in singles_and_pairs(UNITS)])
    np.testing.assert_allclose(model.interactions, 0, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, NUM), st.integers(1, 5))
def test_the_best_predicted_are_those_of_brute_force(seed: int, size: int, num_best: int) -> None:
    # few different numbers: ties are common
    values = np.random.default_rng(seed).integers(0, 3, size=1 + NUM + comb(NUM, 2)) / 4
    model = fit_second_order(UNITS, values)
    every = list(itertools.combinations(UNITS, size))
    expected = sorted(every, key=lambda removed: (model.predict_drops([removed])[0].round(12), removed))
    assert best_predicted(model, 8, size, num_best) == expected[:num_best]


@given(st.integers(0, 2**32 - 1), st.integers(1, NUM))
def test_a_wide_beam_finds_the_same(seed: int, size: int) -> None:
    model = fit_second_order(UNITS, np.random.default_rng(seed).normal(size=1 + NUM + comb(NUM, 2)))
    assert best_predicted(model, 8, size, 2, max_enumerated=1) == best_predicted(model, 8, size, 2)


@given(st.integers(0, 100), st.integers(0, 60), st.integers(3, 7))
def test_held_out_sets_differ_take_turns_and_leave_a_unit(seed: int, wanted: int, most: int) -> None:
    found = held_out_ablations(8, UNITS, wanted, most, seed)
    available = {size: comb(NUM, size) for size in range(3, min(most, NUM) + 1)}
    assert len(found) == len(set(found)) == min(wanted, sum(available.values()))
    assert found == held_out_ablations(8, UNITS, wanted, most, seed)
    assert all(set(removed) <= set(UNITS) and list(removed) == sorted(removed) for removed in found)
    counts = {size: sum(len(removed) == size for removed in found) for size in available}
    largest = max(counts.values())
    assert all(count >= largest - 1 or count == available[size] for size, count in counts.items())


def test_every_set_of_a_size_is_equally_likely() -> None:
    drawn = [held_out_ablations(8, UNITS, 1, 3, seed)[0] for seed in range(2000)]
    counts = np.array([drawn.count(removed) for removed in itertools.combinations(UNITS, 3)])
    expected = 2000 / comb(NUM, 3)
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-squared of 19 degrees, p = 0.001


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: fit_second_order([0], [0.5, 0.4]), "two or more different units"),
        (lambda: fit_second_order([0, 0], [0.5, 0.4, 0.4, 0.1]), "two or more different units"),
        (lambda: fit_second_order([0, 1], [0.5, 0.4, 0.4]), "expected 4 scores of 2 units"),
        (lambda: fit_second_order([0, 1], np.zeros(4)).predict_drops([(2,)]), r"among \[0, 1\], got \[2\]"),
        (lambda: fit_second_order([0, 1], np.zeros(4)).predict_drops([(1, 1)]), r"got \[1, 1\]"),
        (lambda: best_predicted(fit_second_order([0, 1], np.zeros((4, 2))), 3, 1), "model of mean scores"),
        (lambda: best_predicted(fit_second_order([0, 1], np.zeros(4)), 2, 2), "between 1 and 1 of 2 units"),
    ],
)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
