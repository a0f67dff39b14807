"""COCO captions: no question, five references."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import INT8, INT32, INT64, TEXT, data, draw

SPLITS = ("val",)


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "question_id": f"COCO_val2014_{index:012d}.jpg",
            "image": draw(index),
            "question": "Please carefully observe the image and come up with a caption for the image.",
            "answer": [f"A red square number {index}.", "A square.", "Something red.", "One square.", "A shape."],
            "id": index,
            "license": 1,
            "file_name": f"COCO_val2014_{index:012d}.jpg",
            "coco_url": "",
            "height": 32,
            "width": 48,
            "date_captured": "",
        }
        for index in range(start, start + count)
    ]
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": List(TEXT), "id": INT64}
    features |= {"license": INT8, "file_name": TEXT, "coco_url": TEXT, "height": INT32, "width": INT32}
    return rows, Features(features | {"date_captured": TEXT})


def test_the_first_question_of_the_report_split(folders):
    module = data("coco_caption", folders / "coco_caption")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == ""
    assert (sample.task, sample.answer_kind) == ("coco_caption", "caption")
    assert (task.metric, task.max_new_tokens) == ("CIDErD", 64)
    assert not task.in_training_mixture


def test_coco_captions_are_all_references(folders):
    sample = data("coco_caption", folders / "coco_caption").eval_dataset("validation")[0]
    assert len(sample.references) == 5 and sample.question == "" and sample.image_id.startswith("COCO_val2014_")
