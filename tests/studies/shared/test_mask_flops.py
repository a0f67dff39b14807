"""Operations of the masks of a run, and none where they cannot be counted."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import torch

from lit_depth.data import DepthDataModule
from lit_depth.module import DepthModule
from lit_depth.studies.shared.mask_flops import count_flops

FULL, EVERY_OTHER = "1" * 16, "10" * 8


def run_of(checkpoint: Any, **options: Any) -> Any:
    module = DepthModule(str(checkpoint), **options)
    data = DepthDataModule(module.prompter, batch_size=4)
    plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision_plugin=plugin)
    return SimpleNamespace(trainer=trainer, model=module, datamodule=data)


def test_images_that_skip_cost_less_than_all_blocks_and_more_than_none(checkpoint):
    counted = {
        kind: count_flops(run_of(checkpoint, skip_tokens=kind), "validation", [FULL, EVERY_OTHER], new_tokens=2)
        for kind in ("all", "image", "image_drop")
    }
    full, half = (counted["all"][mask] for mask in (FULL, EVERY_OTHER))
    outside = {stage: 2 * half[stage] - full[stage] for stage in full}  # blocks are alike
    assert outside["vision"] == full["vision"] > 0 and 0 < outside["prefill"] < full["prefill"] / 16
    for kind in ("image", "image_drop"):
        assert counted[kind][FULL] == full
        own = counted[kind][EVERY_OTHER]
        assert half["prefill"] < own["prefill"] < full["prefill"] and own["decode"] == full["decode"]


def test_without_a_whole_request_nothing_is_known(checkpoint):
    run = run_of(checkpoint)
    run.datamodule = run.datamodule.take("validation", 2)
    assert count_flops(run, "validation", [FULL], new_tokens=2, batch_size=3) == {}


def test_quantised_products_are_not_counted(checkpoint):
    run = run_of(checkpoint)
    run.model.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    assert count_flops(run, "validation", [FULL], new_tokens=2) == {}
