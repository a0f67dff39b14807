"""Skip transformer blocks without touching weights, module tree or state dict.

How a block is skipped: its *instance* ``forward`` is replaced by the identity. Module hooks keep firing, so recorded
``hidden_states`` keep num_blocks + 1 entries, while attentions and router logits hold the active blocks only.

How the KV cache stays right: one forward pre-hook on block 0 sees the cache before anything is written to it, whoever
made it (``generate``, the caller, or the decoder itself), and puts a placeholder that stores nothing at the entry of
every skipped block. transformers reads the sequence length and the attention-mask sizes from the first entry that is
not a placeholder, so skipping block 0 needs no further care.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
)

from lit_depth.functional.blocks import find_blocks, find_decoder

Granularity = Literal["block", "sublayer"]
Phase = Literal["both", "prefill", "decode"]

_ABSENT = object()
# a block that takes one of these computes with what another block made
_COUPLING_ARGUMENTS = ("shared_kv_states", "block_states", "prev_topk_indices", "prev_router_hidden_states")


def masked(
    model: nn.Module,
    mask: Tensor | Sequence[bool],
    *,
    blocks: str | None = None,
    granularity: Granularity = "block",
    phase: Phase = "both",
) -> AbstractContextManager[nn.Module]:
    """Skip blocks of ``model`` inside a ``with`` statement; a skipped block is the identity on the residual stream.

    The result equals that of a model from which the skipped blocks were physically removed, for training, forward and
    every kind of ``generate``. All blocks stay in the module tree, state-dict keys do not change, and leaving the
    context restores the model exactly, also after an exception. Contexts nest: the inner mask *replaces* the outer one
    (it alone says which blocks run), and leaving it brings the outer one back.

    A skipped block owns no KV cache. A cache filled in this context works only under the same mask; anything else
    raises ValueError: a cache filled under a different mask, or a masked cache given to the whole model. (This block
    mask has nothing to do with the ``BlockMask`` of torch's FlexAttention, which masks attention scores.)

    Args:
        model: any module that holds a Hugging Face decoder, see :func:`~lit_depth.functional.blocks.find_blocks`.
        mask: bool ``[num_blocks]``, True = the block runs.
        blocks: dotted path of the block list where it cannot be found unambiguously.
        granularity: what one entry of the mask switches. Only ``"block"`` so far.
        phase: the steps of generation that the mask applies to. Only ``"both"`` so far.

    Returns:
        A context manager that yields ``model``. Arguments are checked before it is entered.

    Raises:
        ValueError: a mask of the wrong length, dtype or shape or without an active block; no decoder blocks; a model
            whose blocks depend on one another by index (shared KV, deep-stack visual features); encoder-decoders.
        NotImplementedError: ``"sublayer"``, ``"prefill"``, ``"decode"`` and per-row masks ``[batch, num_blocks]``.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes))
    >>> with masked(model, [False, True, True]):
    ...     cache = model(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    >>> cache.is_dummy, cache.get_seq_length()
    ([True, False, False], 2)
    """
    _check_choice("granularity", granularity, ("block", "sublayer"), supported="block")
    _check_choice("phase", phase, ("both", "prefill", "decode"), supported="both")
    module_list = find_blocks(model, blocks)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.dtype == torch.bool and mask.shape[1] == len(module_list):
        raise NotImplementedError("per-row masks [batch, num_blocks] are not supported yet; pass one mask [num_blocks]")
    active = check_mask(mask, len(module_list)).tolist()
    _refuse_coupled_blocks(find_decoder(model, module_list), module_list)
    return _masked(model, list(module_list), active)


def check_mask(mask: Tensor | Sequence[bool], num_blocks: int) -> Tensor:
    """Return ``mask`` as a bool tensor ``[num_blocks]`` on the CPU.

    Raises:
        ValueError: wrong dtype, shape or length, or no active block.

    >>> check_mask([True, False], num_blocks=2)
    tensor([ True, False])
    """
    if not isinstance(mask, Tensor):
        mask = list(mask)
        wrong = next((value for value in mask if not isinstance(value, bool)), None)
        if wrong is not None:
            raise ValueError(f"expected a mask of bools, given {wrong!r} of type {type(wrong).__name__}")
        mask = torch.tensor(mask, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise ValueError(f"expected a mask of dtype torch.bool, given {mask.dtype}")
    if mask.ndim != 1:
        raise ValueError(f"expected a mask of shape [{num_blocks}], given {list(mask.shape)}")
    if len(mask) != num_blocks:
        raise ValueError(f"expected a mask of {num_blocks} blocks, given {len(mask)}")
    if not mask.any():
        raise ValueError(f"expected at least one active block, given a mask that skips all {num_blocks}")
    return mask.detach().cpu()


def mask_id(mask: Tensor | Sequence[bool]) -> str:
    """Return the bit string of a block mask, block 0 first. Raises ValueError as :func:`check_mask`.

    >>> mask_id(torch.tensor([True, True, False, True]))
    '1101'
    """
    return "".join("1" if active else "0" for active in check_mask(mask, len(mask)).tolist())


def from_mask_id(text: str) -> Tensor:
    """Return the block mask of a bit string: the inverse of :func:`mask_id`.

    Raises:
        ValueError: characters other than 0 and 1, or no 1.

    >>> from_mask_id("101")
    tensor([ True, False,  True])
    """
    if set(text) - set("01"):
        raise ValueError(f"expected a mask id of the characters 0 and 1, such as '1101', given {text!r}")
    return check_mask([bit == "1" for bit in text], len(text))


def check_drivable(model: nn.Module, blocks: nn.ModuleList) -> str | None:
    """Why the one-pass engine cannot drive these blocks; None if it can.

    Raises:
        ValueError: the blocks cannot be skipped at all, see :func:`masked`.
    """
    decoder = find_decoder(model, blocks)
    _refuse_coupled_blocks(decoder, blocks)
    if decoder is None or not hasattr(model, "config"):
        return "it is not a Hugging Face model"
    if any(_num_outputs(type(block).forward) is not None for block in blocks):
        return "its blocks return tuples"
    if any(hasattr(module, "get_rope_index") for module in model.modules()):
        return "its rotary positions have several axes"
    if any(
        kind and "attention" not in kind or "linear" in kind
        for kind in getattr(decoder.config, "layer_types", None) or ()
    ):
        return "some of its blocks keep a recurrent state"
    return None


class SkippedLayer(DummyLayer):
    """Cache entry of a skipped block: stores nothing, and refuses the block if it runs after all."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Raise ValueError; like its base, accept None so that caches can be rebuilt across processes."""
        if key_states is None and value_states is None:
            return super().update(key_states, value_states)
        raise ValueError(
            "this KV cache was made under a mask that skips a block which now runs; "
            "make a new cache for every mask, and one for the whole model"
        )


def claim_entries(cache: Cache, owned: Sequence[bool]) -> None:
    """Make ``cache`` hold entries for the owned blocks only: placeholders go where ``owned`` is False.

    Nothing happens when the cache already has this pattern. All checks come before the first change.

    Raises:
        ValueError: the cache holds tokens written under another pattern, or it is of a kind or size that does not fit.
    """
    if isinstance(cache, EncoderDecoderCache):
        raise ValueError("expected the cache of a decoder-only model, given an EncoderDecoderCache")
    layers = cache.layers
    if cache.layer_class_to_replicate is not None:
        # a cache that grows on first use: let it grow now, so that every block finds its own entry
        layers.extend(cache.layer_class_to_replicate() for _ in range(len(owned) - len(layers)))
    if len(layers) < len(owned):
        raise ValueError(f"expected a KV cache with an entry for each of {len(owned)} blocks, given {len(layers)}")
    missing = []
    for block_idx, is_owned in enumerate(owned):
        entry = layers[block_idx]
        if is_owned and type(entry) is SkippedLayer:
            raise ValueError(
                f"block {block_idx} is active, but this KV cache was made under a mask that skips it; make a new cache"
            )
        if not is_owned and not isinstance(entry, DummyLayer):
            missing.append(block_idx)
    if not missing:
        return
    if any(map(_is_filled, layers)):
        raise ValueError(
            f"this KV cache was filled without skipping blocks {missing}, which the mask skips; make a new cache"
        )
    for block_idx in missing:
        layers[block_idx] = SkippedLayer()


def _check_choice(argument: str, given: str, known: tuple[str, ...], supported: str) -> None:
    if given not in known:
        raise ValueError(f"expected {argument} to be one of {', '.join(known)}, given {given!r}")
    if given != supported:
        raise NotImplementedError(f"{argument}={given!r} is not supported yet; use {supported!r}")


def _is_filled(entry: CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer) -> bool:
    if isinstance(entry, CacheLayerMixin):
        # the length of a static entry is a tensor on the device; it is read only while placeholders are still missing
        return entry.is_initialized and int(entry.get_seq_length()) > 0
    return isinstance(entry, LinearAttentionCacheLayerMixin) and any(entry.has_previous_state.values())


class _Identity:
    """Stands in for the ``forward`` of a skipped block and remembers the instance attribute it replaced."""

    def __init__(self, replaced: object, num_outputs: int | None) -> None:
        self.replaced = replaced
        self.other_outputs = None if num_outputs is None else (None,) * (num_outputs - 1)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        return hidden_states if self.other_outputs is None else (hidden_states, *self.other_outputs)


@contextmanager
def _masked(model: nn.Module, blocks: list[nn.Module], active: list[bool]) -> Iterator[nn.Module]:
    found = [_instance_forward(block) for block in blocks]
    # what the blocks run outside every mask: an outer mask is replaced, not combined with
    own = [forward.replaced if isinstance(forward, _Identity) else forward for forward in found]
    pattern = tuple(active)
    outer = _PATTERNS.get(blocks[0])
    _PATTERNS[blocks[0]] = pattern
    hook = blocks[0].register_forward_pre_hook(_claim, with_kwargs=True)
    try:
        for block, is_active, forward in zip(blocks, active, own):
            if not is_active:
                forward = _Identity(forward, _num_outputs(type(block).forward))
            _set_instance_forward(block, forward)
        yield model
    finally:
        hook.remove()
        if outer is None:
            del _PATTERNS[blocks[0]]
        else:
            _PATTERNS[blocks[0]] = outer
        for block, forward in zip(blocks, found):
            _set_instance_forward(block, forward)


# first block of a model -> the mask of its innermost context, so that the hooks of nested contexts agree
_PATTERNS: weakref.WeakKeyDictionary[nn.Module, tuple[bool, ...]] = weakref.WeakKeyDictionary()


def _claim(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    pattern = _PATTERNS[block]
    # families name the argument differently (past_key_values, layer_past, cache_params), so look for the type
    for value in (*kwargs.values(), *args):
        if isinstance(value, Cache):
            # a cache that has been through this is not looked over again at every decode step
            if getattr(value, "_lit_depth_pattern", None) is not pattern:
                claim_entries(value, pattern)
                value._lit_depth_pattern = pattern  # type: ignore[attr-defined]
            return


def _instance_forward(block: nn.Module) -> object:
    # accelerate, too, keeps a forward on the instance, which has to survive
    return block.__dict__.get("forward", _ABSENT)


def _set_instance_forward(block: nn.Module, forward: object) -> None:
    if forward is _ABSENT:
        block.__dict__.pop("forward", None)
    else:
        block.__dict__["forward"] = forward


@functools.cache
def _num_outputs(block_forward: Callable[..., Any]) -> int | None:
    """Number of values in the tuple that a block's forward returns; None where it returns the bare tensor.

    Read from the source of ``forward``: its annotation is wrong in many families, and a skipped block 0 has to answer
    before any block has run. Most families return the tensor, so that is what no source means.
    """
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(block_forward)))
        function = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    if not returned:
        return None
    last = returned[-1]
    if isinstance(last, ast.Name):  # "outputs = (hidden_states,)", perhaps extended, then "return outputs"
        values = [
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == last.id for t in node.targets)
        ]
        last = next((value for value in values if isinstance(value, ast.Tuple)), last)
    if isinstance(last, ast.BinOp) and isinstance(last.left, ast.Tuple):  # "return (hidden_states,) + outputs"
        last = last.left
    return len(last.elts) if isinstance(last, ast.Tuple) else None


