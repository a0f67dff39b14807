"""The built-in tasks, by name. A new one is a file in this folder, an import and an entry in `TASKS`."""

from __future__ import annotations

import difflib

from lit_depth.data.shapes import ShapesVQA
from lit_depth.data.task import Task

TASKS: tuple[type[Task], ...] = (ShapesVQA,)

__all__ = ["TASKS", "get_task"]


def get_task(name: str) -> Task:
    """Return the task of that name with its default arguments.

    >>> get_task("shapes_vqa").metric
    'ExactMatch'

    Raises:
        ValueError: If there is none; the message names the nearest ones.
    """
    names = {task.name: task for task in TASKS}
    if name not in names:
        nearest = difflib.get_close_matches(name, names) or sorted(names)
        raise ValueError(f"unknown task {name!r}; did you mean {' or '.join(nearest)}?")
    return names[name]()
