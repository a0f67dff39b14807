"""OK-VQA: ten answers to each question."""

from __future__ import annotations

from tests.helpers.hub_fixtures import SOFT, data, index_of


def test_the_first_question_of_the_report_split(folders):
    module = data("okvqa", folders / "okvqa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "What sport is {}?".format(index_of("okvqa", sample))
    assert sample.references == SOFT
    assert (sample.task, sample.answer_kind) == ("okvqa", "short")
    assert (task.metric, task.max_new_tokens) == ("VQAAccuracy", 16)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "answer_type", "question_type"}