def _refuse_coupled_blocks(decoder: nn.Module | None, blocks: nn.ModuleList) -> None:
    """Raise ValueError for a model whose blocks depend on one another by more than the residual stream."""
    config = getattr(decoder, "config", None)
    name = type(decoder if decoder is not None else blocks[0]).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"expected a decoder-only model, given the encoder-decoder {name}")
    sharing = getattr(config, "kv_sharing_modes", None) or ()
    reason = None
    if getattr(config, "num_kv_shared_layers", None) or any("reuse" in str(mode) for mode in sharing):
        reason = "blocks share the keys and values of earlier blocks"
    elif getattr(config, "cross_attention_layers", None):
        reason = "some blocks cache image states instead of text"
    elif decoder is not None and any("deepstack" in p for p in inspect.signature(type(decoder).forward).parameters):
        reason = "deep-stack visual features are added by block index"
    else:
        for block_idx, block in enumerate(blocks):
            reason = reason or _coupling(block_idx, block)
    if reason is not None:
        raise ValueError(f"cannot skip blocks of {name}: {reason}")


def _coupling(block_idx: int, block: nn.Module) -> str | None:
    arguments = [p for p in inspect.signature(type(block).forward).parameters if p in _COUPLING_ARGUMENTS]
    if arguments:
        return f"block {block_idx} takes the state of other blocks ({', '.join(arguments)})"
    for module in block.modules():
        layer_idx = module.__dict__.get("layer_idx")
        if isinstance(layer_idx, int) and layer_idx != block_idx:
            return f"block {block_idx} uses cache entry {layer_idx}"
    return None
