"""The public datasets through the commands: importance of each, all together, two processes as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lit_depth.metrics import cider_d
from lit_depth.results.records import read_records
from tests.helpers.commands import run
from tests.helpers.hub_datasets import DATASETS, write_dataset
from tests.helpers.hub_fixtures import write_rows

NAMES = sorted(DATASETS)
# enough calibration and validation questions whichever half of a split's images they come from
ROWS = 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    for name in NAMES:
        write_dataset(name, root / name, ROWS)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_importance_of_every_dataset(small_checkpoint, folders, tmp_path, name):
    command = ["importance", "--data.task", name, "--data.path", folders / name, "--data.num_samples", "20"]
    command += ["--model.checkpoint", small_checkpoint, "--output_dir", tmp_path]
    assert run(command) == 0
    folder = tmp_path / "importance" / "default"
    (task,) = json.loads((folder / "importance.json").read_text())["tasks"]
    assert (task["task"], task["num_bad_samples"]) == (name, 0) and task["num_samples"] >= 8
    assert len(task["blocks"]) == 6 and 0 <= task["full"]["quality"] <= 10
    assert len(json.loads((folder / "layer_importance_scores.json").read_text())) == 6
    if name in ("science_qa_img", "mmmu"):
        assert len(task["parse_failed"]) == 7


@pytest.mark.slow
def test_malformed_rows_cost_every_mask_the_same_samples(small_checkpoint, tmp_path):
    """Every third image is damaged, each in another way."""
    rows, features = DATASETS["text_vqa"][0]("validation", 0, 96)
    for index in range(0, 96, 3):
        image = rows[index]["image"]["bytes"]
        rows[index]["image"] = {"bytes": image[: 8 + len(image) * index // 200], "path": None}
    write_rows(tmp_path / "data" / "validation.parquet", rows, features)
    write_rows(tmp_path / "data" / "calibration.parquet", rows[1:3], features)
    command = ["importance", "--data.task", "text_vqa", "--data.path", tmp_path / "data", "--split", "validation"]
    command += ["--model.checkpoint", small_checkpoint, "--output_dir", tmp_path, "--data.batch_size", "8"]
    assert run([*command, "--name", "strict"]) == 2
    assert run([*command, "--max_bad_samples", "0.5"]) == 0
    folder = tmp_path / "importance" / "default"
    (task,) = json.loads((folder / "importance.json").read_text())["tasks"]
    assert (task["num_bad_samples"], task["num_samples"]) == (32, 64)
    assert len(task["bad_samples"]) == 32 and all(task["bad_samples"].values())
    frame = read_records((folder / "records" / "text_vqa" / "validation").glob("*.jsonl"))
    samples = frame[frame["mask"] != "bad"].groupby("mask")["sample"].agg(frozenset)
    assert len(samples) == 7 and samples.nunique() == 1 and not samples.iloc[0] & set(task["bad_samples"])


@pytest.mark.slow
def test_two_processes_give_the_captions_the_scores_of_one(small_checkpoint, folders, tmp_path):
    command = ["importance", "--data.task", "coco_caption", "--data.path", str(folders / "coco_caption")]
    command += ["--split", "validation", "--data.batch_size", "3", "--model.checkpoint", str(small_checkpoint)]
    command += ["--output_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    assert run([*command, "--name", "one"]) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = [*command, "--name", "two", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    subprocess.run([sys.executable, "-m", "lit_depth", *two], check=True, env=environment, capture_output=True)
    one, two = ((tmp_path / "importance" / name / "importance.json").read_bytes() for name in ("one", "two"))
    assert one == two
    # against the metric's own definition, from what the processes wrote
    frame = read_records((tmp_path / "importance" / "two" / "records" / "coco_caption" / "validation").glob("*.jsonl"))
    references = frame[frame["mask"] == "references"].set_index("sample")["references"]
    full = frame[frame["mask"] == "1" * 6].set_index("sample")["prediction"]
    mean, _ = cider_d(list(full), list(references[full.index]))
    assert json.loads(one)["tasks"][0]["full"]["quality"] == pytest.approx(mean, abs=1e-9)


@pytest.mark.slow
def test_several_datasets_are_compared_under_the_same_masks(small_checkpoint, folders, tmp_path, capsys):
    names = ["text_vqa", "science_qa_img", "coco_caption"]
    command = ["compare", "--data.tasks", *names, "--data.path", folders, "--model.checkpoint", small_checkpoint]
    command += ["--output_dir", tmp_path, "--num_active_blocks", "2", "4", "5", "--num_seeds", "2"]
    command += ["--num_requests", "1", "--data.num_samples", "12", "--data.calibration_samples", "12"]
    assert run(command) == 0
    folder = tmp_path / "compare" / "default"
    result = json.loads((folder / "m5_mask_strategy_comparison.json").read_text())
    assert [task["task"] for task in result["tasks"]] == names
    for index, strategy in enumerate(result["strategies"]):
        of_tasks = [task["strategies"][index] for task in result["tasks"]]
        masks = [[mask["mask_id"] for mask in entry["masks"]] for entry in (strategy, *of_tasks)]
        assert all(each == masks[0] for each in masks)
        for key in ("quality", "drop", "reference_logprob"):
            assert strategy[key] == pytest.approx(sum(entry[key] for entry in of_tasks) / 3)
        assert strategy["quality_ci"][0] <= strategy["quality"] <= strategy["quality_ci"][1]
    figures = {path.name for path in (folder / "figures").glob("*.png")}
    assert {f"m5_quality_vs_blocks_{name}.png" for name in names} <= figures and "m5_quality_vs_blocks.png" in figures
    assert "mean of text_vqa, science_qa_img, coco_caption" in capsys.readouterr().out
    # a finished run only renders
    before = (folder / "m5_mask_strategy_comparison.json").read_bytes()
    assert run(command) == 0 and (folder / "m5_mask_strategy_comparison.json").read_bytes() == before
