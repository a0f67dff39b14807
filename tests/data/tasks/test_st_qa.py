"""ST-VQA: several questions about each photograph."""

from __future__ import annotations

from tests.helpers.hub_fixtures import data


def test_the_first_question_of_the_report_split(folders):
    module = data("st_qa", folders / "st_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "What does the sign say?"
    assert sample.references == ("Stop", "stop sign")
    assert (sample.task, sample.answer_kind) == ("st_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("ANLS", 32)
    assert task.in_training_mixture
