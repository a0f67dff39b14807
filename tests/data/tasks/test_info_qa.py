"""InfographicVQA: questions about infographics."""

from __future__ import annotations

from tests.helpers.hub_fixtures import data, index_of


def test_the_first_question_of_the_report_split(folders):
    module = data("info_qa", folders / "info_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "How many in {}?".format(index_of("info_qa", sample))
    assert sample.references == ("10%",)
    assert (sample.task, sample.answer_kind) == ("info_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("ANLS", 32)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "answer_type", "operation/reasoning"}
