"""PlotQA: numbers with and without a period."""

from __future__ import annotations

from tests.helpers.hub_fixtures import data, index_of


def test_the_first_question_of_the_report_split(folders):
    module = data("plot_qa", folders / "plot_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "What is value {}?".format(index_of("plot_qa", sample))
    assert sample.references == ("12.4",)
    assert (sample.task, sample.answer_kind) == ("plot_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("RelaxedAccuracy", 16)
    assert not task.in_training_mixture
