"""The batch size ``auto`` depends on model, split and memory, and on nothing else."""

from __future__ import annotations

import pytest
import torch

from lit_depth.data import DepthDataModule
from lit_depth.module import DepthModule
from lit_depth.studies.shared.batch_size import find_batch_size


@pytest.mark.parametrize(("samples", "size"), [(21, 16), (1, 1), (100, 64)])
def test_an_automatic_batch_size_depends_on_the_split(checkpoint, samples, size):
    module = DepthModule(str(checkpoint))
    data = DepthDataModule(module.prompter, batch_size="auto", num_samples=samples)
    assert find_batch_size(module, data, "validation", torch.device("cpu")) == size


@pytest.mark.parametrize("limit", [1, 3])
def test_memory_halves_the_batch_until_it_fits(checkpoint, monkeypatch, limit):
    """A model that has no memory for more rows than ``limit``."""
    module = DepthModule(str(checkpoint))
    data = DepthDataModule(module.prompter, batch_size="auto", num_samples=16)
    answer = module.predict_step

    def answers(batch):
        if len(batch["sample_ids"]) > limit:
            raise torch.OutOfMemoryError
        return answer(batch)

    monkeypatch.setattr(module, "predict_step", answers)
    assert find_batch_size(module, data, "validation", torch.device("cpu")) == {1: 1, 3: 2}[limit]
    monkeypatch.setattr(module, "predict_step", lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(ValueError, match="not even a single sample fits in memory"):
        find_batch_size(module, data, "validation", torch.device("cpu"))
