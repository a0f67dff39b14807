"""What the tests of masks look at: greedy tokens and logits, the state of a model before and after, its operations."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from tests.helpers.tiny_models import IMAGE_TOKEN

NEW_TOKENS = 5


def generate(model: PreTrainedModel, batch: dict, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens [batch, new] and logits [batch, new, vocabulary]."""
    output = model.generate(
        **batch,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        suppress_tokens=[IMAGE_TOKEN],  # without a cache, a generated image token would ask for another image
        return_dict_in_generate=True,
        output_logits=True,
        **kwargs,
    )
    return output.sequences[:, batch["input_ids"].shape[1] :], torch.stack(output.logits, dim=1)


def snapshot(model: nn.Module) -> tuple:
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(name, set(module.__dict__), len(module._forward_pre_hooks)) for name, module in model.named_modules()],
    )


def assert_restored(model: nn.Module, before: tuple) -> None:
    state, modules = before
    after_state, after_modules = snapshot(model)
    assert list(after_state) == list(state) and after_modules == modules
    assert all(torch.equal(after_state[name], state[name]) for name in state)


class CountOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
