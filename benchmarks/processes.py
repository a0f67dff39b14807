"""How much faster two processes of one thread each finish ``lit-depth importance`` than one process of one thread.

Runs alternate as 1, 2, 2, 1 processes, so that drift of the machine cancels; start-up, merge, statistics and figures
are part of every run. The bound is the same ratio for a bare loop of matrix products, which share nothing but the
machine. Use an otherwise idle machine.

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

from environment import environment

OUTPUT = Path(__file__).resolve().parent / "results" / "processes.json"


def seconds(num_processes: int, num_samples: int) -> float:
    """Wall time of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--standalone"]
        command += ["-m", "lit_depth", "importance", f"--num_samples={num_samples}", f"--output_dir={folder}"]
        command += ["--data.batch_size=16", "--trainer.accelerator=cpu", f"--trainer.devices={num_processes}"]
        command += ["--trainer.strategy=ddp"]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return time.perf_counter() - start


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
    for num_processes in (1, 2, 2, 1) * arguments.rounds:
        found[num_processes].append(round(seconds(num_processes, arguments.samples), 1))
        print(f"processes {num_processes}: {found[num_processes][-1]} s", flush=True)
    result |= {"one_process_s": found[1], "two_processes_s": found[2]}
    result["ratio"] = round(sum(found[1]) / sum(found[2]), 3)
    print(f"two processes against one: {result['ratio']} (bound {result['bound']})")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
