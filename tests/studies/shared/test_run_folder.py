"""A folder belongs to one run: its arguments, model and data; and to one process at a time."""

from __future__ import annotations

import json

import pytest

from lit_depth.data import DepthDataModule
from lit_depth.module import DepthModule
from lit_depth.studies.shared.run_folder import open_run
from lit_depth.trainer import DepthTrainer

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}


@pytest.fixture(scope="module")
def module(small_checkpoint) -> DepthModule:
    return DepthModule(str(small_checkpoint))


def opened(module, folder, arguments=None, trainer=None, num_samples=4):
    data = DepthDataModule(module.prompter, num_samples=num_samples)
    trainer = trainer or DepthTrainer(**OPTIONS)
    return open_run(trainer, module, data, ["validation"], arguments or {"a": 1}, str(folder), "importance", "x")


def test_a_folder_is_opened_again_by_the_same_run_alone(module, tmp_path):
    with opened(module, tmp_path) as run:
        folder = tmp_path / "importance" / "x"
        assert run.folder == folder and run.arguments["a"] == 1
        with pytest.raises(ValueError, match="in use"), opened(module, tmp_path):
            pass
    before = json.loads((folder / "manifest.json").read_text())
    with opened(module, tmp_path):
        pass
    assert json.loads((folder / "manifest.json").read_text())["run"] == before["run"]
    with pytest.raises(ValueError, match="another a: there 1, now 2"), opened(module, tmp_path, {"a": 2}):
        pass
    with pytest.raises(ValueError, match="validation"), opened(module, tmp_path, num_samples=3):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_predict_batches": 2}, "expected all batches to be evaluated"),
        ({"precision": "bf16-true"}, "expected --trainer.precision"),
    ],
)
def test_a_trainer_that_would_measure_something_else_is_refused(module, tmp_path, options, message):
    trainer = DepthTrainer(**OPTIONS, **options)
    with pytest.raises(ValueError, match=message), opened(module, tmp_path, trainer=trainer):
        pass
    assert not list(tmp_path.iterdir())
