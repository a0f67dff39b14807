"""A split is evaluated as a whole, or says why not."""

from __future__ import annotations

import datasets

from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from tests.helpers.commands import run

EMPTY = datasets.Dataset.from_dict({"image": []})


def test_no_samples_are_named(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ShapesVQA, "load", lambda self, split, path=None: EMPTY)
    for batch_size in ("4", "auto"):
        arguments = ["importance", "--model.checkpoint", checkpoint, "--output_dir", tmp_path]
        assert run([*arguments, "--data.batch_size", batch_size]) == 2
        assert "calibration split of shapes_vqa: there are no samples" in capsys.readouterr().err
