"""What a command costs before its first progress bar, against what it cannot do without.

- "bare": ``import lightning.pytorch, transformers`` and loading the bundled checkpoint, in a fresh process.
- each command: a fresh process up to the moment at which its first progress bar is made.

CPU seconds of the processes, system time included, by turns; ratios of neighbours with an interval of their median.

    python benchmarks/start_up.py [--repeats 8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import RESULTS, environment, median_ratio

OUTPUT = RESULTS / "start_up.json"
COMMANDS = ("importance", "latency", "compare")
BARE = """
import lightning.pytorch, transformers
from lit_depth.models.loading import load_bundled
load_bundled()
"""
# the first bar that is shown ends the process
UNTIL_BAR = """
import os, sys, time
from tqdm import std
made = std.tqdm.__init__
def stop(self, *args, **options):
    made(self, *args, **options)
    if not self.disable:
        print(time.process_time(), flush=True)
        os._exit(0)
std.tqdm.__init__ = stop
from lit_depth.__main__ import main
main()
"""
TOLD = "\nimport time; print(time.process_time(), flush=True)"


def cpu_seconds(code: str, *arguments: str) -> float:
    """CPU seconds that a fresh process tells of itself, on the last line that it prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def until_bar(command: str) -> float:
    """CPU seconds of a command until its first bar, into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return cpu_seconds(UNTIL_BAR, command, "--output_dir", folder)


def measure(repeats: int) -> dict[str, Any]:
    """Medians of each side, and the median of the ratios with its interval."""
    cpu_seconds(BARE + TOLD)  # files are in the cache from now on
    result = {}
    for command in COMMANDS:
        sides: dict[str, list[float]] = {"bare": [], "command": []}
        for repeat in range(repeats):
            for side in sorted(sides, reverse=bool(repeat % 2)):
                sides[side].append(cpu_seconds(BARE + TOLD) if side == "bare" else until_bar(command))
        ratios = [ours / least for ours, least in zip(sides["command"], sides["bare"])]
        result[command] = {
            "cpu_s": round(statistics.median(sides["command"]), 2),
            "bare_cpu_s": round(statistics.median(sides["bare"]), 2),
            **median_ratio(ratios),
        }
        print(command, result[command], flush=True)
    return result


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="CPU seconds of commands up to their first progress bar.")
    parser.add_argument("--repeats", type=int, default=8, help="pairs of processes per command (default 8)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    result = {"environment": environment(1), "target": 1.25, "commands": measure(arguments.repeats)}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
