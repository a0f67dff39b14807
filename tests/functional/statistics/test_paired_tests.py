"""Laws of the paired tests: agreement with all sign patterns, with McNemar's test and with step-down procedures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lit_depth.functional.statistics import holm, pairwise_sign_flip_tests, sign_flip_tests
from tests.helpers.simulated import clustered, sign_flip_test

p_values = st.lists(st.floats(0, 1), max_size=12)
scores = st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=1, max_size=12)


@pytest.mark.parametrize("clusters", [None, [0, 0, 1, 2, 2, 3, 4, 5, 6, 6]])
def test_sign_flip_equals_all_patterns(clusters: list[int] | None) -> None:
    values = np.array([0.3, 0.0, -1.0, 0.6, 0.3, 1.0, 0.9, -0.3, 0.0, 1.0])
    sums = values if clusters is None else np.bincount(clusters, weights=values)
    patterns = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    expected = np.mean(np.abs(patterns @ sums) >= abs(sums.sum()) - 1e-9)
    assert sign_flip_test(values, clusters) == pytest.approx(expected)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(deadline=None)
def test_sign_flip_on_binary_scores_is_mcnemar(pairs: list[tuple[bool, bool]]) -> None:
    """McNemar 1947: a binomial test on the discordant pairs."""
    a, b = np.array(pairs, dtype=float).T
    lost, gained = int((a > b).sum()), int((b > a).sum())
    expected = stats.binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert sign_flip_test(a - b) == pytest.approx(expected)


@given(scores, st.randoms())
@settings(deadline=None)
def test_sign_flip_is_symmetric(values: list[float], random) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert sign_flip_test(shuffled) == pytest.approx(sign_flip_test(values))
    assert sign_flip_test([-3 * value for value in values]) == pytest.approx(sign_flip_test(values))
    assert 0 < sign_flip_test(values) <= 1


def test_sampled_sign_flip_agrees_with_the_exact_one_and_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(0.4, 1, 13)
    exact = sign_flip_test(values)
    monkeypatch.setattr("lit_depth.functional.statistics.paired_tests._MAX_EXACT_SUMS", 1)
    assert sign_flip_test(values, num_permutations=20_000) == pytest.approx(exact, abs=0.01)
    assert sign_flip_test(np.linspace(1, 2, 100), num_permutations=99) == pytest.approx(1 / 100)


def lattice_p(units: np.ndarray) -> float:
    """Of integer differences, by convolution: every step adds -size or +size with probability 1/2."""
    distribution = np.ones(1)
    for size in np.abs(units):
        distribution = (np.pad(distribution, (0, 2 * size)) + np.pad(distribution, (2 * size, 0))) / 2
    totals = np.arange(len(distribution)) - np.abs(units).sum()
    return float(distribution[np.abs(totals) >= abs(units.sum())].sum())


@pytest.mark.parametrize("unit", [1.0, 0.1, 1 / 30, 7 / 3])
@pytest.mark.parametrize("highest", [5, 40])
def test_graded_differences_are_tested_exactly(unit: float, highest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the unit is, and however many different sizes there are: no sign pattern is drawn."""
    monkeypatch.setattr("lit_depth.functional.statistics.paired_tests._sampled_p_values", None)
    generator = np.random.default_rng(highest)
    for mean in (0.0, 0.3, 0.8):
        units = np.rint(generator.normal(mean, 1, size=200) * highest / 3).clip(-highest, highest).astype(int)
        assert sign_flip_test(units * unit) == pytest.approx(lattice_p(units), rel=1e-6, abs=2e-13)
        clusters = np.arange(200) // 3
        sums = np.bincount(clusters, weights=units).astype(int)
        assert sign_flip_test(units * unit, clusters) == pytest.approx(lattice_p(sums), rel=1e-6, abs=2e-13)


def test_exact_p_values_are_never_zero() -> None:
    """All of 300 graded differences are losses: the true p-value is 2^-299, below what a transform resolves."""
    p = sign_flip_test(np.random.default_rng(0).choice([0.1, 0.3, 0.6, 0.7, 0.9, 1.0], size=300))
    assert 0 < p < 1e-12
    assert sign_flip_test(np.ones(300)) == pytest.approx(2.0**-299)


