"""What a lost node costs a sweep by Ray: the time left when one of two nodes disappears, over the ideal time left.

A local cluster, one worker of one thread on each node, answers `lit-depth importance`. On two nodes, one is removed
without notice when half of the records are there. The ideal: the records that are left at the rate of a cluster of one
node, in a run of its own just before, counted from a quarter of the records on, so that no start-up counts. The batches
which the lost worker had begun are part of what is left. The records are compared byte for byte with one process.

The process that reads data and writes records shares the two cores with the workers. Use an otherwise idle machine.

    python benchmarks/fleet.py [--samples 192] [--rounds 6]
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment

from lit_depth.cli import main as lit_depth
from lit_depth.functional.statistics.median import median_interval

OUTPUT = RESULTS / "fleet.json"
MASKS = 17  # of the bundled model: each block left out, and none


def importance(folder: Path, num_samples: int, *options: str) -> None:
    """Run the command on as many samples."""
    sizes = ["--data.calibration_samples", str(num_samples), "--data.batch_size", "8"]
    lit_depth(["importance", "--output_dir", str(folder), *sizes, *options])


def watch(folder: Path, total: int, at_half: Callable[[], None]) -> list[tuple[float, int]]:
    """Times and numbers of records, from the first to the last."""
    seen: list[tuple[float, int]] = []
    is_over = False
    while not seen or seen[-1][1] < total:
        time.sleep(0.02)
        count = sum(each.read_bytes().count(b"\n") for each in folder.rglob("rank0.jsonl"))
        if count and (not seen or count > seen[-1][1]):
            seen.append((time.perf_counter(), count))
        if count >= total / 2 and not is_over:
            is_over = True
            at_half()
    return seen


def answer(folder: Path, num_samples: int, num_nodes: int) -> list[tuple[float, int]]:
    """`watch` one run on so many nodes; of two, one is removed at half of the records."""
    # the extra ray, which nothing else here needs
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    others = [cluster.add_node(num_cpus=1) for _ in range(num_nodes - 1)]
    seen: list[tuple[float, int]] = []

    def remove() -> None:
        for node in others:
            cluster.remove_node(node, allow_graceful=False)

    watcher = threading.Thread(target=lambda: seen.extend(watch(folder, MASKS * num_samples, remove)), daemon=True)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        watcher.start()
        importance(folder, num_samples, "--executor", "ray")
        watcher.join(30)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return seen


def since(seen: list[tuple[float, int]], share: float) -> tuple[float, int]:
    """Seconds and records from the first moment at which that share of the records was there to the end."""
    begin = next(each for each in seen if each[1] >= share * seen[-1][1])
    return seen[-1][0] - begin[0], seen[-1][1] - begin[1]


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time a sweep by Ray that loses one of two nodes at half time (CPU).")
    parser.add_argument("--samples", type=int, default=192, help="samples of each run (default 192)")
    parser.add_argument("--rounds", type=int, default=6, help="pairs of runs (default 6)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    # a worker asks its node for as many CPUs as this process has threads, and each node here has one
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    torch.set_num_threads(1)
    result: dict[str, Any] = {"environment": environment(1), "num_samples": arguments.samples, "runs": []}
    with tempfile.TemporaryDirectory() as name:
        importance(Path(name) / "one", arguments.samples)
        whole = next((Path(name) / "one").rglob("rank0.jsonl")).read_bytes()
        for index in range(arguments.rounds):
            alone, lost = (Path(name) / f"{index}_{kind}" for kind in ("alone", "lost"))
            seconds, records = since(answer(alone, arguments.samples, 1), 0.25)
            left, records_left = since(answer(lost, arguments.samples, 2), 0.5)
            result["runs"].append(
                {
                    "records_per_second_of_one_node": round(records / seconds, 1),
                    "seconds_left": round(left, 3),
                    "records_left": records_left,
                    "ratio": round(left / (records_left * seconds / records), 3),
                    "equal_one_process": all(
                        next(folder.rglob("rank0.jsonl")).read_bytes() == whole for folder in (alone, lost)
                    ),
                }
            )
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
