"""TallyQA: counting, simple or not."""

from __future__ import annotations

from datasets import Features, Image, List, Value

from tests.helpers.hub_fixtures import TEXT, cauldron, data, draw

SPLITS = ("train", "test")


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    if split == "train":
        return cauldron("How many cups are in", "3.")(split, start, count)
    qa = [
        {"question": "How many dogs?", "answer": "2", "is_simple": True},
        {"question": "How many brown dogs run?", "answer": "1", "is_simple": False},
    ]
    rows = [{"image": draw(index), "qa": qa} for index in range(start, start + count)]
    element = {"question": TEXT, "answer": TEXT, "is_simple": Value("bool")}
    return rows, Features({"image": Image(), "qa": List(element)})


def test_the_first_question_of_the_report_split(folders):
    module = data("tally_qa", folders / "tally_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "How many dogs?"
    assert sample.references == ("2",)
    assert (sample.task, sample.answer_kind) == ("tally_qa", "number")
    assert (task.metric, task.max_new_tokens) == ("ExactMatch", 16)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "is_simple"}


def test_tally_qa_keeps_what_is_simple(folders):
    samples = list(data("tally_qa", folders / "tally_qa").eval_dataset("validation"))
    assert {(sample.references[0], sample.meta["is_simple"]) for sample in samples} == {("2", True), ("1", False)}
