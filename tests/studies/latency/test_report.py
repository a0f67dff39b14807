"""What Weights & Biases keeps of latency."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_depth.studies.latency.report import report
from tests.helpers.wandb_run import files_of, logged_report, read_table


def test_everything_is_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"P50": 40.0, "P95": 41.0}
    latency = {"vision": times, "prefill": times, "total": times, "decode_per_token": None}
    share = {"total": {"ratio": 0.5, "simultaneous_ci": None, "p_holm": None}}
    entry = {"policies": ["prefix"], "num_active_blocks": 4, "mask_id": "1111", "latency_ms": latency}
    result = {
        "task": "shapes_vqa",
        "device": "some device",
        "num_blocks": 4,
        "num_requests": 3,
        "batch_size": 1,
        "new_tokens": 1,
        "confidence": 0.95,
        "configurations": [{**entry, "of_full": share}],
        "fits": {"total": {"slope": 2.0, "intercept": 9.0, "r2": 0.99}},
    }
    logged = logged_report(report(result), "latency.json", {"summary": [], "all_samples": []}, tmp_path, monkeypatch)
    *_, media = logged.history
    (row,) = read_table(logged, media["latency/configurations"])
    assert (row["total_P50_ms"], row["decode_per_token_P50_ms"], row["of_full"]) == (40.0, None, 0.5)
    assert "figures/latency_vs_blocks" in media
    assert logged.summary["latency/total_ms_per_block"] == 2.0 and logged.summary["latency/total_ms_fixed"] == 9.0
    assert logged.summary["latency/num_requests"] == 3
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "latency"]
    assert files_of(artifact) == {"latency.json", "latency_details.json"}
