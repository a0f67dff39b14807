"""InfographicVQA: questions about infographics."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import TEXT, data, draw, index_of

SPLITS = ("validation",)


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "questionId": str(index),
            "question": f"How many in {index}?",
            "answers": ["10%"],
            "answer_type": ["single span"],
            "image": draw(index // 2),
            "operation/reasoning": ["none"],
            "ocr": "{}",
        }
        for index in range(start, start + count)
    ]
    features = {"questionId": TEXT, "question": TEXT, "answers": List(TEXT), "answer_type": List(TEXT)}
    return rows, Features(features | {"image": Image(), "operation/reasoning": List(TEXT), "ocr": TEXT})


def test_the_first_question_of_the_report_split(folders):
    module = data("info_qa", folders / "info_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == f"How many in {index_of(SPLITS, sample)}?"
    assert sample.references == ("10%",)
    assert (sample.task, sample.answer_kind) == ("info_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("ANLS", 32)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "answer_type", "operation/reasoning"}
