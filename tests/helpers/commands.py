"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lit_depth.cli import main
from lit_depth.data.tasks.shapes_vqa import ShapesVQA


class SecondShapes(ShapesVQA):
    """Another task: other images of the same kind."""

    name = "second_shapes"

    def __init__(self) -> None:
        super().__init__(num_images=20, seed=5)


def run(arguments: Sequence[Any]) -> int:
    """Run a command in this process; its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def close(a: Any, b: Any, rel: float = 1e-6) -> bool:
    """Equal but for the last digits of floats: kernels round differently for other numbers of rows."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], rel) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(close(*pair, rel) for pair in zip(a, b))
    return a == pytest.approx(b, rel=rel) if isinstance(a, float) else a == b
