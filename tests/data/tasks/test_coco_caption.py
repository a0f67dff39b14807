"""COCO captions: no question, five references."""

from __future__ import annotations

from tests.helpers.hub_fixtures import data


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
