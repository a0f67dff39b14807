"""The public datasets, read from parquet files in their documented columns."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

import lit_depth.metrics
from lit_depth.data import DepthDataModule, Sample, get_task
from lit_depth.data.rows import PLACE, Place
from lit_depth.data.tasks import TASKS
from lit_depth.metrics import clean_prediction
from tests.helpers.hub_datasets import DATASETS
from tests.helpers.hub_fixtures import data, write_rows


@pytest.mark.parametrize("name", DATASETS)
def test_calibration_and_validation_are_whole_and_disjoint(folders, name):
    module = data(name, folders / name)
    module.check_disjoint("calibration", "validation")
    roles = {role: list(module.eval_dataset(role)) for role in ("calibration", "validation")}
    for samples in roles.values():
        assert len(samples) > 4 and all(isinstance(sample, Sample) for sample in samples)
        assert all(sample.image.mode == "RGB" and sample.image.size == (48, 32) for sample in samples)
        assert all(sample.references and all(sample.references) for sample in samples)
    task, everything = module.task, [*roles["calibration"], *roles["validation"]]
    assert len({sample.id for sample in everything}) == len(everything)
    if task.splits["calibration"] == task.splits["validation"]:
        # nothing is lost where one split is divided
        rows, _ = DATASETS[name][0](task.splits["validation"], 0, 24)
        column = task.layouts[0].questions
        assert len(everything) == sum(len(row[column]) if column else 1 for row in rows)
    else:
        assert len(roles["calibration"]) == len(roles["validation"]) == 24


@pytest.mark.parametrize("name", [name for name, (_, splits) in DATASETS.items() if "train" in splits])
def test_the_train_role_shares_nothing_with_validation(folders, name):
    module = data(name, folders / name)
    module.check_disjoint("train", "validation")
    samples = list(module.eval_dataset("train"))
    assert samples and all(isinstance(sample, Sample) for sample in samples)
    assert {sample.meta["dataset_split"] for sample in samples} == {"train"}


@pytest.mark.parametrize("name", ["coco_2014_vqa", "info_qa", "mmmu", "coco_caption"])
def test_a_dataset_without_train_split_says_so(folders, name):
    with pytest.raises(ValueError, match=rf"{name}: the role train needs train\*.parquet .* there are"):
        data(name, folders / name).eval_dataset("train")
    with pytest.raises(ValueError, match="has no split for the role train; there are calibration = "):
        get_task(name).load("train")


@pytest.mark.parametrize("name", ["plot_qa", "tally_qa"])
def test_conversations_written_for_training_become_plain_questions(folders, name):
    samples = list(data(name, folders / name).eval_dataset("train"))
    assert len(samples) == 48 and len({sample.image_id for sample in samples}) == 24
    assert samples[0].question in ("What is the value in 0.0?", "How many cups are in 0.0?")
    assert samples[0].references == (("0.5", "0.5.") if name == "plot_qa" else ("3",))


@pytest.mark.parametrize("name", ["figure_qa", "dv_qa", "tally_qa", "plot_qa", "chart_qa", "doc_qa", "coco_2014_vqa"])
@pytest.mark.parametrize("answer", ["U.S.", "Soil.", "New  York", "3.", "St. Louis, Mo.", "No."])
def test_what_the_dataset_answers_is_right(name, answer):
    """Whatever is done to references is done to predictions too, or to neither."""
    task = get_task(name)
    if name == "figure_qa":
        answer = "No."
    layout = task.layouts[0]
    stored = [answer] * 10 if name == "coco_2014_vqa" else answer
    entry = {layout.question: "What?", layout.answer: stored}
    row = {"image": b"x", layout.question: "What?", layout.answer: stored, layout.questions: [entry]}
    sample = task.sample(
        {**row, PLACE: Place("test", 0, 0, "image", replace(layout, question_id=None))}, "validation", 0
    )
    metric = getattr(lit_depth.metrics, task.metric)
    assert metric.score(clean_prediction(answer), sample.references, ()) == 1.0
    assert metric.score("something else", sample.references, ()) == 0.0


@pytest.mark.parametrize("name", ["figure_qa", "dv_qa", "tally_qa", "st_qa"])
def test_questions_about_one_image_stay_together(folders, name):
    for role in ("calibration", "validation"):
        samples = list(data(name, folders / name).eval_dataset(role))
        by_image: dict[str, list[Sample]] = {}
        for sample in samples:
            by_image.setdefault(sample.image_id, []).append(sample)
        assert {len(group) for group in by_image.values()} == {2}
        for first, second in by_image.values():
            assert first.question != second.question and first.image.tobytes() == second.image.tobytes()


@pytest.mark.parametrize("name", ["coco_2014_vqa", "okvqa", "doc_qa", "info_qa"])
def test_rows_that_repeat_an_image_have_its_id(folders, name):
    samples = list(data(name, folders / name).eval_dataset("validation"))
    pictures: dict[str, set[bytes]] = {}
    for sample in samples:
        pictures.setdefault(sample.image_id, set()).add(sample.image.tobytes())
    assert 2 * len(pictures) == len(samples) and all(len(group) == 1 for group in pictures.values())


def test_several_tasks_read_their_own_folders(folders):
    module = DepthDataModule(tasks="all", path=str(folders), num_samples=3, calibration_samples=3)
    assert {task.name for task in module.tasks} == set(DATASETS)
    for each in module.for_each_task():
        assert len(each.eval_dataset("validation")) == 3
    with pytest.raises(ValueError, match="expected folders called as the tasks"):
        DepthDataModule(tasks="all", path=str(folders / "mmmu"))
    assert len(DepthDataModule(tasks="all").tasks) == len(TASKS)


@pytest.mark.parametrize("name", DATASETS)
def test_every_required_column_is_missed_by_name(folders, tmp_path, name):
    build, splits = DATASETS[name]
    rows, features = build(splits[-1], 0, 4)
    required = get_task(name).layouts[0].required
    for column in required:
        top, _, key = column.partition(".")
        if features is None or key:
            continue
        smaller = [{key_: value for key_, value in row.items() if key_ != top} for row in rows]
        left = features.copy()
        del left[top]
        folder = tmp_path / column.replace("/", "_")
        write_rows(folder / f"{splits[-1]}.parquet", smaller, left)
        with pytest.raises(ValueError) as caught:
            data(name, folder).eval_dataset("validation")
        message = str(caught.value)
        assert message.startswith(f"{name}: column '{top}'") and str(folder) in message and "\n" not in message
        assert all(other in message.partition("it has")[2] for other in left)


def test_a_key_missing_in_a_list_is_named(tmp_path):
    rows = [{"image": {"bytes": b"x", "path": None}, "qa": [{"question": "Is it?", "reply": "Yes."}]}]
    write_rows(tmp_path / "train.parquet", rows)
    with pytest.raises(ValueError, match=r"column 'qa.answer' is missing .* it has image, .*qa, qa.question, qa.reply"):
        data("figure_qa", tmp_path).eval_dataset("validation")


def test_a_harness_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'lit_depth\[lm-eval\]'"):
        get_task("lm_eval:not_looked_up_before")
    with pytest.raises(ValueError, match="expected lm_eval:NAME or lmms_eval:NAME, got other:arc_easy"):
        get_task("other:arc_easy")
