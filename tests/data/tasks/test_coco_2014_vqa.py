"""VQA v2: ten answers to each question."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import INT64, SOFT, TEN, TEXT, data, draw, index_of

SPLITS = ("validation",)


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "question_type": "what color is",
            "multiple_choice_answer": "red",
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(TEN)
            ],
            "image_id": 1000 + index // 2,  # two questions about each image
            "answer_type": "other",
            "question_id": 10 * index,
            "question": f"What color is shape {index}?",
            "image": draw(index // 2),
        }
        for index in range(start, start + count)
    ]
    answer = {"answer": TEXT, "answer_confidence": TEXT, "answer_id": INT64}
    features = {"question_type": TEXT, "multiple_choice_answer": TEXT, "answers": List(answer), "image_id": INT64}
    features |= {"answer_type": TEXT, "question_id": INT64, "question": TEXT, "image": Image()}
    return rows, Features(features)


def test_the_first_question_of_the_report_split(folders):
    module = data("coco_2014_vqa", folders / "coco_2014_vqa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == f"What color is shape {index_of(SPLITS, sample)}?"
    assert sample.references == SOFT
    assert (sample.task, sample.answer_kind) == ("coco_2014_vqa", "short")
    assert (task.metric, task.max_new_tokens) == ("VQAAccuracy", 16)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "answer_type", "question_type"}
