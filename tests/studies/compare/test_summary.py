"""Numbers of the table of runs, counted by hand from the fixture's curves."""

from __future__ import annotations

from typing import Any

import pytest

from lit_depth.studies.compare.summary import summarize_policies


def test_area_and_fewest_blocks_are_those_of_the_curves(comparison: dict[str, Any]) -> None:
    found = summarize_policies(comparison)  # type: ignore[arg-type]
    # prefix: 0.61, 0.78, 0.79, 0.83 at 4, 6, 8, 10
    assert found["area/prefix"] == pytest.approx((0.61 / 2 + 0.78 + 0.79 + 0.83 / 2) / 3)
    # importance: 0.82, 0.96, 0.97, 0.98; 99% of 0.99 is 0.9801, 95% is 0.9405; intervals go 0.04 below, 0.035 above
    assert [found[f"blocks_for_99/importance{end}"] for end in ("", "/surely", "/possibly")] == [None, None, 6]
    assert [found[f"blocks_for_95/importance{end}"] for end in ("", "/surely", "/possibly")] == [6, None, 6]
    assert found["blocks_for_95/prefix"] is None


def test_the_best_at_half_depth_names_what_it_is_tied_with(comparison: dict[str, Any]) -> None:
    found = summarize_policies(comparison)  # type: ignore[arg-type]
    half = {key.partition("/")[2]: value for key, value in found.items() if key.startswith("half_depth/")}
    assert half == {"policy": "importance", "blocks": 8, "quality": 0.97, "tied_with": "prefix, random"}
    pair = {**comparison["comparisons"][0], "a": "prefix", "b": "importance", "num_active_blocks": 8, "verdict": "b"}
    comparison["comparisons"].append(pair)
    assert summarize_policies(comparison)["half_depth/tied_with"] == "random"  # type: ignore[arg-type]
    lost = {"answer": "a", "quality": 0.9, "difference": 0.09, "difference_ci": [-0.1, 0.2], "beaten": False}
    withheld = summarize_policies({**comparison, "baseline": lost})  # type: ignore[arg-type, typeddict-item]
    assert not [key for key in withheld if key.startswith("half_depth")]


def test_the_time_of_a_block_is_the_slope_of_the_lines_that_made_the_times(comparison: dict[str, Any]) -> None:
    found = summarize_policies(comparison)  # type: ignore[arg-type]
    # the fixture: prefill 4 + 2.1 k and five tokens of 0.8 + 0.55 k each, 11 of vision, with a percent of noise
    assert found["latency/total_ms_per_block"] == pytest.approx(2.1 + 5 * 0.55, rel=0.05)
    assert found["latency/total_ms_fixed"] == pytest.approx(4 + 11 + 5 * 0.8, rel=0.15)
    comparison["full"]["latency_ms"] = None
    assert "latency/total_ms_per_block" not in summarize_policies(comparison)  # type: ignore[arg-type]


def test_of_log_probabilities_no_share_is_kept(comparison: dict[str, Any]) -> None:
    comparison["full"]["quality"] = -2.0
    assert not [key for key in summarize_policies(comparison) if key.startswith("blocks_for")]  # type: ignore[arg-type]
