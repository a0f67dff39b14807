"""ST-VQA: several questions about each photograph."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import TEXT, data, draw

SPLITS = ("train",)


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    qas = [{"question": "What does the sign say?", "answers": ["Stop", "stop sign"]}]
    qas.append({"question": "Which street?", "answers": ["Main St"]})
    rows = [{"image": draw(index), "qas": qas} for index in range(start, start + count)]
    return rows, Features({"image": Image(), "qas": List({"question": TEXT, "answers": List(TEXT)})})


def test_the_first_question_of_the_report_split(folders):
    module = data("st_qa", folders / "st_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "What does the sign say?"
    assert sample.references == ("Stop", "stop sign")
    assert (sample.task, sample.answer_kind) == ("st_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("ANLS", 32)
    assert task.in_training_mixture
