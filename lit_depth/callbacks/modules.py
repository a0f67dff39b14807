"""What the callbacks need of somebody else's LightningModule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from lightning.pytorch import LightningModule
from torch import nn
from transformers import PreTrainedModel

from lit_depth.functional.blocks import find_blocks


def language_model(pl_module: LightningModule, path: str | None) -> tuple[nn.Module, str | None]:
    """The outermost Hugging Face model that holds the blocks, and their path from there."""
    blocks = find_blocks(pl_module, path)
    for name, module in pl_module.named_modules():
        if isinstance(module, PreTrainedModel) and any(child is blocks for child in module.modules()):
            return module, None if path is None else path.removeprefix(f"{name}.")
    return pl_module, path


@contextmanager
def undisturbed(pl_module: LightningModule) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule's mode and the random state are what they were."""
    training = {module: module.training for module in pl_module.modules()}
    pl_module.eval()
    try:
        with same_random_state(pl_module):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def same_random_state(pl_module: LightningModule) -> AbstractContextManager[None]:
    """The loop around a callback must draw the same random numbers as without it."""
    return torch.random.fork_rng(devices=[pl_module.device] if pl_module.device.type == "cuda" else [])
