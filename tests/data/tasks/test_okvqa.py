"""OK-VQA: ten answers to each question."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import SOFT, TEN, TEXT, data, draw, index_of

SPLITS = ("train", "val2014")


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "question_id": str(index),
            "image": draw(index // 2),
            "question": f"What sport is {index}?",
            "answers": TEN,
            "question_type": "four",
            "answer_type": "other",
        }
        for index in range(start, start + count)
    ]
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answers": List(TEXT)}
    return rows, Features(features | {"question_type": TEXT, "answer_type": TEXT})


def test_the_first_question_of_the_report_split(folders):
    module = data("okvqa", folders / "okvqa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == f"What sport is {index_of(SPLITS, sample)}?"
    assert sample.references == SOFT
    assert (sample.task, sample.answer_kind) == ("okvqa", "short")
    assert (task.metric, task.max_new_tokens) == ("VQAAccuracy", 16)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "answer_type", "question_type"}
