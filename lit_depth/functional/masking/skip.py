"""Skip transformer blocks without touching weights, module tree or state dict.

How a block is skipped: its *instance* ``forward`` is replaced by the identity. Module hooks keep firing, so recorded
``hidden_states`` keep num_blocks + 1 entries, while attentions and router logits hold the active blocks only.

How the KV cache stays right: one forward pre-hook on block 0 sees the cache before anything is written to it, whoever
made it (``generate``, the caller, or the decoder itself), and puts a placeholder that stores nothing at the entry of
every skipped block. transformers reads the sequence length and the attention-mask sizes from the first entry that is
not a placeholder, so skipping block 0 needs no further care. The entries are in
`lit_depth.functional.masking.kv_cache`.

Half a block (``granularity="sublayer"``): its instance ``forward`` is replaced by that of the other half, in
`lit_depth.functional.masking.sublayers`; whether its attention runs decides about the cache entry.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from lit_depth.functional.arguments import MAX_UNITS, check_range, checked
from lit_depth.functional.compatibility import CACHE_NAME
from lit_depth.functional.masking.blocks import find_blocks, find_decoder
from lit_depth.functional.masking.kv_cache import (
    Claim,
    DecodeClaim,
    DecodedLayer,
    PrefillClaim,
    SkippedLayer,
    find_cache,
)
from lit_depth.functional.masking.sublayers import HalfForward, check_halves

Granularity = Literal["block", "sublayer"]
Phase = Literal["both", "prefill", "decode"]

# no such attribute on the instance; in copies of a masked model, too
_ABSENT = None
# attribute of the first block: the claim of the innermost context, so that the hooks of nested contexts agree; copies
# of a masked model, also those of `nn.DataParallel`, have it too
_CLAIM = "_lit_depth_claim"
# attribute of the decoder: its first block. A hook that held the block would have torch.compile check it twice
_FIRST_BLOCK = "_lit_depth_first_block"
# a block that takes one of these computes with what another block made
_COUPLING_ARGUMENTS = ("shared_kv_states", "block_states", "prev_topk_indices", "prev_router_hidden_states")


@checked
def masked(
    model: nn.Module,
    mask: Tensor | Sequence[bool],
    *,
    blocks: str | None = None,
    granularity: Granularity = "block",
    phase: Phase = "both",
    decode_without_prompt: bool = False,
) -> AbstractContextManager[nn.Module]:
    """Skip blocks of ``model`` inside a ``with`` statement; a skipped block is the identity on the residual stream.

    The result equals that of a model from which the skipped blocks were physically removed, for training, forward and
    every kind of ``generate``. All blocks stay in the module tree, state-dict keys do not change, and leaving the
    context restores the model exactly, also after an exception. Contexts nest: the inner mask *replaces* the outer one
    (it alone says which blocks run), and leaving it brings the outer one back.

    A skipped block owns no KV cache. A cache filled in this context works only under the same mask; anything else
    raises ValueError: a cache filled under a different mask, or a masked cache given to the whole model. (This block
    mask has nothing to do with the ``BlockMask`` of torch's FlexAttention, which masks attention scores.)

    A model under ``torch.compile`` never runs the code of another mask. For whole blocks that return a tensor, as most
    do, skipped in both phases, it is compiled once per mask; for any other mask each time a context is entered. torch
    gives up after a few compilations, see its ``recompile_limit``.

    Phases: a forward on a KV cache that holds tokens is a decode step; every other forward is a prefill, that is the
    first one on an empty cache and all without a cache. So of a prompt given in several chunks only the first is the
    prefill, and without a cache ``"decode"`` changes nothing and ``"prefill"`` is the same as ``"both"``.

    - ``"decode"``: the prefill runs all blocks, decode steps only the active ones. The first decode step drops the
      prompt's keys and values of the skipped blocks, which nothing reads again. A cache that the whole model filled may
      be decoded with under this mask; from then on it belongs to the mask.
    - ``"prefill"``: a block that skips the prefill has no keys and values of the prompt, so decode steps skip it too,
      which is the same as ``"both"``. ``decode_without_prompt`` runs it nevertheless: in this block a decoded token
      then attends to the decoded tokens alone, itself included, at their true positions.

    Sublayers (``granularity="sublayer"``): entry 2i of the mask is the attention of block i, entry 2i + 1 its MLP. A
    skipped half adds nothing to the residual stream and does not run, nor does its norm: hooks on their modules do not
    fire. A block without its attention owns no KV cache, one without its MLP keeps it; without both it is skipped.

    Args:
        model: any module that holds a Hugging Face decoder, see :func:`~lit_depth.functional.find_blocks`.
        mask: bool ``[num_blocks]``, True = the block runs; for sublayers ``[2 * num_blocks]``.
        blocks: dotted path of the block list where it cannot be found unambiguously.
        granularity: what one entry of the mask switches: a ``"block"``, or with ``"sublayer"`` its attention or MLP.
        phase: the forwards that the mask applies to, see above.
        decode_without_prompt: with ``phase="prefill"``: run the skipped blocks in decode steps.

    Returns:
        A context manager that yields ``model``. Arguments are checked before it is entered.

    Raises:
        ValueError: a mask of the wrong length, dtype or shape or without an active block; no decoder blocks; a model
            whose blocks depend on one another by index (shared KV, deep-stack visual features); encoder-decoders;
            ``decode_without_prompt`` in another phase. In a forward with ``decode_without_prompt``: a block with a
            recurrent state, attention biases per key (ALiBi), or masks other than tensors (flex attention). Sublayers:
            a mask without any attention; blocks of an unknown form (see `lit_depth.functional.masking.sublayers`), such
            as those whose attention and MLP run side by side. When the context is entered: half of a block that has a
            ``forward`` of its own on the instance, as accelerate gives to models on several devices.
        NotImplementedError: sublayers in one phase only; per-row masks ``[batch, num_blocks]``.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes))
    >>> def without_keys(cache):
    ...     return [entry.keys is None for entry in cache.layers]
    >>> with masked(model, [False, True, True]):
    ...     cache = model(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    >>> without_keys(cache), cache.get_seq_length()
    ([True, False, False], 2)
    >>> with masked(model, [True, False, False, True, True, True], granularity="sublayer"):
    ...     cache = model(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    >>> without_keys(cache)
    [False, True, False]
    >>> with masked(model, [False, True, True], phase="decode"):
    ...     cache = model(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    ...     print(without_keys(cache), cache.get_seq_length())
    ...     _ = model(torch.tensor([[3]]), past_key_values=cache)
    [False, False, False] 2
    >>> without_keys(cache), cache.get_seq_length()
    ([True, False, False], 3)
    """
    if decode_without_prompt and phase != "prefill":
        raise ValueError(f"expected decode_without_prompt with phase='prefill' only, given phase={phase!r}")
    if granularity == "sublayer" and (phase == "decode" or decode_without_prompt):
        raise NotImplementedError(
            "expected granularity='block' where prefill and decode differ, given 'sublayer' with "
            f"phase={phase!r}, decode_without_prompt={decode_without_prompt}"
        )
    module_list = find_blocks(model, blocks)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.dtype == torch.bool and mask.shape[1] == len(module_list):
        raise NotImplementedError("per-row masks [batch, num_blocks] are not supported yet; pass one mask [num_blocks]")
    active = check_mask(mask, len(module_list), granularity).tolist()
    decoder = find_decoder(model, module_list)
    _refuse_coupled_blocks(decoder, module_list)
    halves = list(zip(active, active))
    if granularity == "sublayer":
        check_halves(module_list)
        halves = list(zip(active[::2], active[1::2]))
        if not any(attends for attends, _ in halves):
            raise ValueError("expected at least one active attention, given a sublayer mask of MLPs only")
    # without the prompt's keys and values there is nothing to decode on, so the block is skipped in both
    is_same = phase == "both" or (phase == "prefill" and not decode_without_prompt)
    return _masked(model, decoder, module_list, halves, "both" if is_same or all(active) else phase)


@checked
def check_mask(mask: Tensor | Sequence[bool], num_blocks: int, granularity: Granularity = "block") -> Tensor:
    """Return ``mask`` as a bool tensor on the CPU: ``[num_blocks]``, for sublayers ``[2 * num_blocks]``.

    Raises:
        ValueError: wrong dtype, shape or length, or no active block.

    >>> check_mask([True, False], num_blocks=2)
    tensor([ True, False])
    """
    check_range(1, MAX_UNITS, num_blocks=num_blocks)
    num_units, units = (num_blocks, "blocks") if granularity == "block" else (2 * num_blocks, "sublayers")
    if not isinstance(mask, Tensor):
        mask = torch.tensor(list(mask), dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise ValueError(f"expected a mask of dtype torch.bool, given {mask.dtype}")
    if mask.ndim != 1:
        raise ValueError(f"expected a mask of shape [{num_units}], given {list(mask.shape)}")
    if len(mask) != num_units:
        is_other = granularity == "block" and len(mask) == 2 * num_blocks
        hint = "; masks of sublayers need granularity='sublayer', where it can be given" if is_other else ""
        raise ValueError(f"expected a mask of {num_units} {units}, given {len(mask)}{hint}")
    if not mask.any():
        raise ValueError(f"expected at least one active {granularity}, given a mask that skips all {num_units}")
    return mask.detach().cpu()


@checked
def mask_id(mask: Tensor | Sequence[bool]) -> str:
    """Return the bit string of a block mask, block 0 first. Raises ValueError as :func:`check_mask`.

    >>> mask_id(torch.tensor([True, True, False, True]))
    '1101'
    """
    active = check_mask(mask, mask.numel() if isinstance(mask, Tensor) else len(mask))
    return "".join("1" if bit else "0" for bit in active.tolist())


@checked
def from_mask_id(text: str) -> Tensor:
    """Return the block mask of a bit string: the inverse of :func:`mask_id`.

    Raises:
        ValueError: characters other than 0 and 1, or no 1.

    >>> from_mask_id("101")
    tensor([ True, False,  True])
    """
    if not text or set(text) - set("01"):
        raise ValueError(f"expected a mask id of the characters 0 and 1, such as '1101', given {text!r}")
    return check_mask([bit == "1" for bit in text], len(text))


@checked
def stack_masks(
    masks: Tensor | Sequence[Tensor | Sequence[bool]], num_blocks: int | None = None, granularity: Granularity = "block"
) -> Tensor:
    """Return several masks, each as `check_mask` takes it, as a bool tensor ``[masks, num_units]`` on the CPU.

    Args:
        num_blocks: Blocks of the model; None = as many as the first mask has.

    Raises:
        ValueError: no mask, or one that `check_mask` refuses.
    """
    if isinstance(masks, Tensor) and masks.ndim != 2:
        raise ValueError(f"expected masks of shape [masks, num_blocks], given {list(masks.shape)}")
    rows = list(masks)
    if not rows:
        raise ValueError("expected at least one mask, given none")
    first = rows[0]
    length = first.numel() if isinstance(first, Tensor) else len(first)
    return torch.stack([check_mask(mask, length if num_blocks is None else num_blocks, granularity) for mask in rows])


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


def _identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stands in for the ``forward`` of a skipped block that returns a tensor and had no forward on the instance.

    One function for all of them: torch.compile checks an object, and what it holds, before every forward.
    """
    return hidden_states


class _Identity:
    """Stands in for the ``forward`` of a skipped block and remembers the instance attribute it replaced."""

    def __init__(self, replaced: object, num_outputs: int | None) -> None:
        self.replaced = replaced
        self.other_outputs = None if num_outputs is None else (None,) * (num_outputs - 1)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        return hidden_states if self.other_outputs is None else (hidden_states, *self.other_outputs)


class _PhasedForward(_Identity):
    """Stands in for the ``forward`` of a block that is skipped in one phase only; the cache says in which one it is."""

    def __init__(self, replaced: object, block: nn.Module, block_idx: int) -> None:
        block_forward = type(block).forward
        super().__init__(replaced, _num_outputs(block_forward))
        self.real: Any = block_forward.__get__(block) if replaced is _ABSENT else replaced
        self.arguments = list(inspect.signature(block_forward).parameters)[2:]  # after self and hidden_states
        self.block_idx = block_idx


class _SkipInDecode(_PhasedForward):
    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = find_cache(args, kwargs)
        if cache is not None and isinstance(cache.layers[self.block_idx], SkippedLayer):
            return super().__call__(hidden_states)
        return self.real(hidden_states, *args, **kwargs)


class _SkipInPrefill(_PhasedForward):
    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = find_cache(args, kwargs)
        entry = None if cache is None else cache.layers[self.block_idx]
        if not isinstance(entry, DecodedLayer) or not entry.prompt_length:
            return super().__call__(hidden_states)
        arguments = dict(zip(self.arguments, args)) | kwargs
        biased = [name for name in ("alibi", "position_bias") if arguments.get(name) is not None]
        if biased:
            raise ValueError(f"cannot decode without the prompt: block {self.block_idx} takes {', '.join(biased)}")
        arguments["attention_mask"] = _decoded_columns(arguments.get("attention_mask"), entry, hidden_states.shape[1])
        entry.is_open = True
        try:
            return self.real(hidden_states, **arguments)
        finally:
            entry.is_open = False


def _decoded_columns(attention_mask: object, entry: DecodedLayer, num_new: int) -> Tensor | None:
    """Cut an attention mask, made for the whole sequence, to the keys that ``entry`` holds.

    Args:
        attention_mask: ``[..., keys]``, bool, additive, or of zeros and ones; None = every key is visible.
        num_new: tokens of this forward, which the entry is about to be given.
    """
    if attention_mask is None and not entry.is_compileable:
        return None
    if not isinstance(attention_mask, Tensor):
        given = "none for a static cache" if attention_mask is None else type(attention_mask).__name__
        raise ValueError(f"cannot decode without the prompt: expected a tensor as attention mask, given {given}")
    length, offset = entry.entry.get_mask_sizes(num_new)
    num_columns, num_seen = attention_mask.shape[-1], entry.prompt_length + entry.num_tokens + num_new
    # columns are positions: they end with the newest token where entries grow or slide, begin at 0 where there is room
    first_position = max(0, num_seen - num_columns)
    start = entry.prompt_length + offset - first_position
    if start < 0:
        raise ValueError(
            f"cannot decode without the prompt: the attention mask begins at position {first_position}, but a skipped "
            f"block needs it from {entry.prompt_length + offset} on; keep a block that attends as far back active"
        )
    columns = attention_mask[..., start : start + length]
    # room of a static entry beyond the positions that the mask speaks of
    hidden = torch.finfo(columns.dtype).min if columns.is_floating_point() else 0
    missing = length - columns.shape[-1]
    return nn.functional.pad(columns, (0, missing), value=hidden) if missing else columns


class _Blocks(nn.ModuleList):
    """Stands in for the class of the list of blocks: ``blocks[:num_blocks]``, which decoders loop over, is the list.

    A new module costs a microsecond or two per block and forward, for skipped ones too.
    """

    def __getitem__(self, idx: Any) -> Any:
        if not isinstance(idx, slice):
            return super().__getitem__(idx)
        return self if idx == slice(None, len(self)) else nn.ModuleList(list(self._modules.values())[idx])


@contextmanager
def _masked(
    model: nn.Module, decoder: nn.Module | None, blocks: nn.ModuleList, halves: list[tuple[bool, bool]], phase: Phase
) -> Iterator[nn.Module]:
    """Skip blocks and halves of blocks; ``halves`` holds one pair (attention runs, MLP runs) per block."""
    # an outer mask is replaced, not combined with
    own = [_outside_masks(block.__dict__.get("forward", _ABSENT)) for block in blocks]
    for block_idx, (forward, (attends, has_mlp)) in enumerate(zip(own, halves)):
        if attends != has_mlp and forward is not _ABSENT:
            raise ValueError(f"cannot skip half of block {block_idx}: it has a forward of its own on the instance")
    claim = {"both": Claim, "prefill": PrefillClaim, "decode": DecodeClaim}[phase]
    list_class = type(blocks)
    hooks = []
    attributes = [*((block, "forward") for block in blocks), (blocks[0], _CLAIM)]
    if decoder is not None:
        attributes.append((decoder, _FIRST_BLOCK))
    with _restored(attributes):
        try:
            _set(blocks[0], _CLAIM, claim([attends for attends, _ in halves]))  # an MLP reads and writes no cache
            hooks.append(blocks[0].register_forward_pre_hook(_claim, with_kwargs=True))
            if decoder is not None and CACHE_NAME in inspect.signature(type(decoder).forward).parameters:
                _set(decoder, _FIRST_BLOCK, blocks[0])
                hooks.append(decoder.register_forward_pre_hook(_offer_cache, with_kwargs=True))
            if list_class is nn.ModuleList:
                blocks.__class__ = _Blocks
            for block_idx, (block, (attends, has_mlp), forward) in enumerate(zip(blocks, halves, own)):
                if attends != has_mlp:
                    forward = HalfForward(forward, block, keep_attention=attends)
                elif not attends and phase == "both":
                    num_outputs = _num_outputs(type(block).forward)
                    is_plain = forward is _ABSENT and num_outputs is None
                    forward = _identity if is_plain else _Identity(forward, num_outputs)
                elif not attends:
                    forward = (_SkipInDecode if phase == "decode" else _SkipInPrefill)(forward, block, block_idx)
                _set(block, "forward", forward)
            yield model
        finally:
            blocks.__class__ = list_class
            for hook in hooks:
                hook.remove()


@contextmanager
def unmasked(blocks: nn.ModuleList) -> Iterator[None]:
    """Run all blocks, whatever contexts of `masked` are open."""
    with _restored([*((block, "forward") for block in blocks), (blocks[0], _CLAIM)]):
        _set(blocks[0], _CLAIM, _ABSENT)
        for block in blocks:
            _set(block, "forward", _outside_masks(block.__dict__.get("forward", _ABSENT)))
        yield


@contextmanager
def _restored(attributes: list[tuple[nn.Module, str]]) -> Iterator[None]:
    """Leave attributes of instances as they were found, such as a ``forward`` that accelerate put there."""
    found = [module.__dict__.get(name, _ABSENT) for module, name in attributes]
    try:
        yield
    finally:
        for (module, name), value in zip(attributes, found):
            _set(module, name, value)


def _set(module: nn.Module, name: str, value: object) -> None:
    """Set an attribute of the instance, past `nn.Module`, which would register a module; `_ABSENT` removes it."""
    if value is _ABSENT:
        module.__dict__.pop(name, None)
    else:
        module.__dict__[name] = value


def _outside_masks(forward: object) -> object:
    if forward is _identity:
        return _ABSENT
    return forward.replaced if isinstance(forward, _Identity | HalfForward) else forward


def _claim(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    claim, cache = block.__dict__.get(_CLAIM), find_cache(args, kwargs)
    if claim is not None and cache is not None:
        claim(cache)


def _offer_cache(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if is_compiling():  # asked first: what is looked at before is checked before every forward
        return None
    claim = decoder.__dict__[_FIRST_BLOCK].__dict__.get(_CLAIM)
    if claim is None:
        return None
    # with more than one positional argument, the cache may be among them; transformers takes its old name too
    is_given = len(args) > 1 or any(kwargs.get(name) is not None for name in (CACHE_NAME, "past_key_values"))
    cache = claim.new_cache(kwargs.get("use_cache") is True and not is_given)
    return None if cache is None else (args, {**kwargs, CACHE_NAME: cache})


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
