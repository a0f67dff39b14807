"""A repository that knows nothing of this package logs the same with and without its callbacks."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lit_depth.callbacks import BlockMask
from tests.helpers.markdown import ROOT

FOLDER = ROOT / "examples" / "external_repo"


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`evaluate.py`, imported as from its own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("evaluate")
    for name in ("evaluate", "train"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_its_own_logs_are_the_same_with_and_without_the_callbacks(evaluate: ModuleType) -> None:
    module = evaluate.train()
    alone = evaluate.evaluate(module, [])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    callbacks = evaluate.depth_callbacks()
    together = evaluate.evaluate(module, callbacks)
    assert set(alone) == {"val/loss", "val/accuracy", "val/noise"} and alone["val/accuracy"] > 0.9
    assert {name: together[name] for name in alone} == alone
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    added = set(together) - set(alone)
    for block in range(4):
        of_block = {
            f"importance/block_{block:02}",
            f"importance/taylor/block_{block:02}",
            f"tokens/block_{block:02}_l2",
        }
        assert of_block <= added
    assert together["latency/prefill_P50_ms"] > 0
    importance = callbacks[0]
    assert importance.full == pytest.approx(alone["val/accuracy"]) and len(importance.importance) == 4


@pytest.mark.slow
def test_a_mask_in_the_list_gives_what_a_pruned_copy_gives(evaluate: ModuleType) -> None:
    module = evaluate.train()
    masked = evaluate.evaluate(module, [BlockMask(skipped_block_indices=[2])])
    decoder = module.reader.model.language_model
    del decoder.layers[2]
    for index, block in enumerate(decoder.layers):
        block.self_attn.layer_idx = index
    decoder.config.num_hidden_layers = len(decoder.layers)
    pruned = evaluate.evaluate(module, [])
    assert pruned["val/loss"] == pytest.approx(masked["val/loss"], rel=1e-6)
    assert pruned["val/accuracy"] == masked["val/accuracy"]
