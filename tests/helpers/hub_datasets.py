"""Small parquet copies of the public datasets, in exactly their documented columns, with drawn images.

The rows of each stand in its own test, ``tests/data/tasks/test_<name>.py``: ``rows_of(split, start, count)`` gives rows
and their features, ``SPLITS`` are the public splits.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from lit_depth.data.hub import HubTask
from lit_depth.data.tasks import TASKS
from tests.helpers.hub_fixtures import write_rows

_TESTS = {task.name: import_module(f"tests.data.tasks.test_{task.name}") for task in TASKS if issubclass(task, HubTask)}
DATASETS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    name: (test.rows_of, test.SPLITS) for name, test in _TESTS.items()
}


def write_dataset(name: str, folder: Path, num_rows: int = 24) -> Path:
    """Write all public splits of a dataset, each of other images, in the files that the hub would have."""
    build, splits = DATASETS[name]
    for number, split in enumerate(splits):
        rows, features = build(split, 1000 * number, num_rows)
        write_rows(folder / f"{split}-00000-of-00001.parquet", rows, features)
    return folder
