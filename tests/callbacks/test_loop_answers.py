"""The answers of Lightning's own loops are those of a sweep of the full model, whichever the loop."""

from __future__ import annotations

import json

import pytest
import torch

from lit_depth import DepthModule, DepthTrainer
from lit_depth.callbacks import LoopAnswers, MaskSweep
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.shapes_vqa import ShapesVQA

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def module() -> DepthModule:
    torch.manual_seed(0)
    module = DepthModule(from_scratch=True)
    module.model.eval()
    return module


def data(module, num_samples=7) -> DepthDataModule:
    return DepthDataModule(module.prompter, ShapesVQA(num_images=8), batch_size=3, num_samples=num_samples)


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_every_loop_keeps_the_answers_of_a_sweep(module, tmp_path, loop):
    sweep = MaskSweep([torch.ones(16, dtype=torch.bool)], tmp_path / "sweep")
    DepthTrainer(callbacks=[sweep], enable_progress_bar=False, **OPTIONS).predict(module, datamodule=data(module))
    expected = sweep.records.drop(columns="mask").sort_values("sample").to_dict("records")
    answers = LoopAnswers(tmp_path / loop, module.num_units)
    for num_samples in (5, 7):  # the second loop's replace the first one's
        trainer = DepthTrainer(callbacks=[answers], **OPTIONS)
        getattr(trainer, loop)(module, datamodule=data(module, num_samples))
        assert trainer.progress_bar_callback.is_enabled
    found = [json.loads(line) for line in answers.path.read_text(encoding="utf-8").splitlines()]
    assert found == expected and len(found) == 7 and answers.num_new == 7
