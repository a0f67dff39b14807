"""Independent reference for block masks: a copy of the model from which blocks are physically removed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_depth.functional import find_blocks


def pruned_copy(model: PreTrainedModel, mask: Tensor | Sequence[bool], share_weights: bool = False) -> PreTrainedModel:
    """Deep-copy ``model``, keep the active blocks, and renumber them and every per-layer list of the config."""
    active = [bool(is_active) for is_active in mask]
    shared = (*model.parameters(), *model.buffers()) if share_weights else ()
    model = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    blocks = find_blocks(model)
    holder, name = next((m, n) for m in model.modules() for n, child in m.named_children() if child is blocks)
    kept = [block for block, is_active in zip(blocks, active, strict=True) if is_active]
    for block_idx, block in enumerate(kept):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = block_idx
    setattr(holder, name, nn.ModuleList(kept))
    # the attention modules, the decoder and the generation code read one and the same config object
    config = model.config.get_text_config(decoder=True)
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == len(active):
            setattr(config, name, [entry for entry, is_active in zip(value, active) if is_active])
    if not isinstance(getattr(type(config), "num_hidden_layers", None), property):  # else it is counted
        config.num_hidden_layers = len(kept)
    assert model.config.get_text_config(decoder=True).num_hidden_layers == len(kept)
    return model
