"""What is chosen follows from quality and times, and what is slower when measured again gives way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lit_depth.functional.latency.budget import Line
from lit_depth.studies.select.analysis import (
    Bounds,
    Option,
    choose,
    describe,
    masks_to_time,
    order_by_importance,
    worth_timing,
)
from lit_depth.studies.select.arguments import SelectArguments
from tests.studies.select.test_arguments import ESTIMATE, RIGHT

QUALITY = {"1000": 0.5, "0100": 0.4, "1100": 0.8, "1110": 0.7, "1111": 0.9}


def arguments(**given: Any) -> SelectArguments:
    return SelectArguments(**RIGHT | {"margin": 0.0} | given)


def options() -> list[Option]:
    return [
        Option(mask, ["prefix"], {"quality": q, "quality_ci": [q, q], "drop_ci": [0.9 - q, 0.9 - q]}, None)
        for mask, q in QUALITY.items()
    ]


def steady(masks: Sequence[str], slower: dict[str, float] | None = None) -> dict[str, list[float]]:
    """10 ms and 1 ms per active block, in each of three requests."""
    return {mask: [10.0 + mask.count("1") + (slower or {}).get(mask, 0.0)] * 3 for mask in masks}


def described(given: SelectArguments) -> dict[str, Any]:
    known = order_by_importance([4.0, 3.0, 2.0, 1.0], 4, []) if given.estimate_depth else options()
    return describe(given, known, steady(masks_to_time(known, given.estimate_depth)))


def test_the_best_mask_of_each_depth_is_timed_and_shown() -> None:
    result = described(arguments())
    assert [entry["mask_id"] for entry in result["candidates"]] == ["1000", "1100", "1110", "1111"]
    assert [entry["latency_ms"]["bound"] for entry in result["candidates"]] == [11.0, 12.0, 13.0, 14.0]
    assert result["frontier"] == ["1000", "1100", "1111"] and result["full"]["quality"] == 0.9
    assert result["line"] == pytest.approx({"slope": 1.0, "intercept": 10.0, "r2": 1.0})
    with_margin = described(arguments(margin=0.2))
    assert [entry["latency_ms"]["bound"] for entry in with_margin["candidates"]] == [13.75, 15.0, 16.25, 17.5]


@pytest.mark.parametrize(("budget", "best"), [(14.0, "1111"), (13.9, "1100"), (12.0, "1100"), (11.5, "1000")])
def test_the_best_mask_within_the_budget_is_chosen(budget: float, best: str) -> None:
    given = arguments(budget_ms=budget)
    choice = choose(described(given), given, steady)
    assert choice["selected"]["mask_id"] == best and choice["rejected"] == []
    assert choice["selected"]["measured_again"]["share_within_budget"] == 1.0
    assert set(choice["requests"]) == {"simple", "medium", "complex"} and "depth_by_plain_ratio" not in choice


def test_a_mask_that_is_slower_when_measured_again_gives_way() -> None:
    given = arguments(budget_ms=14.0)
    choice = choose(described(given), given, lambda masks: steady(masks, {"1111": 1.0, "1100": 9.0}))
    assert [entry["mask_id"] for entry in choice["rejected"]] == ["1111", "1100"]
    assert choice["rejected"][0]["measured_again"]["bound"] == 15.0 and choice["selected"]["mask_id"] == "1110"
    everything = dict.fromkeys(QUALITY, 5.0)
    with pytest.raises(ValueError, match="at least 16.0 ms.*; measured again, 4 masks took longer than before"):
        choose(described(given), given, lambda masks: steady(masks, everything))


def test_an_estimated_depth_follows_the_line_and_what_was_measured_again() -> None:
    given = arguments(**ESTIMATE | {"budget_ms": 13.0})
    result = described(given)
    assert result["frontier"] == [] and result["full"] is None and len(result["candidates"]) == 4
    choice = choose(result, given, steady)
    assert choice["selected"]["mask_id"] == "1110" and choice["requests"] == {}
    assert choice["depth_by_plain_ratio"] == 3  # 13 / 14 of four blocks
    slower = choose(result, given, lambda masks: steady(masks, {"1110": 1.0}))
    assert slower["selected"]["mask_id"] == "1100"
    with pytest.raises(ValueError, match="at least 12.0 ms, which 1 of 4 blocks took when measured again, got 11"):
        given = arguments(**ESTIMATE | {"budget_ms": 11.0})
        choose(result, given, lambda masks: steady(masks, {"1000": 1.0}))


def test_one_depth_is_no_line() -> None:
    times = steady(["1100"])
    assert Bounds.from_times(times, arguments()).line is None
    with pytest.raises(ValueError, match="two numbers of active blocks or more: keep fewer blocks"):
        Bounds.from_times(times, arguments(**ESTIMATE))
    with pytest.raises(ValueError, match="expected times of 3 active blocks"):
        Bounds.from_times(times, arguments()).of("1110")
    assert Bounds({}, Line(1.0, 2.0, None)).of("1110") == 5.0


def test_masks_that_no_budget_would_choose_are_not_timed() -> None:
    # 1110 has more blocks than 1100 and is no better; the full model always stays
    assert [option.mask_id for option in worth_timing(options())] == ["1000", "1100", "1111"]
    worse = [option for option in options() if option.mask_id != "1111"]
    worse.append(Option("1111", ["full"], {"quality": 0.1}, None))
    assert [option.mask_id for option in worth_timing(worse)] == ["1000", "1100", "1111"]


def test_a_bound_has_a_confidence_of_95_percent_and_the_margin_on_top() -> None:
    times = {"1100": [float(time) for time in range(100)]}
    # of 100 requests at most one lies beyond the percentile with 3.7%, at most two with 11.8%
    assert Bounds.from_times(times, arguments(margin=0.0)).by_mask == {"1100": 98.0}
    assert Bounds.from_times(times, arguments(margin=0.02)).by_mask == {"1100": 98.0 / 0.98}
