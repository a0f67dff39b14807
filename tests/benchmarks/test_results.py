"""What the committed results of the benchmarks tell beside their figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FILES = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "results").glob("*.json"))
# of an H200, which is seldom at hand: made by earlier versions of the scripts
EARLIER = {"gpu_latency.json", "gpu_sweep.json"}
# fleet: each run has one ratio, and the interval is of all runs; stability: each ratio is of one whole command
SINGLE = {"fleet.json", "stability.json"}


def parts(content: Any) -> Iterator[dict[str, Any]]:
    """All dictionaries in the content of a JSON file."""
    if isinstance(content, dict):
        yield content
    for each in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from parts(each)


@pytest.mark.parametrize("path", [path for path in FILES if path.name not in EARLIER], ids=lambda path: path.stem)
def test_each_result_names_its_machine_and_seed_and_the_interval_of_a_ratio(path):
    found = list(parts(json.loads(path.read_text(encoding="utf-8"))))
    abouts = [part["environment"] for part in found if "environment" in part]
    assert abouts and all({"cpu", "threads", "seed", "torch", "transformers"} <= set(about) for about in abouts)
    if path.name not in SINGLE:
        ratios = [part for part in found if isinstance(part.get("ratio"), float)]  # coverage.json has words there
        for part in ratios:
            limits = part["ratio_ci"] if "ratio_ci" in part else part["interval"]
            if part.get("pairs") == 1:  # no interval of one value
                assert limits is None
            else:
                assert limits[0] <= part["ratio"] <= limits[1]
