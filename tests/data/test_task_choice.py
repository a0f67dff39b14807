"""Which tasks the arguments of a run come to."""

from __future__ import annotations

import json

import pytest

from lit_depth.data import DepthDataModule, ShapesVQA
from lit_depth.data.task_choice import choose_tasks
from lit_depth.data.tasks import TASKS, get_task
from lit_depth.data.tasks.next_token import NextToken
from lit_depth.data.tasks.own_files import OwnFiles


@pytest.fixture
def place(tmp_path):
    """A table with options, a text, and folders called as two tasks."""
    row = {"question": "?", "options": ["a", "b"], "answer": "b"}
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    (tmp_path / "t.txt").write_text("words")
    for kind in TASKS[1:3]:
        (tmp_path / kind.name).mkdir()
    return tmp_path


def test_what_is_chosen(place):
    assert [type(task) for task in choose_tasks()] == [ShapesVQA]
    assert [task.name for task in choose_tasks("text_vqa")] == ["text_vqa"]
    assert [task.name for task in choose_tasks(tasks=["text_vqa", ShapesVQA()])] == ["text_vqa", "shapes_vqa"]
    assert [task.name for task in choose_tasks(tasks="all")] == [kind.name for kind in TASKS]
    assert [task.name for task in choose_tasks(tasks="all", path=str(place))] == [kind.name for kind in TASKS[1:3]]
    for file, kind in (("q.jsonl", OwnFiles), ("t.txt", NextToken)):
        assert [type(task) for task in choose_tasks(path=str(place / file))] == [kind]
    assert [type(task) for task in choose_tasks("next_token", path=str(place / "q.jsonl"))] == [NextToken]


@pytest.mark.parametrize(
    ("answer_by", "metric", "expected"),
    [(None, None, "multiple_choice"), ("likelihood", None, "acc"), ("likelihood", "acc_norm", "acc_norm"),
     ("generation", "contains", "contains")],
)  # fmt: skip
def test_how_own_questions_are_answered_and_scored(answer_by, metric, expected, place):
    (task,) = choose_tasks(path=str(place / "q.jsonl"), answer_by=answer_by, metric=metric)
    assert (task.answer_by, task.metric) == (answer_by or "generation", expected)


def test_a_given_task_stays_as_it_is():
    task = ShapesVQA(num_images=2)
    (changed,) = choose_tasks(task, answer_by="likelihood")
    assert (changed.answer_by, changed.metric) == ("likelihood", "acc")
    assert (task.answer_by, task.metric) == ("generation", "ExactMatch")
    assert choose_tasks(task) == [task]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": []}, "expected at least one of tasks"),
        ({"tasks": ["okvqa", "okvqa"]}, "each with a name of its own, got .*okvqa"),
        ({"task": "okvqa", "columns": {"question": "Q"}}, "with a path and no task"),
        ({"task": object()}, "expected a task with name, metric, max_new_tokens, got a object without"),
        ({"tasks": "all", "path": "/nowhere"}, "expected folders called as the tasks in /nowhere"),
    ],
)
def test_what_does_not_go_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_tasks(**arguments)


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="got 'shape_vqa', an unknown task; did you mean shapes_vqa"):
        DepthDataModule(task="shape_vqa")


def test_another_metric_for_every_task_leaves_the_given_tasks_alone():
    task = ShapesVQA(num_images=2)
    data = DepthDataModule(tasks=[task, "okvqa"], metric="my_package.MyMetric")
    assert {each.task.metric for each in data.for_each_task()} == {"my_package.MyMetric"}
    assert task.metric == "ExactMatch" and get_task("okvqa").metric == "VQAAccuracy"
