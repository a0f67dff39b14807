"""Which tasks a run is about: what the arguments ``task``, ``tasks``, ``path`` and their kin come to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lit_depth.data.columns import BY_LIKELIHOOD
from lit_depth.data.task import AnswerBy, Task
from lit_depth.data.tasks import TASKS, get_task
from lit_depth.data.tasks.next_token import NextToken, is_text
from lit_depth.data.tasks.own_files import OwnFiles, say

_NEEDED = ("name", "metric", "max_new_tokens")  # of a task
_DEFAULT = "shapes_vqa"


def choose_tasks(
    task: str | Task | None = None,
    tasks: Sequence[str | Task] | Literal["all"] | None = None,
    path: str | None = None,
    columns: dict[str, str | None] | None = None,
    allow_outside: bool = False,
    answer_by: AnswerBy | None = None,
    metric: str | None = None,
) -> list[Task]:
    """The tasks that are meant, each with a name of its own; arguments as for `lit_depth.data.DepthDataModule`.

    Raises:
        ValueError: If there is none, two have the same name, one is no task, or arguments do not go together.
    """
    is_own = path is not None and task is None and tasks is None
    if path is not None and (task == NextToken.name or (is_own and is_text(path))):
        is_own, columns, task = False, None, _next_token(path, columns)
    if (columns or allow_outside) and not is_own:
        raise ValueError("expected columns and allow_outside with a path and no task: a task knows its own columns")
    if is_own:
        return [_own_files(str(path), columns, allow_outside, answer_by, metric)]
    names = _all_tasks(path) if tasks == "all" else ([task or _DEFAULT] if tasks is None else tasks)
    return [_asked(entry, answer_by, metric) for entry in _checked([_made(entry) for entry in names])]


def _own_files(
    path: str,
    columns: dict[str, str | None] | None,
    allow_outside: bool,
    answer_by: AnswerBy | None,
    metric: str | None,
) -> OwnFiles:
    task = OwnFiles(path, columns, allow_outside)
    task.answer_by = answer_by or task.answer_by  # before it guesses its metric
    if metric is not None:
        task.metric = metric
    task.tell()
    return task


def _made(task: str | Task) -> Task:
    return get_task(task) if isinstance(task, str) else task


def _checked(tasks: list[Task]) -> list[Task]:
    for task in tasks:
        lacking = [name for name in _NEEDED if not hasattr(task, name)]
        if lacking:
            raise ValueError(f"expected a task with {', '.join(lacking)}, got a {type(task).__name__} without")
    known = [task.name for task in tasks]
    if not known or len(set(known)) < len(known):
        raise ValueError(f"expected at least one of tasks, each with a name of its own, got {known}")
    return tasks


def _asked(task: Task, answer_by: AnswerBy | None, metric: str | None) -> Task:
    """The task as it is to be asked and scored; one that was given stays as it is."""
    if answer_by is None and metric is None:
        return task
    task = copy.copy(task)
    if answer_by is not None:
        task.answer_by = answer_by
    if metric is not None:
        task.metric = metric
    elif answer_by == "likelihood":
        task.metric = BY_LIKELIHOOD
    return task


def _next_token(path: str, columns: dict[str, str | None] | None) -> NextToken:
    unknown = sorted(set(columns or {}) - {"text"})
    if unknown:
        raise ValueError(f"--data.columns: expected text, the column of the texts, got {', '.join(unknown)}")
    say(f"{path}: texts, so every token is to be predicted (task next_token, metric {NextToken.metric})")
    return NextToken((columns or {}).get("text"))


def _all_tasks(path: str | None) -> list[str | Task]:
    """Names of all built-in tasks; where a folder is given, of those that have one in it."""
    names: list[str | Task] = [kind.name for kind in TASKS if path is None or Path(path, kind.name).is_dir()]
    if not names:
        raise ValueError(f"expected folders called as the tasks in {path}, such as {TASKS[1].name}; there are none")
    return names
