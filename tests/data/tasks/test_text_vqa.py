"""TextVQA: ten answers, the most frequent one first."""

from __future__ import annotations

from tests.helpers.hub_fixtures import DATASETS, SOFT, data, index_of, write_rows


def test_the_first_question_of_the_report_split(folders):
    module = data("text_vqa", folders / "text_vqa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == "what is written on sign {}?".format(index_of("text_vqa", sample))
    assert sample.references == SOFT
    assert (sample.task, sample.answer_kind) == ("text_vqa", "short")
    assert (task.metric, task.max_new_tokens) == ("VQAAccuracy", 64)
    assert not task.in_training_mixture


def test_the_most_frequent_of_ten_answers_comes_first(tmp_path):
    build, _ = DATASETS["text_vqa"]
    rows, features = build("validation", 0, 8)
    for row in rows:
        row["answers"] = ["nous les gosses", "", *["stop"] * 8]
    write_rows(tmp_path / "validation.parquet", rows, features)
    sample = data("text_vqa", tmp_path).eval_dataset("validation")[0]
    assert sample.references == ("stop", "nous les gosses", "", *["stop"] * 7)
