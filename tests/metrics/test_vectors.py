"""The excerpt of the reference vectors is one: same vectors, same numbers."""

from __future__ import annotations

import json
from pathlib import Path


def test_excerpt_is_part_of_the_golden_vectors(golden_dir: Path) -> None:
    excerpt = json.loads((Path(__file__).resolve().parents[1] / "data" / "metric_vectors.json").read_text("utf-8"))
    golden = json.loads((golden_dir / "metric_vectors.json").read_text("utf-8"))
    assert excerpt["meta"]["commits"] == golden["meta"]["commits"]
    assert set(excerpt["metrics"]) == set(golden["metrics"])
    for name, vectors in excerpt["metrics"].items():
        assert vectors and all(vector in golden["metrics"][name] for vector in vectors)
