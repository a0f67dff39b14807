"""Choosing a mask or a depth for a latency budget, against exhaustive search."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lit_depth.functional import (
    Candidate,
    Line,
    depth_under_budget,
    fit_line,
    pareto_frontier,
    request_mask,
    select_for_budget,
)
from lit_depth.functional.latency.budget import TOLERANCES

COMPLEXITIES = ("simple", "medium", "complex")
# coarse numbers, so that ties are common
points = st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float), st.integers()), max_size=15)
budgets = st.integers(1, 12).map(float)
drops = st.tuples(st.integers(-2, 12), st.integers(0, 12)).map(lambda pair: (pair[0] / 100, sum(pair) / 100))
candidate_lists = st.lists(
    st.builds(
        lambda latency, quality, drop: Candidate("1", float(latency), quality / 10, (0.0, 1.0), drop),
        st.integers(1, 10),
        st.integers(0, 10),
        drops,
    ),
    min_size=1,
    max_size=8,
)


def candidate(mask_id: str = "10", latency_ms: float = 10.0, quality: float = 0.5, drop: float = 0.0) -> Candidate:
    return Candidate(mask_id, latency_ms, quality, (quality, quality), (drop, drop))


@given(points)
def test_pareto_frontier_is_what_nothing_dominates(candidates: list[tuple[float, float, int]]) -> None:
    def beaten(point: tuple) -> bool:
        return any(other[0] <= point[0] and other[1] >= point[1] and other[:2] != point[:2] for other in candidates)

    frontier = pareto_frontier(candidates)
    assert {point[:2] for point in frontier} == {point[:2] for point in candidates if not beaten(point)}
    assert frontier == sorted(frontier, key=lambda point: point[:2])


@given(st.lists(st.tuples(st.integers(1, 32), st.floats(0.1, 1000)), min_size=2, max_size=30))
def test_line_equals_scipy(measurements: list[tuple[int, float]]) -> None:
    counts, times = [m[0] for m in measurements], [m[1] for m in measurements]
    if len(set(counts)) < 2:
        with pytest.raises(ValueError, match="two distinct numbers of active blocks"):
            fit_line(counts, times)
        return
    line, expected = fit_line(counts, times), stats.linregress(counts, times)
    assert line.slope == pytest.approx(expected.slope, rel=1e-6, abs=1e-6)
    assert line.intercept == pytest.approx(expected.intercept, rel=1e-6, abs=1e-6)
    if len(times) == 2:  # a line through two points says nothing of its fit
        assert line.r2 is None
    elif max(times) - min(times) > 1e-3:
        assert line.r2 == pytest.approx(expected.rvalue**2, abs=1e-6)


@given(st.floats(0.01, 50), st.floats(0, 500), st.sets(st.integers(1, 64), min_size=3))
def test_line_of_exact_times_is_found(slope: float, intercept: float, counts: set[int]) -> None:
    line = fit_line(sorted(counts), [intercept + slope * count for count in sorted(counts)])
    assert line.slope == pytest.approx(slope, rel=1e-6) and line.r2 == pytest.approx(1.0)
    assert line.time_ms(7) == pytest.approx(intercept + 7 * slope, rel=1e-6)


def test_line_of_equal_times_is_flat() -> None:
    assert fit_line([1, 2, 3], [4.0, 4.0, 4.0]) == Line(slope=0.0, intercept=4.0, r2=1.0)


@pytest.mark.parametrize(
    "counts,times,message",
    [
        ([], [], r"distinct numbers of active blocks, got \[\]"),
        ([4, 4], [1.0, 2.0], r"got \[4.0\]"),
        ([4, 8], [1.0], "as many times as counts"),
        ([4, 8], [1.0, math.nan], "finite"),
        ([4, math.inf], [1.0, 2.0], "counts as a list of integers"),
    ],
)
def test_lines_that_cannot_be_fitted(counts: list, times: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_line(counts, times)


@given(st.floats(-2, 5), st.floats(0, 30), budgets, st.integers(1, 20))
def test_depth_is_the_most_blocks_that_fit(slope: float, intercept: float, budget: float, num_blocks: int) -> None:
    line = Line(slope, intercept, 1.0)
    fitting = [count for count in range(1, num_blocks + 1) if intercept + slope * count <= budget]
    if fitting:
        assert depth_under_budget(line, budget, num_blocks) == fitting[-1]
    else:
        with pytest.raises(ValueError, match="expected a budget of at least"):
            depth_under_budget(line, budget, num_blocks)


def test_the_minimum_leaves_room_for_the_blocks_that_are_kept() -> None:
    line = Line(slope=2.0, intercept=5.0, r2=1.0)
    assert depth_under_budget(line, 11.0, 16, fewest=3) == 3
    with pytest.raises(ValueError, match="at least 11.0 ms, which 3 of 16 blocks take by estimate, got 8.0 ms"):
        depth_under_budget(line, 8.0, 16, fewest=3)
    with pytest.raises(ValueError, match="fewest=17"):
        depth_under_budget(line, 50.0, 16, fewest=17)


def test_a_candidate_without_quality_is_refused() -> None:
    with pytest.raises(ValueError, match="mask 10: expected a candidate of measured quality"):
        Candidate.from_result({"mask_id": "10", "latency_ms": {"bound": 12.0}, "chosen_by": None})


def test_depth_counts_the_fixed_cost() -> None:
    # 16 blocks take 16 + 16 ms: by the plain ratio, half of that would pay for 8 blocks, which take 24 ms
    line = fit_line([4, 8, 16], [20.0, 24.0, 32.0])
    assert depth_under_budget(line, 24.0, 16) == 8
    with pytest.raises(ValueError, match=r"at least 17.0 ms, which 1 of 16 blocks takes by estimate, got 16.0 ms"):
        depth_under_budget(line, 16.0, 16)


def minimum_of(run: Callable[[float], object]) -> float:
    """The budget that the refusal of a tiny one asks for."""
    with pytest.raises(ValueError, match="expected a budget of at least") as refusal:
        run(1e-6)
    return float(str(refusal.value).split("at least ")[1].split(" ms")[0])


@given(st.floats(0.001, 5), st.floats(0.001, 30))
def test_the_minimum_named_for_a_depth_is_enough(slope: float, intercept: float) -> None:
    line = Line(slope, intercept, 1.0)
    assert depth_under_budget(line, minimum_of(lambda budget: depth_under_budget(line, budget, 16)), 16) >= 1


@given(st.lists(st.floats(0.001, 1000).map(lambda latency: candidate(latency_ms=latency)), min_size=1, max_size=5))
def test_the_minimum_named_for_a_mask_is_enough(candidates: list[Candidate]) -> None:
    minimum = minimum_of(lambda budget: select_for_budget(candidates, budget))
    assert select_for_budget(candidates, minimum).latency_ms <= minimum
    assert request_mask(candidates, "simple", minimum).latency_ms <= minimum


@given(candidate_lists, budgets)
def test_select_for_budget_is_beaten_by_none(candidates: list[Candidate], budget: float) -> None:
    affordable = [one for one in candidates if one.latency_ms <= budget]
    if not affordable:
        with pytest.raises(ValueError, match=f"at least {min(one.latency_ms for one in candidates)} ms"):
            select_for_budget(candidates, budget)
        return
    best = select_for_budget(candidates, budget)
    assert best in affordable
    assert not any(one.quality > best.quality for one in affordable)
    assert not any(one.quality == best.quality and one.latency_ms < best.latency_ms for one in affordable)


@given(candidate_lists, budgets)
def test_select_for_budget_is_on_the_frontier(candidates: list[Candidate], budget: float) -> None:
    frontier = pareto_frontier([(one.latency_ms, one.quality, one) for one in candidates])
    affordable = [point[:2] for point in frontier if point[0] <= budget]
    if affordable:
        best = select_for_budget(candidates, budget)
        assert (best.latency_ms, best.quality) == affordable[-1]


@given(candidate_lists, budgets, st.sampled_from(COMPLEXITIES))
def test_request_gets_the_fastest_that_is_good_enough(
    candidates: list[Candidate], budget: float, complexity: str
) -> None:
    affordable = [one for one in candidates if one.latency_ms <= budget]
    if not affordable:
        with pytest.raises(ValueError, match="expected a budget of at least"):
            request_mask(candidates, complexity, budget)
        return
    chosen = request_mask(candidates, complexity, budget)
    good = [one for one in affordable if one.drop_ci[1] <= TOLERANCES[complexity]]
    if not good:
        assert chosen == select_for_budget(candidates, budget)
        return
    assert chosen in good
    assert chosen.latency_ms == min(one.latency_ms for one in good)
    assert chosen.quality == max(one.quality for one in good if one.latency_ms == chosen.latency_ms)


@given(candidate_lists, budgets)
def test_harder_requests_risk_no_larger_drop(candidates: list[Candidate], budget: float) -> None:
    if min(one.latency_ms for one in candidates) > budget:
        return
    chosen = [request_mask(candidates, complexity, budget) for complexity in COMPLEXITIES]
    for easy, hard in zip(chosen, chosen[1:]):
        # unless nothing is good enough for the hard one, which then gets the best there is
        assert easy.latency_ms <= hard.latency_ms or hard == select_for_budget(candidates, budget)


def test_own_tolerances() -> None:
    fast, good = candidate("10", 5.0, 0.4, drop=0.3), candidate("11", 9.0, 0.7)
    assert request_mask([fast, good], "chat", 10.0, tolerances={"chat": 0.3}) is fast
    assert request_mask([fast, good], "chat", 10.0, tolerances={"chat": 0.2}) is good
    with pytest.raises(ValueError, match="one of chat, got 'simple'"):
        request_mask([fast, good], "simple", 10.0, tolerances={"chat": 0.3})


def test_unknown_complexity_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="one of simple, medium, complex, got 'hard'"):
        request_mask([candidate()], "hard", 20.0)


@pytest.mark.parametrize("tolerance", [-0.1, math.nan])
def test_bad_tolerances(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance of at least 0"):
        request_mask([candidate()], "simple", 20.0, tolerances={"simple": tolerance})


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_bad_budgets(budget: float) -> None:
    message = f"budget_ms to be positive and finite, got {budget}"
    with pytest.raises(ValueError, match=message):
        select_for_budget([candidate()], budget)
    with pytest.raises(ValueError, match=message):
        request_mask([candidate()], "simple", budget)
    with pytest.raises(ValueError, match=message):
        depth_under_budget(Line(1.0, 1.0, 1.0), budget, 16)


def test_a_refused_budget_names_the_blocks_of_the_fastest_mask() -> None:
    masks = [candidate("0101", 12.0), candidate("1111", 20.0)]
    with pytest.raises(ValueError, match=r"at least 12.0 ms, .* fastest mask \(active blocks 1 3\) needs, got 10.0 ms"):
        select_for_budget(masks, 10.0)


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        select_for_budget([], 10.0)
    with pytest.raises(ValueError, match="at least one candidate"):
        request_mask([], "simple", 10.0)
    with pytest.raises(ValueError, match="at least one block"):
        depth_under_budget(Line(1.0, 1.0, 1.0), 10.0, 0)
    with pytest.raises(ValueError, match="finite line"):
        depth_under_budget(Line(math.nan, 1.0, 1.0), 10.0, 16)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"latency_ms": math.nan}, "latency_ms of mask 10 to be positive and finite, got nan"),
        ({"latency_ms": 0.0}, "positive"),
        ({"quality": math.nan}, "finite quality of mask 10"),
        ({"quality_ci": (0.6, 0.4)}, r"quality_ci of mask 10 as finite \(low, high\), got \(0.6, 0.4\)"),
        ({"drop_ci": (0.0, math.inf)}, "drop_ci of mask 10"),
        ({"drop_ci": (0.0,)}, "drop_ci as a list of 2 numbers"),
    ],
)
def test_candidates_of_bad_numbers(change: dict, message: str) -> None:
    good = {"mask_id": "10", "latency_ms": 10.0, "quality": 0.5, "quality_ci": (0.4, 0.6), "drop_ci": (0.0, 0.1)}
    with pytest.raises(ValueError, match=message):
        Candidate(**(good | change))
