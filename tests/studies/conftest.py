"""An untrained checkpoint for the tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_depth.models.loading import new_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained model that answers anything at all, and every mask something else."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model, processor = new_model(str(CONFIGS / "molmoe_shapes"))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
