"""Whichever look ends the measurement, its bound holds as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from lit_depth.functional.latency.budget import percentile_bound
from lit_depth.functional.latency.planned_looks import percentile_interval, planned_looks

DRAWS = 1500


def spiky_times(generator: np.random.Generator, draws: int, number: int) -> np.ndarray:
    """Times of a busy machine: one in twelve takes up to twice as long."""
    quiet = 20 * generator.lognormal(0, 0.03, (draws, number))
    return quiet * np.where(generator.random((draws, number)) < 1 / 12, 1 + generator.random((draws, number)), 1)


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.5])
def test_the_bound_at_a_data_dependent_stop_is_none_too_low(tolerance: float) -> None:
    generator, looks = np.random.default_rng(1), planned_looks()
    true = np.quantile(spiky_times(generator, 1, 1_000_000), 0.95)
    times = spiky_times(generator, DRAWS, looks[-1].num_requests)
    too_low = 0
    for row in times:
        for look in looks:
            found = percentile_interval(row[: look.num_requests], 0.95, look.confidence)
            # the worst that a stop can do: as soon as the bound is too low
            if found.is_narrow(tolerance) or found.high < true:
                break
        too_low += found.high < true
    # 5% and three standard errors of so many draws
    assert too_low / DRAWS <= 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5


def test_looking_without_a_plan_would_miss_more_often() -> None:
    generator, looks = np.random.default_rng(2), range(60, 123, 3)
    times = generator.random((600, 122))
    missed = [any(percentile_bound(row[:count].tolist()) < 0.95 for count in looks) for row in times]
    assert np.mean(missed) > 0.07


def test_each_look_allows_one_more_outlier_and_the_errors_add_up() -> None:
    looks = planned_looks(num_looks=4)
    assert [look.num_requests for look in looks] == sorted({look.num_requests for look in looks})
    assert sum(1 - look.confidence for look in looks) <= 0.05
    for index, look in enumerate(looks):
        times = list(range(look.num_requests))
        assert percentile_interval(times, 0.95, look.confidence).high == look.num_requests - 1 - index
        assert percentile_bound(times, 0.95, look.confidence) == look.num_requests - 1 - index


@pytest.mark.parametrize("number", [0, 9])
def test_a_wrong_number_of_looks_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 8 looks"):
        planned_looks(num_looks=number)


def test_of_few_times_the_largest_is_all_there_is_above() -> None:
    # two of three lie above a percentile of 95% with a probability below 1%
    assert percentile_interval([3.0, 1.0, 2.0], 0.95, 0.95) == (2.0, 3.0)
    with pytest.raises(ValueError, match="at least one finite time"):
        percentile_interval([], 0.95, 0.95)
