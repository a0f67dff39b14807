"""A Ray cluster of two nodes, one of which disappears at half time: nothing is lost, and no byte differs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.helpers.commands import run

SAMPLES = 48
SMALL = ["--data.calibration_samples", str(SAMPLES), "--data.batch_size", "4", "--acceptance", "true", "--lens", "true"]
HALF = 17 * SAMPLES // 2  # of the records of 16 blocks and the full model


@pytest.mark.slow
def test_a_node_that_disappears_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert run(["importance", "--output_dir", tmp_path / "one", *SMALL]) == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second, counts = cluster.add_node(num_cpus=1), []

    def remove_at_half_time() -> None:
        while (count := sum(each.read_bytes().count(b"\n") for each in tmp_path.rglob("ray/**/rank0.jsonl"))) < HALF:
            time.sleep(0.02)
        counts.append(count)
        cluster.remove_node(second, allow_graceful=False)

    removal = threading.Thread(target=remove_at_half_time, daemon=True)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        removal.start()
        assert run(["importance", "--output_dir", tmp_path / "ray", *SMALL, "--executor", "ray"]) == 0
        removal.join(30)
        assert HALF <= counts[0] < 17 * SAMPLES and len(ray.nodes()) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
    found = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("importance.json"))]
    found += [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("rank0.jsonl"))]
    assert len(found) == 2
    for path in found:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "ray" / path).read_bytes(), path
