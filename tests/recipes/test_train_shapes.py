"""The recipe's callbacks: blocks are dropped by the schedule, and the first weights are those of deep stacks."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_depth.functional import find_blocks
from lit_depth.recipes import train_shapes
from lit_depth.recipes.train_shapes import BlockDropout, DepthScaledInit
from tests.helpers.tiny_models import tiny_model


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model("llama")


def test_blocks_are_dropped_as_often_as_the_schedule_says(monkeypatch):
    module, masks = Module(), []
    monkeypatch.setattr(train_shapes, "masked", lambda model, mask: masks.append(mask) or torch.no_grad())
    callback = BlockDropout(peak=0.5)
    for step in range(4000):
        callback.on_train_batch_start(SimpleNamespace(global_step=step), module, None, step)
        callback.on_train_batch_end()
    dropped = 1 - torch.stack(masks).double().mean(0)
    expected = [0.5 * math.sin(math.pi * index / 3) ** 2 for index in range(4)]
    assert dropped.tolist() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(4000))
    assert dropped[0] == dropped[3] == 0


def test_the_peak_grows_from_its_start(monkeypatch):
    module, masks = Module(), []
    monkeypatch.setattr(train_shapes, "masked", lambda model, mask: masks.append(mask) or torch.no_grad())
    callback = BlockDropout(peak=1.0, start=0.0, ramp_steps=10)
    for step in (0, 10**6):
        callback.on_train_batch_start(SimpleNamespace(global_step=step), module, None, 0)
        callback.on_train_batch_end()
    assert masks[0].all()


def test_outputs_of_blocks_are_scaled_by_the_depth():
    module = Module()
    before = {name: value.clone() for name, value in find_blocks(module.model).named_parameters()}
    DepthScaledInit(embedding_std=0.25).on_fit_start(None, module)
    for name, value in find_blocks(module.model).named_parameters():
        scale = math.sqrt(8) if "o_proj" in name or "down_proj" in name else 1.0
        torch.testing.assert_close(value * scale, before[name])
    assert float(module.model.get_decoder().embed_tokens.weight.std()) == pytest.approx(0.25, rel=0.1)
