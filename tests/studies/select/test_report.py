"""What select tells about its choice is what the numbers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_depth.studies.select.report import report
from lit_depth.studies.shared.publish import as_text
from tests.helpers.wandb_run import files_of, logged_report, read_table

AGAIN = {"num_requests": 3, "share_within_budget": 1.0, "P50": 5.0, "P95": 6.0, "bound": 7.0}
BASELINE = {"answer": "yes", "quality": 0.4, "difference": 0.5, "difference_ci": [0.3, 0.7], "beaten": True}
BASELINE |= {"quality_ci": [0.3, 0.5], "num_candidates": 4, "split": "calibration"}


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


def selection() -> dict[str, Any]:
    fast, good = candidate("10", drop=0.2), candidate("11", drop=0.02)
    return {
        "task": "shapes_vqa",
        "metric": "ExactMatch",
        "num_blocks": 2,
        "new_tokens": 2,
        "device": "cpu",
        "confidence": 0.95,
        "share_within_budget": 0.95,
        "margin": 0.0,
        "budget_ms": 12.0,
        "quality": "measured",
        "full": {"quality": 0.9, "num_distinct_answers": 7},
        "baseline": BASELINE,
        "line": None,
        "candidates": [fast, good],
        "frontier": ["10", "11"],
        "selected": {**good, "measured_again": AGAIN},
        "rejected": [],
        "requests": {"simple": "11", "medium": "11", "complex": "11"},
    }


def test_a_tolerance_that_no_mask_keeps_is_not_claimed() -> None:
    result = selection()
    lines = as_text(report(result)).splitlines()
    told = {name: next(line for line in lines if f"A {name} request" in line) for name in result["requests"]}
    # the drop may be up to 0.04: within 0.10 and 0.05, not within 0.01
    assert told["simple"].endswith("blocks 0 1.") and told["medium"].endswith("blocks 0 1.")
    assert told["complex"].endswith("blocks 0 1 (the best: no mask surely loses so little).")
    # three requests are fewer than the 59 that a 95% bound of the 95th percentile takes
    assert any("takes 59 requests" in line for line in lines)


def test_a_selection_is_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = selection()
    logged = logged_report(report(result), "selection.json", result, tmp_path, monkeypatch)
    *_, media = logged.history
    assert [tuple(row.values()) for row in read_table(logged, media["select/candidates"])] == [
        ("10", 1, 10.0, pytest.approx(0.7)),
        ("11", 2, 10.0, pytest.approx(0.88)),
    ]
    drawn = (tmp_path / "result" / "figures" / "quality_vs_budget.png").read_bytes()
    assert (logged.files / media["figures/quality_vs_budget"]["path"]).read_bytes() == drawn
    expected = {"withheld": "", "baseline/answer": "yes", "full/num_distinct_answers": 7, "select/mask_id": "11"}
    expected |= {"select/budget_ms": 12.0, "select/share_within_budget": 1.0, "select/quality": 0.88}
    assert {key: logged.summary[key] for key in expected} == expected
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "selection"]
    assert artifact.name == "selection" and files_of(artifact) == {"selection.json"}


def test_a_withheld_verdict_comes_first_and_nothing_is_chosen() -> None:
    result = selection() | {"selected": None, "requests": {}, "baseline": {**BASELINE, "beaten": False}}
    told = as_text(report(result))
    assert told.startswith("\nNo verdict on shapes_vqa") and "No mask is recommended." in told
    assert not [key for key in report(result).scalars if key.startswith("select/")]


def test_it_tells_how_many_requests_were_timed_and_of_which_depths_none() -> None:
    assert "requests were timed" not in as_text(report(selection()))
    timing = {"adaptive": True, "num_requests": 177, "num_masks": 3, "depths_not_timed": [5, 6, 7, 9]}
    text = " ".join(as_text(report({**selection(), "timing": timing})).split())
    assert "177 requests were timed under 3 masks." in text
    assert "Not timed: the best masks of 5-7, 9 blocks, which are no better than a faster one." in text


def test_it_tells_the_fewest_and_the_most_requests_of_a_mask() -> None:
    result = selection()
    timed = [entry["latency_ms"] for entry in result["candidates"] if entry["latency_ms"]["num_requests"]]
    for times in timed:
        times["num_requests"] = 122
    assert "Times rest on 122 requests under each mask" in " ".join(as_text(report(result)).split())
    timed[0]["num_requests"] = 65
    assert "Times rest on 65 to 122 requests under each mask" in " ".join(as_text(report(result)).split())