@pytest.mark.parametrize("kind", ["binary", "graded", "continuous"])
def test_rows_are_tested_alike_together_and_alone(kind: str) -> None:
    generator = np.random.default_rng(8)
    rows = {
        "binary": generator.choice([-1.0, 0.0, 1.0], size=(9, 100)),
        "graded": generator.choice([-0.9, -0.3, 0.0, 0.1, 0.6], size=(9, 100)),
        "continuous": generator.normal(size=(9, 100)),
    }[kind]
    for clusters in (None, np.arange(100) // 3):
        together = sign_flip_tests(rows, clusters, num_permutations=999, seed=3)
        assert together.tolist() == [sign_flip_test(row, clusters, num_permutations=999, seed=3) for row in rows]


def test_no_difference_is_p_one() -> None:
    assert sign_flip_test(np.zeros(20)) == 1.0


@pytest.mark.slow
def test_sign_flip_p_is_uniform_under_the_null() -> None:
    generator = np.random.default_rng(13)
    p = [sign_flip_test(*clustered(generator, 60, 25), num_permutations=999, seed=run) for run in range(2000)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.015)


@given(p_values)
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float]) -> None:
    """Independent reference: walk through the sorted p-values and stop at the first that fails."""
    adjusted = holm(values)
    assert np.all(adjusted >= np.array(values)) and np.all(adjusted <= 1)
    for alpha in (0.01, 0.05, 0.2):
        order = sorted(range(len(values)), key=lambda i: values[i])
        rejected: set[int] = set()
        for step, i in enumerate(order):
            if (len(values) - step) * values[i] > alpha:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


@given(p_values, st.randoms())
def test_holm_keeps_order_of_arguments(values: list[float], random) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    assert holm([values[i] for i in order]) == pytest.approx(holm(values)[order])


@pytest.mark.parametrize("values", [[1.2], [-0.1], [float("nan")]])
def test_holm_refuses(values: list[float]) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm(values)


def test_sign_flip_of_many_different_sizes_agrees_with_all_patterns() -> None:
    """40 clusters of sizes 1 to 40, one sign each: the exact distribution of the total, and random patterns."""
    units = np.arange(1, 41) * np.where(np.random.default_rng(2).random(40) < 0.62, 1, -1)
    exact = lattice_p(units)
    assert 0.001 < exact < 0.5
    assert sign_flip_test(units / 7) == pytest.approx(exact)
    # moved a little, so that they share no unit and are sampled
    moved = units + 1e-3 * np.random.default_rng(3).random(40)
    assert sign_flip_test(moved, num_permutations=200_000) == pytest.approx(exact, rel=0.05)


def test_pairs_are_tested_together() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(4, 60)) + np.array([[1.5], [0.0], [0.0], [-1.5]])
    p_values = pairwise_sign_flip_tests(values)
    assert set(p_values) == set(itertools.combinations(range(4), 2))
    separate = {pair: sign_flip_test(values[pair[0]] - values[pair[1]]) for pair in p_values}
    # corrected: never below the separate test by more than its sampling error, nor above Holm's correction
    for pair, bound in zip(separate, holm(list(separate.values()))):
        assert separate[pair] * 0.8 - 0.001 <= p_values[pair] <= bound * 1.2 + 0.01
    assert max(p for pair, p in p_values.items() if pair != (1, 2)) < 0.05 < p_values[1, 2]
    # a row against its copy is no evidence; clusters are flipped whole
    copies = pairwise_sign_flip_tests(np.stack([values[0], values[0]]))
    assert copies == {(0, 1): 1.0}
    repeated = pairwise_sign_flip_tests(np.repeat(values, 3, axis=1), [f"{i // 3:02d}" for i in range(180)])
    assert repeated == pytest.approx(p_values, abs=1e-9)


def test_pairs_of_many_rows_keep_their_resolution() -> None:
    """40 rows, 780 pairs: Holm on p-values of 1/10001 could not pass 0.05 here."""
    values = np.random.default_rng(1).normal(size=(40, 50)) + np.arange(40)[:, None]
    assert max(pairwise_sign_flip_tests(values, num_permutations=2000).values()) < 0.05


@pytest.mark.slow
def test_pairs_without_difference_are_rarely_told_apart() -> None:
    """300 runs of 5 equal rows: some pair of ten is significant in at most 5%."""
    generator = np.random.default_rng(6)
    wrong = sum(
        min(pairwise_sign_flip_tests(generator.normal(size=(5, 40)), num_permutations=500).values()) < 0.05
        for _ in range(300)
    )
    assert wrong <= stats.binom.ppf(0.995, 300, 0.05)
