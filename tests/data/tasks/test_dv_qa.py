"""DVQA: two questions about each chart."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import TEXT, data, draw

SPLITS = ("train",)


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    qa = [{"question": "How many bars?", "answer": "5."}, {"question": "Which is largest?", "answer": "Soil."}]
    rows = [{"image": draw(index), "qa": qa} for index in range(start, start + count)]
    return rows, Features({"image": Image(), "qa": List({"question": TEXT, "answer": TEXT})})


def test_the_first_question_of_the_report_split(folders):
    module = data("dv_qa", folders / "dv_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "How many bars?"
    assert sample.references == ("5",)
    assert (sample.task, sample.answer_kind) == ("dv_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("ExactMatch", 16)
    assert task.in_training_mixture
