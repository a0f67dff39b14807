"""The built-in tasks, by name. A new one is a file in this folder, an import and an entry in `TASKS`."""

import difflib
from importlib import import_module

from lit_depth.data.task import Task
from lit_depth.data.tasks.chart_qa import ChartQA
from lit_depth.data.tasks.coco_2014_vqa import Coco2014VQA
from lit_depth.data.tasks.coco_caption import CocoCaption
from lit_depth.data.tasks.doc_qa import DocVQA
from lit_depth.data.tasks.dv_qa import DVQA
from lit_depth.data.tasks.easy_vqa import EasyVQA
from lit_depth.data.tasks.figure_qa import FigureQA
from lit_depth.data.tasks.info_qa import InfographicVQA
from lit_depth.data.tasks.mmmu import MMMU
from lit_depth.data.tasks.next_token import NextToken
from lit_depth.data.tasks.okvqa import OKVQA
from lit_depth.data.tasks.plot_qa import PlotQA
from lit_depth.data.tasks.science_qa_img import ScienceQAImage
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.data.tasks.st_qa import SceneTextVQA
from lit_depth.data.tasks.tally_qa import TallyQA
from lit_depth.data.tasks.text_vqa import TextVQA
from lit_depth.functional.arguments import checked
from lit_depth.functional.class_paths import object_at

TASKS: tuple[type[Task], ...] = (
    ShapesVQA,
    EasyVQA,
    Coco2014VQA,
    TextVQA,
    OKVQA,
    ScienceQAImage,
    DocVQA,
    ChartQA,
    InfographicVQA,
    PlotQA,
    FigureQA,
    DVQA,
    MMMU,
    CocoCaption,
    TallyQA,
    SceneTextVQA,
)

HARNESSES = ("lm_eval", "lmms_eval")
"""Integrations with tasks of their own, ``<harness>:<task>``."""

__all__ = ["HARNESSES", "TASKS", "get_task"]


@checked
def get_task(name: str) -> Task:
    """Return the task of that name, or class path, with its default arguments.

    >>> get_task("shapes_vqa").metric, get_task("lit_depth.data.tasks.MMMU").name
    ('ExactMatch', 'mmmu')

    Args:
        name: Name of a built-in task (or of its class), ``package.module.Class`` of any, or one of a harness's own
            tasks, such as ``lm_eval:arc_easy``.

    Raises:
        ValueError: If there is none; the message names the nearest ones.
    """
    harness, colon, rest = name.partition(":")
    if colon:
        return _task_of(harness, rest)
    # a task of texts asks no questions, so it is none of ``all``
    tasks: tuple[type[Task], ...] = (*TASKS, NextToken)
    names = {task.name: task for task in tasks}
    kind = names.get(name) or {task.__name__: task for task in tasks}.get(name)
    if kind is None and "." in name:
        kind = _class_at(name)
    if kind is None:
        nearest = difflib.get_close_matches(name, names) or sorted(names)
        raise ValueError(
            f"expected the name of a task or a class path such as package.module.Class, got {name!r}, an unknown task; "
            f"did you mean {' or '.join(nearest)}?"
        )
    try:
        return kind()
    except (TypeError, AttributeError) as error:  # an argument without default, or a class that is only a base
        raise ValueError(
            f"expected a task that can be made without arguments, got {name!r}: {error}; give class_path and init_args"
        ) from error


def _task_of(harness: str, name: str) -> Task:
    if harness not in HARNESSES:
        raise ValueError(f"expected {' or '.join(f'{each}:NAME' for each in HARNESSES)}, got {harness}:{name}")
    return import_module(f"lit_depth.integrations.{harness}").make_task(name)


def _class_at(path: str) -> type[Task]:
    kind = object_at(path, "a task")
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise ValueError(f"expected the class path of a lit_depth.data.Task, got {path!r}, which is none")
    return kind
