"""Proxy scores of a split: measured once, in batches that fit, for every block."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional import ProxyScores
from lit_depth.module import DepthModule
from lit_depth.studies.importance import measure_proxies as proxies
from lit_depth.studies.shared.run_folder import Run
from lit_depth.trainer import DepthTrainer

NUM_BLOCKS = 16


def measure(checkpoint, folder, names, batch_size):
    module = DepthModule(str(checkpoint))
    data = DepthDataModule(module.prompter, batch_size=batch_size, calibration_samples=5)
    trainer = DepthTrainer(accelerator="cpu", logger=False)
    run = Run(trainer, module, data, folder, {}, 0.01)
    return proxies.measure_proxies(run, "calibration", names, range(NUM_BLOCKS))


def test_automatic_batches_shrink_until_a_backward_fits(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(proxies, "_time_passes", lambda passes: dict.fromkeys(passes, 2.0))
    update, seen = ProxyScores.update, []

    def narrow(self, inputs, labels=None):
        seen.append(len(inputs["input_ids"]))
        if seen[-1] > 2:
            raise torch.OutOfMemoryError("too wide")
        update(self, inputs, labels)

    monkeypatch.setattr(ProxyScores, "update", narrow)
    found = measure(checkpoint, tmp_path, ["taylor"], "auto")
    assert seen == [5, 5, 5, 4, 2, 2, 1]
    assert found["forwards"]["taylor"] == 1.0 and len(found["scores"]["taylor"]) == NUM_BLOCKS
    # a batch size that was asked for is kept
    with pytest.raises(torch.OutOfMemoryError):
        measure(checkpoint, tmp_path / "fixed", ["taylor"], 4)


def test_a_missing_entropy_is_named(checkpoint, tmp_path, monkeypatch):
    found = dict.fromkeys(["taylor", "attention_entropy"], torch.ones(NUM_BLOCKS))
    found["attention_entropy"] = torch.tensor([1.0, np.nan] * 8)
    monkeypatch.setattr(ProxyScores, "compute", lambda self: found)
    with pytest.raises(ValueError, match=r"attention_entropy has no score for blocks \[1, 3, 5, 7, 9, 11, 13, 15\]"):
        measure(checkpoint, tmp_path, ["attention_entropy"], 8)
    assert not list(tmp_path.iterdir())
