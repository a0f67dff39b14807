"""Every script of the benchmarks starts: what it imports is there under the names that it uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "environment.py")
# of a GPU, of another checkout, of weights and of a package that are installed besides
ELSEWHERE = {"gpu_latency.py", "gpu_sweep.py", "same_results.py", "real.py", "easy_vqa_sweep.py", "fleet.py"}
# one process for all of them, as each imports torch
RUN = """
import contextlib, runpy, sys
folder, *scripts = sys.argv[1:]
sys.path.insert(0, folder)
for script in scripts:
    sys.argv = [f"{folder}/{script}", "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_every_benchmark_shows_its_help(tmp_path):
    command = [sys.executable, "-c", RUN, FOLDER, *SCRIPTS]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    started = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("usage: ")]
    assert len(SCRIPTS) >= 15 and started == SCRIPTS


def test_make_bench_runs_all_that_need_nothing_else():
    lines = (FOLDER / "quick.txt").read_text(encoding="utf-8").splitlines()
    assert [f"{line.split()[0]}.py" for line in lines] == sorted(set(SCRIPTS) - ELSEWHERE)
