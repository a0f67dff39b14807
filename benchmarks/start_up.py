"""What a command costs before its first progress bar, against what it cannot do without.

- "bare": ``import lightning.pytorch, transformers`` and loading the bundled checkpoint, in a fresh process.
- each command: a fresh process up to the moment at which its first progress bar is made.

CPU seconds of the processes, system time included, by turns; ratios of neighbours with an interval of their median.

    python benchmarks/start_up.py [--repeats 8]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import environment

from lit_depth.functional.statistics.median import median_interval

OUTPUT = Path(__file__).resolve().parent / "results" / "start_up.json"
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


def measure(repeats: int) -> dict[str, Any]:
    """Medians of each side, and the median of the ratios with its interval."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    bare: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(repeats + 1):
        for name in COMMANDS:
            with tempfile.TemporaryDirectory() as folder:
                sides = [
                    lambda name=name: bare[name].append(cpu_seconds(BARE + TOLD)),
                    lambda name=name, folder=folder: found[name].append(
                        cpu_seconds(UNTIL_BAR, name, "--output_dir", folder)
                    ),
                ]
                for side in sides[:: 1 if repeat % 2 else -1]:
                    side()
        if repeat == 0:  # files are in the cache from now on
            found, bare = ({name: [] for name in COMMANDS} for _ in range(2))
    result = {}
    for name in COMMANDS:
        ratios = [ours / least for ours, least in zip(found[name], bare[name])]
        result[name] = {
            "cpu_s": round(sorted(found[name])[repeats // 2], 2),
            "bare_cpu_s": round(sorted(bare[name])[repeats // 2], 2),
            "ratio": round(sorted(ratios)[repeats // 2], 3),
            "interval": [round(limit, 3) for limit in median_interval(ratios)],
        }
        print(name, result[name], flush=True)
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
