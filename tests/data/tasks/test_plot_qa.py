"""PlotQA: numbers with and without a period."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import TEXT, cauldron, data, draw, index_of

SPLITS = ("train", "test")


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    if split == "train":
        return cauldron("What is the value in", "0.5.")(split, start, count)
    rows = [
        {"image": draw(index), "query": f"What is value {index}?", "answer": ["12.4"]}
        for index in range(start, start + count)
    ]
    return rows, Features({"image": Image(), "query": TEXT, "answer": List(TEXT)})


def test_the_first_question_of_the_report_split(folders):
    module = data("plot_qa", folders / "plot_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == f"What is value {index_of(SPLITS, sample)}?"
    assert sample.references == ("12.4",)
    assert (sample.task, sample.answer_kind) == ("plot_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("RelaxedAccuracy", 16)
    assert not task.in_training_mixture
