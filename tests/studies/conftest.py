"""Untrained checkpoints for the tests of the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lit_depth.models.loading import BUNDLED, new_model


def untrained(folder: Path, source: Path) -> Path:
    """A model that answers anything at all, and every mask something else."""
    torch.manual_seed(0)
    model, processor = new_model(str(source))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained model of sixteen blocks."""
    return untrained(tmp_path_factory.mktemp("checkpoint"), BUNDLED)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """An untrained model of six blocks."""
    source = tmp_path_factory.mktemp("config")
    shutil.copytree(BUNDLED, source, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"n_layers": 6}))
    return untrained(tmp_path_factory.mktemp("six"), source)
