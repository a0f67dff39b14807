"""Do two checkouts give the same numbers? Runs the default commands in both, and compares every file of numbers.

    python benchmarks/same_results.py --before ../at-another-commit [--commands compare importance]

Compared are the JSON files, the tables (every answer and score of every mask; every distance of a hidden token), and
the names of the files that a command writes. Times, and what is chosen by them, are left out: `TIMES` and `TIMED` name
their keys. Everything else, the texts of answers and verdicts included, has to be equal to the last digit. The
questions are few, so that it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).resolve().parents[1]
SAMPLES = ["--data.num_samples", "48", "--data.calibration_samples", "40", "--data.batch_size", "16"]
COMMANDS = {
    "compare": ["--num_requests", "1", "--num_active_blocks", "4", "8", "12"],
    "importance": ["--methods", "all"],
    "consistency": [],
    "search": ["--max_blocks_to_remove", "2", "--beam_width", "2"],
    "select": ["--num_active_blocks", "4", "8", "--num_requests", "2"],
    "tokens": ["--spans", "true"],
}
# keys that hold times, a line through them, or their ratio to the time of a plain forward
TIMES = {"latency_ms", "line", "forwards", "forward_seconds", "proxies_together_forwards"}
# keys of `select` that hold what is chosen by times
TIMED = {"frontier", "selected", "rejected", "requests"}
# the manifest names files, versions and fingerprints of the run itself; proxy scores stand in importance.json
NOT_RESULTS = {"manifest.json", "batch_size.json", "proxy_scores.json"}
# the run's own name, a fingerprint that knows the version of the code
RUN = {"run"}


def results(checkout: Path, command: str, output: Path) -> dict[str, Any]:
    """Content of every JSON file and table that a command writes, without times, and the names of all its files."""
    arguments = [sys.executable, "-m", "lit_depth", command, *SAMPLES, *COMMANDS[command], "--output_dir", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    subprocess.run(arguments, check=True, cwd=output, env=environment, stdout=subprocess.DEVNULL)
    folder = output / command / "default"
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found: dict[str, Any] = {"files": list(files)}
    for name, path in files.items():
        if path.suffix == ".json" and path.name not in NOT_RESULTS:
            found[name] = without_times(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".parquet":
            table = pd.read_parquet(path)
            found[name] = table.astype(object).where(table.notna(), None).to_dict("list")
    return found


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in TIMES | TIMED | RUN}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Places where two contents differ.

    >>> differences({"a": [1, 2]}, {"a": [1, 3], "b": 0})
    ['.a[1]: 2 -> 3', '.b: absent -> 0']
    """
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [
            line
            for key in keys
            for line in differences(before.get(key, "absent"), after.get(key, "absent"), f"{where}.{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [line for i, pair in enumerate(zip(before, after)) for line in differences(*pair, f"{where}[{i}]")]
    return [] if before == after else [f"{where}: {before} -> {after}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    arguments = parser.parse_args()
    different = 0
    for command in arguments.commands:
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            before = results(arguments.before.resolve(), command, Path(first))
            after = results(HERE, command, Path(second))
        found = differences(before, after)
        different += bool(found)
        print(f"{command}: {', '.join(after)}: {'equal' if not found else f'{len(found)} differences'}", flush=True)
        for line in found[:20]:
            print(f"  {line}")
    sys.exit(different)


if __name__ == "__main__":
    main()
