"""Independent reference for block masks: a copy of the model from which blocks are physically removed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel


def pruned_copy(model: PreTrainedModel, mask: Tensor | Sequence[bool], share_weights: bool = False) -> PreTrainedModel:
    """Deep-copy ``model``, keep the active blocks, and renumber them and every per-layer list of the config."""
    active = [bool(is_active) for is_active in mask]
    shared = (*model.parameters(), *model.buffers()) if share_weights else ()
    model = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    decoder = model.get_decoder()
    layers_name = "layers" if hasattr(decoder, "layers") else "h"
    kept = [block for block, is_active in zip(getattr(decoder, layers_name), active, strict=True) if is_active]
    for block_idx, block in enumerate(kept):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = block_idx
    setattr(decoder, layers_name, nn.ModuleList(kept))
    # the attention modules, the decoder and the generation code read one and the same config object
    for name, value in list(vars(decoder.config).items()):
        if isinstance(value, list) and len(value) == len(active):
            setattr(decoder.config, name, [entry for entry, is_active in zip(value, active) if is_active])
    decoder.config.num_hidden_layers = len(kept)
    assert model.config.get_text_config(decoder=True).num_hidden_layers == len(kept)
    return model
