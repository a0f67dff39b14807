"""The built-in tasks, by name. A new one is a file in this folder, an import and an entry in `TASKS`."""

from __future__ import annotations

import difflib

from lit_depth.data.shapes import ShapesVQA
from lit_depth.data.task import Task
from lit_depth.data.tasks.chart_qa import ChartQA
from lit_depth.data.tasks.coco_2014_vqa import Coco2014VQA
from lit_depth.data.tasks.coco_caption import CocoCaption
from lit_depth.data.tasks.doc_qa import DocVQA
from lit_depth.data.tasks.dv_qa import DVQA
from lit_depth.data.tasks.figure_qa import FigureQA
from lit_depth.data.tasks.info_qa import InfographicVQA
from lit_depth.data.tasks.mmmu import MMMU
from lit_depth.data.tasks.okvqa import OKVQA
from lit_depth.data.tasks.plot_qa import PlotQA
from lit_depth.data.tasks.science_qa_img import ScienceQAImage
from lit_depth.data.tasks.st_qa import SceneTextVQA
from lit_depth.data.tasks.tally_qa import TallyQA
from lit_depth.data.tasks.text_vqa import TextVQA

TASKS: tuple[type[Task], ...] = (
    ShapesVQA,
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
