"""TextVQA: ten answers, the most frequent one first."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import INT32, SOFT, TEN, TEXT, data, draw, index_of, write_rows

SPLITS = ("train", "validation")


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "image_id": f"a{index:04x}",
            "question_id": 34000 + index,
            "question": f"what is written on sign {index}?",
            "question_tokens": ["what", "is"],
            "image": draw(index),
            "image_width": 48,
            "image_height": 32,
            "flickr_original_url": "",
            "answers": TEN,
            "image_classes": ["Sign"],
            "set_name": split,
            "ocr_tokens": ["stop"],
        }
        for index in range(start, start + count)
    ]
    features = {"image_id": TEXT, "question_id": INT32, "question": TEXT, "question_tokens": List(TEXT)}
    features |= {"image": Image(), "image_width": INT32, "image_height": INT32, "flickr_original_url": TEXT}
    features |= {"answers": List(TEXT), "image_classes": List(TEXT), "set_name": TEXT, "ocr_tokens": List(TEXT)}
    return rows, Features(features)


def test_the_first_question_of_the_report_split(folders):
    module = data("text_vqa", folders / "text_vqa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == f"what is written on sign {index_of(SPLITS, sample)}?"
    assert sample.references == SOFT
    assert (sample.task, sample.answer_kind) == ("text_vqa", "short")
    assert (task.metric, task.max_new_tokens) == ("VQAAccuracy", 64)
    assert not task.in_training_mixture


def test_the_most_frequent_of_ten_answers_comes_first(tmp_path):
    rows, features = rows_of("validation", 0, 8)
    for row in rows:
        row["answers"] = ["nous les gosses", "", *["stop"] * 8]
    write_rows(tmp_path / "validation.parquet", rows, features)
    sample = data("text_vqa", tmp_path).eval_dataset("validation")[0]
    assert sample.references == ("stop", "nous les gosses", "", *["stop"] * 7)
