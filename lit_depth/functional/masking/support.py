"""What can be skipped: blocks that depend on one another by the residual stream alone; and what the engine drives."""

from __future__ import annotations

import inspect
import typing

from torch import nn
from transformers.cache_utils import Cache

from lit_depth.functional.masking.blocks import find_decoder

# a block that takes one of these computes with what another block made, ...
_COUPLING_ARGUMENTS = ("shared_kv_states", "block_states", "prev_topk_indices", "prev_router_hidden_states")
# ... with a state that it hands back to the decoder, or with a second stream beside the residual one
_OTHER_STATES = ("state", "output_g", "prev_attn_output")
# peft's adapters that fill a KV cache before the first token: it cannot be told from one of the whole model
_FILLED_CACHES = ("PREFIX_TUNING", "CARTRIDGE")


def check_skippable(decoder: nn.Module | None, blocks: nn.ModuleList, model: nn.Module) -> None:
    """Raise ValueError for a model whose blocks depend on one another by more than the residual stream.

    Args:
        decoder: What holds the blocks.
        model: What holds the decoder, with adapters around it.
    """
    for module in model.modules():
        kind = str(getattr(getattr(module, "active_peft_config", None), "peft_type", "")).rpartition(".")[2]
        if kind in _FILLED_CACHES:
            raise ValueError(
                f"cannot skip blocks under {kind}: it gives every forward a filled KV cache; "
                "pass the model without it (get_base_model()), or use another adapter"
            )
    config = getattr(decoder, "config", None)
    name = type(decoder if decoder is not None else blocks[0]).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"expected a decoder-only model, got the encoder-decoder {name}")
    sharing = getattr(config, "kv_sharing_modes", None) or ()
    reason = None
    if getattr(config, "num_kv_shared_layers", None) or any("reuse" in str(mode) for mode in sharing):
        reason = "blocks share the keys and values of earlier blocks"
    elif getattr(config, "cross_attention_layers", None):
        reason = "some blocks cache image states instead of text"
    elif own_cache := _own_cache(decoder):
        reason = f"its {own_cache} keeps states beside its layers"
    else:
        for block_idx, block in enumerate(blocks):
            reason = reason or _coupling(block_idx, block)
    if reason is not None:
        raise ValueError(f"cannot skip blocks of {name}: {reason}")


def _coupling(block_idx: int, block: nn.Module) -> str | None:
    parameters = inspect.signature(type(block).forward).parameters
    arguments = [name for name in parameters if name in _COUPLING_ARGUMENTS]
    if arguments:
        return f"block {block_idx} takes the state of other blocks ({', '.join(arguments)})"
    others = [name for name in parameters if name in _OTHER_STATES]
    if others:
        return f"block {block_idx} takes and returns more than the residual stream ({', '.join(others)})"
    for module in block.modules():
        layer_idx = module.__dict__.get("layer_idx")
        if isinstance(layer_idx, int) and layer_idx != block_idx:
            return f"block {block_idx} uses cache layer {layer_idx}"
    return None


def _own_cache(decoder: nn.Module | None) -> str | None:
    """Name of a cache that a decoder asks for and that keeps more than its layers; None for transformers' own ones."""
    parameters = {} if decoder is None else inspect.signature(type(decoder).forward).parameters
    for parameter in parameters.values():
        for kind in (parameter.annotation, *typing.get_args(parameter.annotation)):
            if isinstance(kind, type) and issubclass(kind, Cache) and kind.__len__ is not Cache.__len__:
                return kind.__name__
    return None


def adds_between_blocks(decoder: nn.Module | None) -> bool:
    """Whether a decoder adds visual features to the hidden states behind some of its blocks (DeepStack).

    They are added outside of the blocks, by index: a skipped block is the identity, and the addition stays.
    """
    return decoder is not None and any("deepstack" in p for p in inspect.signature(type(decoder).forward).parameters)


def check_drivable(model: nn.Module, blocks: nn.ModuleList) -> str | None:
    """Why the one-pass engine cannot drive these blocks; None if it can.

    Raises:
        ValueError: the blocks cannot be skipped at all, see :func:`masked`.
    """
    decoder = find_decoder(model, blocks)
    check_skippable(decoder, blocks, model)
    if decoder is None or not hasattr(model, "config"):
        return "it is not a Hugging Face model"
    if any(
        kind and "attention" not in kind or "linear" in kind
        for kind in getattr(decoder.config, "layer_types", None) or ()
    ):
        return "some of its blocks keep a recurrent state"
    return None
