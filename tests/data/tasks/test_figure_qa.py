"""FigureQA: yes and no, which are also 1 and 0."""

from __future__ import annotations

from tests.helpers.hub_fixtures import data, draw

SPLITS = ("train",)


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], None]:
    # no features: the images are not declared as such
    qa = [{"question": "Is Red the minimum?", "answer": "Yes."}, {"question": "Is Red the maximum?", "answer": "No."}]
    return [{"image": draw(index), "qa": qa} for index in range(start, start + count)], None


def test_the_first_question_of_the_report_split(folders):
    module = data("figure_qa", folders / "figure_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "Is Red the minimum?"
    assert sample.references == ("1", "yes")
    assert (sample.task, sample.answer_kind) == ("figure_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("ExactMatch", 16)
    assert task.in_training_mixture


def test_figure_qa_is_answered_with_a_digit(folders):
    samples = list(data("figure_qa", folders / "figure_qa").eval_dataset("validation"))
    assert {sample.references for sample in samples} == {("1", "yes"), ("0", "no")}
