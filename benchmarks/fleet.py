"""What a lost node costs a sweep by Ray: the time left when one of two nodes disappears, over the ideal time left.

A local cluster of two nodes, one worker of one thread on each, answers `lit-depth importance`. When half of the records
are there, one node is removed without notice. The ideal: the records that are left, by one worker at half the rate that
both had before. That rate is of the same run, from the first record on, so that no start-up counts. The batches which
the lost worker had begun are part of what is left. What two whole nodes answer is compared byte for byte with one
process.

The process that reads data and writes records shares the two cores with the workers: with one of them gone it has a
core of its own, so that a ratio below 1 can come. Use an otherwise idle machine.

    python benchmarks/fleet.py [--samples 192] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from environment import environment

from lit_depth.cli import main as lit_depth
from lit_depth.functional.statistics.median import median_interval

OUTPUT = Path(__file__).resolve().parent / "results" / "fleet.json"
MASKS = 17  # of the bundled model: each block left out, and none


def importance(folder: Path, num_samples: int, *options: str) -> None:
    """Run the command on as many samples."""
    sizes = ["--data.calibration_samples", str(num_samples), "--data.batch_size", "8"]
    lit_depth(["importance", "--output_dir", str(folder), *sizes, *options])


def watch(folder: Path, total: int, remove: Any) -> list[tuple[float, int]]:
    """Times and numbers of records, from the first to the last; at half of them a node is removed."""
    seen: list[tuple[float, int]] = []
    is_removed = False
    while not seen or seen[-1][1] < total:
        time.sleep(0.02)
        count = sum(each.read_bytes().count(b"\n") for each in folder.rglob("rank0.jsonl"))
        if count and (not seen or count > seen[-1][1]):
            seen.append((time.perf_counter(), count))
        if count >= total / 2 and not is_removed:
            is_removed = True
            remove()
    return seen


def lose_a_node(folder: Path, num_samples: int) -> dict[str, float]:
    """One run that loses a node at half time."""
    # the extra ray, which nothing else here needs
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second, moments, total = cluster.add_node(num_cpus=1), [], MASKS * num_samples

    def remove() -> None:
        moments.append(time.perf_counter())
        cluster.remove_node(second, allow_graceful=False)

    seen: list[tuple[float, int]] = []
    watcher = threading.Thread(target=lambda: seen.extend(watch(folder, total, remove)), daemon=True)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        watcher.start()
        importance(folder, num_samples, "--executor", "ray")
        watcher.join(30)
    finally:
        ray.shutdown()
        cluster.shutdown()
    before = [each for each in seen if each[0] <= moments[0]]
    rate = (before[-1][1] - before[0][1]) / (before[-1][0] - before[0][0])
    left = seen[-1][0] - moments[0]
    ideal = (total - before[-1][1]) / (rate / 2)
    return {"records_per_second_of_two": rate, "seconds_left": left, "ideal_seconds_left": ideal, "ratio": left / ideal}


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time a sweep by Ray that loses one of two nodes at half time (CPU).")
    parser.add_argument("--samples", type=int, default=192, help="samples of each run (default 192)")
    parser.add_argument("--rounds", type=int, default=3, help="runs (default 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    result: dict[str, Any] = {"environment": environment(1), "num_samples": arguments.samples, "runs": []}
    with tempfile.TemporaryDirectory() as name:
        importance(Path(name) / "one", arguments.samples)
        whole = next((Path(name) / "one").rglob("rank0.jsonl")).read_bytes()
        for index in range(arguments.rounds):
            folder = Path(name) / str(index)
            found = {key: round(value, 3) for key, value in lose_a_node(folder, arguments.samples).items()}
            is_same = next(folder.rglob("rank0.jsonl")).read_bytes() == whole
            result["runs"].append(found | {"records_equal_one_process": is_same})
            print(result["runs"][-1], flush=True)
    ratios = [each["ratio"] for each in result["runs"]]
    limits = [round(limit, 3) for limit in median_interval(ratios)]
    result |= {"ratio": round(statistics.median(ratios), 3), "ratio_ci": limits, "target": 1.2}
    print(f"time left over the ideal: {result['ratio']} {result['ratio_ci']}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
