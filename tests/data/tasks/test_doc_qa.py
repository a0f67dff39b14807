"""DocVQA: several answers to a question about a page."""

from __future__ import annotations

from tests.helpers.hub_fixtures import data, index_of


def test_the_first_question_of_the_report_split(folders):
    module = data("doc_qa", folders / "doc_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "What is the date on page {}?".format(index_of("doc_qa", sample))
    assert sample.references == ("May 3", "3 May")
    assert (sample.task, sample.answer_kind) == ("doc_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("ANLS", 64)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "question_types"}
