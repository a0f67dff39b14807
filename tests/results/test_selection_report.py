"""What select prints about its choice is what the numbers say."""

from __future__ import annotations

from typing import Any

from lit_depth.results.selection_report import summarize_selection


def candidate(mask_id: str, drop: float) -> dict[str, Any]:
    quality = {"quality": 0.9 - drop, "quality_ci": [0.5, 1.0], "drop": drop, "drop_ci": [drop - 0.02, drop + 0.02]}
    return {
        "mask_id": mask_id,
        "policies": ["prefix"],
        "num_active_blocks": mask_id.count("1"),
        "active_block_indices": [index for index, bit in enumerate(mask_id) if bit == "1"],
        "latency_ms": {"num_requests": 3, "P50": 5.0, "bound": 10.0},
        "chosen_by": quality,
        "expected": None,
    }


def test_a_tolerance_that_no_mask_keeps_is_not_claimed(tmp_path) -> None:
    fast, good = candidate("10", drop=0.2), candidate("11", drop=0.02)
    again = {"num_requests": 3, "share_within_budget": 1.0, "P50": 5.0, "P95": 6.0, "bound": 7.0}
    result = {
        "task": "shapes_vqa",
        "metric": "ExactMatch",
        "num_blocks": 2,
        "new_tokens": 2,
        "device": "cpu",
        "share_within_budget": 0.95,
        "margin": 0.0,
        "budget_ms": 12.0,
        "quality": "measured",
        "line": None,
        "candidates": [fast, good],
        "frontier": ["10", "11"],
        "selected": {**good, "measured_again": again},
        "rejected": [],
        "requests": {"simple": "11", "medium": "11", "complex": "11"},
    }
    lines = summarize_selection(result, tmp_path).splitlines()
    told = {name: next(line for line in lines if f"A {name} request" in line) for name in result["requests"]}
    # the drop may be up to 0.04: within 0.10 and 0.05, not within 0.01
    assert told["simple"].endswith("blocks 0 1.") and told["medium"].endswith("blocks 0 1.")
    assert told["complex"].endswith("blocks 0 1 (the best: no mask surely loses so little).")
    # three requests are fewer than the 59 that a 95% bound of the 95th percentile takes
    assert any("takes 59 requests" in line for line in lines)
