"""Laws of the rank correlation: agreement with scipy, and no interval where none can be estimated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lit_depth.functional.statistics import spearman


@pytest.mark.parametrize("n", [4, 6, 16, 40])
def test_spearman_estimate_and_p_equal_scipy(n: int) -> None:
    generator = np.random.default_rng(n)
    x = generator.integers(0, n, n)  # with ties
    y = x + generator.integers(0, n, n)
    interval, p_value = spearman(x, y)
    expected = stats.spearmanr(x, y)
    assert interval.estimate == pytest.approx(expected.statistic)
    assert interval.low <= interval.estimate <= interval.high
    if n > 8:
        assert p_value == pytest.approx(expected.pvalue)
    else:
        exact = stats.permutation_test(
            (x,), lambda x: stats.spearmanr(x, y).statistic, permutation_type="pairings", n_resamples=np.inf
        )
        assert p_value == pytest.approx(exact.pvalue)


@given(st.lists(st.integers(-5, 5), min_size=4, max_size=7).filter(lambda x: len(set(x)) > 1))
@settings(max_examples=30, deadline=None)
def test_spearman_knows_only_ranks(x: list[int]) -> None:
    y = list(range(len(x)))
    interval, p_value = spearman(x, y)
    grown, p_grown = spearman(np.exp(x), y)
    falling, p_falling = spearman([-value for value in x], y)
    assert grown == interval and p_grown == pytest.approx(p_value)
    if interval.low is None:  # one order
        assert abs(interval.estimate) == pytest.approx(1) and falling == (pytest.approx(-interval.estimate), None, None)
    else:
        assert falling == pytest.approx((-interval.estimate, -interval.high, -interval.low))
    assert p_falling == pytest.approx(p_value)


def test_spearman_at_the_ends() -> None:
    """Where the formula would give an interval without width, or none, there is no interval."""
    correlation, p_value = spearman(range(8), range(8))
    assert correlation == (1.0, None, None)
    assert p_value == pytest.approx(2 / 40320)
    assert spearman(range(8), range(8)[::-1])[0] == (-1.0, None, None)
    assert spearman([1, 2, 3], [1, 3, 2])[0] == (0.5, None, None)


@pytest.mark.parametrize(("x", "y"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3, 4], [0.5] * 4), ([1], [1]), ([], [])])
def test_spearman_without_order_is_not_estimable(x: list[float], y: list[float]) -> None:
    assert spearman(x, y) == ((None, None, None), None)


def test_spearman_refuses_sides_of_different_length() -> None:
    with pytest.raises(ValueError, match="one length"):
        spearman([1, 2], [1, 2, 3])


@pytest.mark.slow
def test_spearman_coverage() -> None:
    """95 % interval of 16 blocks covers the population rank correlation of a bivariate normal."""
    generator = np.random.default_rng(17)
    rho = 0.6
    truth = 6 / np.pi * np.arcsin(rho / 2)
    pairs = generator.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=(2000, 16))
    covered = [i.low <= truth <= i.high for i in (spearman(pair[:, 0], pair[:, 1])[0] for pair in pairs)]
    assert np.mean(covered) >= 0.94


@pytest.mark.slow
def test_the_p_value_of_a_rank_correlation_is_never_zero_where_ties_or_order_leave_little_to_see():
    """One block stands out on both sides: one of sixteen orders in sixteen looks as strong."""
    values = np.zeros(16)
    values[3] = 1.0
    assert spearman(values, values)[1] == pytest.approx(1 / 16, abs=0.01)
    assert spearman(np.arange(12), np.arange(12))[1] == pytest.approx(1e-4)
    rng = np.random.default_rng(0)
    rounded = rng.integers(0, 4, size=(2, 30)).astype(float)
    expected = stats.permutation_test(
        (rounded[0],), lambda x: stats.spearmanr(x, rounded[1]).statistic, permutation_type="pairings", n_resamples=9999
    )
    assert spearman(*rounded)[1] == pytest.approx(expected.pvalue, abs=0.02)
