"""What benchmarks write down about the machine they ran on, and of a ratio."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lit_depth.functional.statistics.median import median_interval

# of what a script draws itself; what the library draws has its own default, which is 0 as well
SEED = 0
# where the JSON files go; the committed ones are those of each script's own defaults
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).resolve().parent / "results")


def environment(threads: int) -> dict[str, Any]:
    """Machine, versions and seed, as far as the numbers depend on them."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "seed": SEED,
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "lit_depth")},
    }


def median_ratio(ratios: Sequence[float], name: str = "ratio", digits: int = 3) -> dict[str, Any]:
    """The median of the ratios of pairs of runs under a name, its interval, and how many pairs there were.

    The interval has 95%; of fewer than 6 pairs it reaches from the least to the greatest, which hold the median less
    often (`median_interval`); of one pair there is none.
    """
    limits = [round(limit, digits) for limit in median_interval(ratios)] if len(ratios) > 1 else None
    return {name: round(statistics.median(ratios), digits), f"{name}_ci": limits, "pairs": len(ratios)}


def interval_text(limits: Sequence[float] | None) -> str:
    """An interval of `median_ratio` for a table."""
    return "one pair" if limits is None else "[{:.2f}, {:.2f}]".format(*limits)
