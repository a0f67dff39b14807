"""What benchmarks write down about the machine they ran on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def environment(threads: int) -> dict[str, Any]:
    """Machine and versions, as far as the numbers depend on them."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "lit_depth")},
    }


def process_bound() -> float:
    """How much more than one process two independent ones get done on this machine, in matrix products."""
    code = "import time, torch; torch.set_num_threads(1); a = torch.randn(256, 256); end = time.time() + 5; n = 0\n"
    code += "while time.time() < end: a @ a; n += 1\nprint(n)"
    done = {}
    for count in (1, 2):
        running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(count)]
        done[count] = sum(int(each.communicate()[0]) for each in running)
    return done[2] / done[1]
