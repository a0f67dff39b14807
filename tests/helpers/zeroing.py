"""Independent reference for masks of sublayers: a copy of the model whose skipped halves add nothing but zeros."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

# what the last matrix of an attention and of an MLP (also of each expert) is called
LAST = ("o_proj", "down_proj")


@torch.no_grad()
def zeroed_copy(model: PreTrainedModel, mask: Tensor | Sequence[bool]) -> PreTrainedModel:
    """Deep-copy ``model`` and zero the last matrix of every half that ``mask`` ``[2 * num_blocks]`` skips."""
    model = copy.deepcopy(model)
    active = [bool(is_active) for is_active in mask]
    layers = model.get_decoder().layers
    assert len(active) == 2 * len(layers)
    for unit, is_active in enumerate(active):
        block = layers[unit // 2]
        half = (block.self_attn, block.mlp)[unit % 2]
        last = [value for name, value in half.named_parameters() if LAST[unit % 2] in name]
        assert last
        for value in last if not is_active else ():
            value.zero_()
    return model
