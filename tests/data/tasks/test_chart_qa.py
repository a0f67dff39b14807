"""ChartQA: numbers and words about charts, its test split for the report."""

from __future__ import annotations

from datasets import Features, Image, List

from tests.helpers.hub_fixtures import INT8, TEXT, data, draw, index_of, write_rows

SPLITS = ("train", "val", "test")


def rows_of(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {"image": draw(index // 2), "query": f"What is bar {index}?", "label": ["14.5"], "human_or_machine": index % 2}
        for index in range(start, start + count)
    ]
    return rows, Features({"image": Image(), "query": TEXT, "label": List(TEXT), "human_or_machine": INT8})


def test_the_first_question_of_the_report_split(folders):
    module = data("chart_qa", folders / "chart_qa")
    sample, task = module.eval_dataset("validation")[0], module.task
    assert sample.question == f"What is bar {index_of(SPLITS, sample)}?"
    assert sample.references == ("14.5",)
    assert (sample.task, sample.answer_kind) == ("chart_qa", "short")
    assert (task.metric, task.max_new_tokens) == ("RelaxedAccuracy", 16)
    assert not task.in_training_mixture
    assert set(sample.meta) == {"dataset_split", "human_or_machine"}


def test_an_image_in_two_splits_belongs_to_validation(tmp_path):
    for split, start in (("val", 0), ("test", 4)):  # rows 4 to 7 of each other show the same charts
        write_rows(tmp_path / f"{split}.parquet", *rows_of(split, start, 8))
    module = data("chart_qa", tmp_path)
    assert len(module.eval_dataset("validation")) == 8 and len(module.eval_dataset("calibration")) == 4
    module.check_disjoint("calibration", "validation")
