"""The model of time on the bundled model, and what ``select`` takes with all its defaults.

- "time_model": ``lit-depth latency --fit_time_model true``, all depths: the error for masks that were left out of the
  fit, by stage.
- "select": seconds of the whole command with no argument but its folder, how many requests it timed, and how many the
  plan of 100 for each depth would have timed.

    python benchmarks/time_model.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment

OUTPUT = RESULTS / "time_model.json"


def run(folder: str, *arguments: str) -> float:
    """Seconds of a command in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "lit_depth", *arguments, "--output_dir", folder]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 1)


def read(folder: str, *place: str) -> Any:
    return json.loads(Path(folder, *place).read_text(encoding="utf-8"))


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Held-out error of the model of time, and the seconds of select.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(torch.get_num_threads())}
    with tempfile.TemporaryDirectory() as folder:
        seconds = run(folder, "select")
        found = read(folder, "select", "default", "selection.json")
        fixed = 100 * found["num_blocks"]
        result["select"] = {"target_s": 60, "seconds": seconds, "fixed_requests": fixed, **found["timing"]}
        print(result["select"], flush=True)
        seconds = run(folder, "latency", "--fit_time_model", "true", "--num_samples", "20", "--new_tokens", "8")
        model = read(folder, "latency", "default", "time_model.json")
        result["time_model"] = {"target_median": 0.05, "seconds": seconds, **model}
        print(result["time_model"]["held_out"], flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
