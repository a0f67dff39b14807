"""VQA v2: ten answers to each question."""

from __future__ import annotations

from tests.helpers.hub_fixtures import SOFT, data, index_of


def test_the_first_question_of_the_report_split(folders):
    module = data("coco_2014_vqa", folders / "coco_2014_vqa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "What color is shape {}?".format(index_of("coco_2014_vqa", sample))
    assert sample.references == SOFT
    assert (sample.task, sample.answer_kind) == ("coco_2014_vqa", "short")
    assert (task.metric, task.max_new_tokens) == ("VQAAccuracy", 16)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "answer_type", "question_type"}
