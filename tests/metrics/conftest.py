"""Reference vectors: an excerpt that is always here, and the whole set where it is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

EXCERPT = Path(__file__).resolve().parents[1] / "data" / "metric_vectors.json"


@pytest.fixture(params=["excerpt", "golden"])
def vectors(request: pytest.FixtureRequest) -> Callable[[str], list[dict]]:
    """Vectors of a metric by its name."""
    path = EXCERPT if request.param == "excerpt" else request.getfixturevalue("golden_dir") / "metric_vectors.json"
    return json.loads(path.read_text(encoding="utf-8"))["metrics"].__getitem__
