"""How much faster two processes of one thread each finish ``lit-depth importance`` than one process of one thread.

Runs alternate as 1, 2, 2, 1 processes, so that drift of the machine cancels; start-up, merge, statistics and figures
are part of every run. Three bounds tell where the rest of a factor of two goes:

- ``bound``: the same ratio for a bare loop of matrix products, which share nothing but the machine's clock.
- ``bound_independent``: one process over two independent ones at once, each with half of the samples, which share the
  memory besides. Each starts up and draws its own figures.
- ``bound_start_and_end``: one process over its own time if its answers took half. What is not answers is the time of
  the same command in the folder of a finished run: all records are there.

Use an otherwise idle machine.

    python benchmarks/processes.py [--samples 2000] [--rounds 1]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import RESULTS, environment, median_ratio

OUTPUT = RESULTS / "processes.json"


def command(num_processes: int, num_samples: int, folder: str) -> list[str]:
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--standalone"]
    words += ["-m", "lit_depth", "importance", f"--num_samples={num_samples}", f"--output_dir={folder}"]
    words += ["--data.batch_size=16", "--trainer.accelerator=cpu", f"--trainer.devices={num_processes}"]
    return [*words, "--trainer.strategy=ddp"]


def wall_seconds(*commands: list[str]) -> float:
    """Wall time until all of some commands, started together, have ended."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(words, env=environ, **quiet) for words in commands]
    failed = [each.args for each in running if each.wait()]
    if failed:
        raise RuntimeError(f"expected the command to end well, got an error; run it to see: {failed[0]}")
    return time.perf_counter() - start


def seconds(num_processes: int, num_samples: int) -> tuple[float, float]:
    """Wall time of the whole command, and of the same once more, which finds all answers recorded."""
    with tempfile.TemporaryDirectory() as folder:
        words = command(num_processes, num_samples, folder)
        return wall_seconds(words), wall_seconds(words)


def independent_seconds(num_samples: int) -> float:
    """Wall time of two commands of one process each and half of the samples, at once."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        return wall_seconds(*(command(1, num_samples // 2, folder) for folder in (one, other)))


def bound() -> float:
    """How much more than one process two independent ones get done on this machine, in matrix products."""
    code = "import time, torch; torch.set_num_threads(1); a = torch.randn(256, 256); end = time.time() + 5; n = 0\n"
    code += "while time.time() < end: a @ a; n += 1\nprint(n)"
    done = {}
    for count in (1, 2):
        running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(count)]
        done[count] = sum(int(each.communicate()[0]) for each in running)
    return done[2] / done[1]


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time lit-depth importance by two processes against one (CPU).")
    parser.add_argument("--samples", type=int, default=2000, help="samples of each run (default 2000)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of four runs (default 1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    result = {"environment": environment(1), "num_samples": arguments.samples, "bound": round(bound(), 2)}
    found: dict[int, list[float]] = {1: [], 2: []}
    recorded: dict[int, list[float]] = {1: [], 2: []}
    independent: list[float] = []
    for num_processes in (1, 2, 2, 1) * arguments.rounds:
        for taken, into in zip(seconds(num_processes, arguments.samples), (found, recorded)):
            into[num_processes].append(round(taken, 1))
        if num_processes == 2:
            independent.append(round(independent_seconds(arguments.samples), 1))
        print(f"processes {num_processes}: {found[num_processes][-1]} s", flush=True)
    one, two, rest = sum(found[1]), sum(found[2]), sum(recorded[1])
    result |= {
        "one_process_s": found[1],
        "two_processes_s": found[2],
        "recorded_one_process_s": recorded[1],
        "recorded_two_processes_s": recorded[2],
        "two_independent_halves_s": independent,
        **median_ratio([a / b for a, b in zip(found[1], found[2])]),
        "bound_independent": round(one / sum(independent), 3),
        "bound_start_and_end": round(one / (rest + (one - rest) / 2), 3),
        "ratio_of_answers": round((one - rest) / (two - sum(recorded[2])), 3),
    }
    bounds = {key: each for key, each in result.items() if key.startswith(("bound", "ratio_"))}
    print(f"two processes against one: {result['ratio']}; {bounds}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
