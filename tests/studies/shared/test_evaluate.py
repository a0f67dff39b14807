"""A split is evaluated as a whole, or says why not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pytest

from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from tests.helpers.commands import run

EMPTY = datasets.Dataset.from_dict({"image": []})


def test_no_samples_are_named(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ShapesVQA, "load", lambda self, split, path=None: EMPTY)
    for batch_size in ("4", "auto"):
        arguments = ["importance", "--model.checkpoint", checkpoint, "--output_dir", tmp_path]
        assert run([*arguments, "--data.batch_size", batch_size]) == 2
        assert "calibration split of shapes_vqa: there are no samples" in capsys.readouterr().err


@pytest.mark.slow
def test_whoever_listens_hears_of_it_and_no_result_changes(small_checkpoint: Path, tmp_path: Path) -> None:
    small = ["--data.num_samples", "12", "--data.calibration_samples", "8", "--data.batch_size", "4"]
    small += ["--policies", "prefix", "--num_active_blocks", "3", "--num_requests", "0"]
    common = ["compare", "--model.checkpoint", small_checkpoint, *small]
    assert run([*common, "--output_dir", tmp_path / "alone"]) == 0
    listen = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", tmp_path / "csv"]
    assert run([*common, "--output_dir", tmp_path / "heard", *listen, "--trainer.live_seconds", "0"]) == 0
    folders = [tmp_path / place / "compare" / "default" for place in ("alone", "heard")]
    alone, heard = ((folder / "m5_mask_strategy_comparison.json").read_bytes() for folder in folders)
    assert alone == heard
    (path,) = (tmp_path / "csv").rglob("metrics.csv")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    key = "live/shapes_vqa/validation/"
    live = [row for row in rows if row.get(f"{key}samples")]
    seen = [float(row[f"{key}samples"]) for row in live]
    # looks are spaced so that they take little of the time: on a busy machine one in the middle may be left out
    assert seen == sorted(set(seen) & {4, 8, 12}) and seen[-1] == 12
    quality = json.loads(heard)["strategies"][0]["quality"]
    assert float(live[-1][f"{key}quality/prefix_3"]) == pytest.approx(quality)
    assert float(live[-1][f"{key}low/full"]) <= float(live[-1][f"{key}quality/full"])
