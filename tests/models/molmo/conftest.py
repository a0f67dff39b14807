"""The tiny released checkpoints among the golden data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_depth.models.molmo import MolmoForConditionalGeneration

FAMILIES = ("molmoe_tiny", "molmo_dense_tiny", "molmo_o_tiny")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, golden_dir) -> tuple[Path, MolmoForConditionalGeneration, dict[str, torch.Tensor], dict]:
    folder = golden_dir / request.param
    model = MolmoForConditionalGeneration.from_pretrained(folder).eval()
    return folder, model, load_file(folder / "cases.safetensors"), json.loads((folder / "cases.json").read_text())
