"""Skip transformer blocks without touching weights, module tree or state dict.

How a block is skipped: its *instance* ``forward`` is replaced by the identity. Module hooks keep firing, so recorded
``hidden_states`` keep num_blocks + 1 entries, while attentions and router logits hold the active blocks only.

How the KV cache stays right: one forward pre-hook on block 0 sees the cache before anything is written to it, whoever
made it (``generate``, the caller, or the decoder itself), and puts a placeholder that stores nothing at the layer of
every skipped block. transformers reads the sequence length and the attention-mask sizes from the first layer that is
not a placeholder, so skipping block 0 needs no further care. These cache layers are in
`lit_depth.functional.masking.kv_cache`.

Half a block (``granularity="sublayer"``): its instance ``forward`` is replaced by that of the other half, in
`lit_depth.functional.masking.sublayers`; whether its attention runs decides about the cache layer.

Image tokens alone (``tokens="visual"``): `lit_depth.functional.masking.visual`; every block owns its cache layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from lit_depth.functional.arguments import checked
from lit_depth.functional.masking.blocks import find_blocks, find_decoder
from lit_depth.functional.masking.forwards import Identity, SkipInDecode, SkipInPrefill, num_outputs, shared_identity
from lit_depth.functional.masking.image_tokens import ImageTokens, check_image_tokens
from lit_depth.functional.masking.kv_cache import Claim, find_cache
from lit_depth.functional.masking.phase_cache import DecodeClaim, PrefillClaim
from lit_depth.functional.masking.sublayers import HalfForward, check_attends, check_halves
from lit_depth.functional.masking.support import check_skippable
from lit_depth.functional.masking.told_length import count_tokens
from lit_depth.functional.masking.visual import VisualForward
from lit_depth.functional.masks import Granularity, Tokens, check_mask

Phase = Literal["both", "prefill", "decode"]

# no such attribute on the instance; in copies of a masked model, too
_ABSENT = None
# attribute of the first block: the claim of the innermost context, so that the hooks of nested contexts agree; copies
# of a masked model, also those of `nn.DataParallel`, have it too
_CLAIM = "_lit_depth_claim"


@checked
def masked(
    model: nn.Module,
    mask: Tensor | Sequence[bool],
    *,
    blocks: str | None = None,
    granularity: Granularity = "block",
    phase: Phase = "both",
    decode_without_prompt: bool = False,
    tokens: Tokens = "all",
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

    Sublayers (``granularity="sublayer"``): unit 2i of the mask is the attention of block i, unit 2i + 1 its MLP. A
    skipped half adds nothing to the residual stream and does not run, nor does its norm: hooks on their modules do not
    fire. A block without its attention owns no KV cache, one without its MLP keeps it; without both it is skipped.

    Image tokens alone (``tokens="visual"``): in a skipped block, hidden states of image tokens pass by, text tokens
    run, and attend to the keys and values that the block makes of the image tokens' states: the output is
    ``where(is_image, h, block(h))``. With ``"visual_drop"`` text tokens do not attend to image tokens in a skipped
    block either. All blocks own a KV cache, and decoded tokens, which are text, run all of them. A prompt without an
    image is read as by the whole model. What image tokens are, says
    :func:`~lit_depth.functional.masking.image_tokens.image_token_mask`; what is computed, sources, and where the
    definitions differ: `lit_depth.functional.masking.visual`.

    Args:
        model: any module that holds a Hugging Face decoder, see :func:`~lit_depth.functional.find_blocks`.
        mask: bool ``[num_blocks]``, True = the block runs; for sublayers ``[2 * num_blocks]``.
        blocks: dotted path of the block list where it cannot be found unambiguously.
        granularity: what one unit of the mask switches: a ``"block"``, or with ``"sublayer"`` its attention or MLP.
        phase: the forwards that the mask applies to, see above.
        decode_without_prompt: with ``phase="prefill"``: run the skipped blocks in decode steps.
        tokens: which tokens skip the blocks, see above.

    Returns:
        A context manager that yields ``model``. Arguments are checked before it is entered.

    Raises:
        ValueError: a mask of the wrong length, dtype or shape or without an active block; no decoder blocks; a model
            whose blocks depend on one another by index (shared KV), or keep states elsewhere than in the layers of a
            cache (RWKV and its like) or in two streams; encoder-decoders;
            ``decode_without_prompt`` in another phase. In a forward with ``decode_without_prompt``: a block with a
            recurrent state, attention biases per key (ALiBi), or masks other than tensors (flex attention). Sublayers:
            a mask without any attention; blocks of an unknown form (see `lit_depth.functional.masking.sublayers`), such
            as those whose attention and MLP run side by side. When the context is entered: half of a block that has a
            ``forward`` of its own on the instance, as accelerate gives to models on several devices.
            Image tokens: a model that does not tell them; a forward without ``input_ids``; dropping them from blocks
            whose attention takes no mask per query, such as flash attention.
        NotImplementedError: sublayers in one phase only; image tokens alone with sublayers or in one phase; per-row
            masks ``[batch, num_blocks]``.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes))
    >>> def without_keys(cache):
    ...     return [layer.keys is None for layer in cache.layers]
    >>> with masked(model, [False, True, True]):
    ...     cache = model(torch.tensor([[1, 2]]), use_cache=True).cache
    >>> without_keys(cache), cache.get_seq_length()
    ([True, False, False], 2)
    >>> with masked(model, [True, False, False, True, True, True], granularity="sublayer"):
    ...     cache = model(torch.tensor([[1, 2]]), use_cache=True).cache
    >>> without_keys(cache)
    [False, True, False]
    >>> with masked(model, [False, True, True], phase="decode"):
    ...     cache = model(torch.tensor([[1, 2]]), use_cache=True).cache
    ...     print(without_keys(cache), cache.get_seq_length())
    ...     _ = model(torch.tensor([[3]]), cache=cache)
    [False, False, False] 2
    >>> without_keys(cache), cache.get_seq_length()
    ([True, False, False], 3)
    """
    if decode_without_prompt and phase != "prefill":
        raise ValueError(f"expected decode_without_prompt with phase='prefill' only, got phase={phase!r}")
    if granularity == "sublayer" and (phase == "decode" or decode_without_prompt):
        raise NotImplementedError(
            "expected granularity='block' where prefill and decode differ, got 'sublayer' with "
            f"phase={phase!r}, decode_without_prompt={decode_without_prompt}"
        )
    if tokens != "all" and (granularity, phase) != ("block", "both"):
        raise NotImplementedError(
            f"expected granularity='block' and phase='both' for image tokens alone, got granularity={granularity!r}, "
            f"phase={phase!r}"
        )
    module_list = find_blocks(model, blocks)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == len(module_list):
        raise NotImplementedError("per-row masks [batch, num_blocks] are not supported yet; pass one mask [num_blocks]")
    units = check_mask(mask, len(module_list), granularity)
    active = units.tolist()
    check_skippable(find_decoder(model, module_list), module_list, model)
    if tokens != "all":
        check_image_tokens(model)
        return _masked_for_images(model, module_list, active, drops=tokens == "visual_drop")
    halves = list(zip(active, active))
    if granularity == "sublayer":
        check_halves(module_list)
        check_attends(units)
        halves = list(zip(active[::2], active[1::2]))
    # without the prompt's keys and values there is nothing to decode on, so the block is skipped in both
    is_same = phase == "both" or (phase == "prefill" and not decode_without_prompt)
    return _masked(model, module_list, halves, "both" if is_same or all(active) else phase)


@contextmanager
def _masked(
    model: nn.Module, blocks: nn.ModuleList, halves: list[tuple[bool, bool]], phase: Phase
) -> Iterator[nn.Module]:
    """Skip blocks and halves of blocks; ``halves`` holds one pair (attention runs, MLP runs) per block."""
    # an outer mask is replaced, not combined with
    own = [_outside_masks(block.__dict__.get("forward", _ABSENT)) for block in blocks]
    for block_idx, (forward, (attends, has_mlp)) in enumerate(zip(own, halves)):
        if attends != has_mlp and forward is not _ABSENT:
            raise ValueError(f"cannot skip half of block {block_idx}: it has a forward of its own on the instance")
    config = getattr(find_decoder(model, blocks), "config", None)
    kind = {"both": Claim, "prefill": PrefillClaim, "decode": DecodeClaim}[phase]
    claim = kind([attends for attends, _ in halves], config)  # an MLP has no cache
    with _restored([*((block, "forward") for block in blocks), (blocks[0], _CLAIM)]):
        _set(blocks[0], _CLAIM, claim)
        for block_idx, (block, (attends, has_mlp), forward) in enumerate(zip(blocks, halves, own)):
            if attends != has_mlp:
                forward = HalfForward(forward, block, keep_attention=attends)
            elif not attends and phase == "both":
                returned = num_outputs(type(block).forward)
                forward = shared_identity(returned) if forward is _ABSENT else Identity(returned, forward)
            elif not attends:
                forward = (SkipInDecode if phase == "decode" else SkipInPrefill)(forward, block, block_idx)
            _set(block, "forward", forward)
        hook = blocks[0].register_forward_pre_hook(_claim, with_kwargs=True)
        try:
            yield model
        finally:
            hook.remove()
            claim.give_back_depth()


@contextmanager
def _masked_for_images(model: nn.Module, blocks: nn.ModuleList, active: list[bool], drops: bool) -> Iterator[nn.Module]:
    """Skip blocks for image tokens alone."""
    own = [_outside_masks(block.__dict__.get("forward", _ABSENT)) for block in blocks]
    image_tokens = ImageTokens(model)
    claim = Claim([True] * len(blocks), getattr(find_decoder(model, blocks), "config", None))
    with ExitStack() as stack:
        stack.enter_context(_restored([*((block, "forward") for block in blocks), (blocks[0], _CLAIM)]))
        stack.callback(claim.give_back_depth)
        _set(blocks[0], _CLAIM, claim)
        for block_idx, (block, is_active, forward) in enumerate(zip(blocks, active, own)):
            if not is_active:
                forward = VisualForward(forward, block, block_idx, image_tokens, drops)
            _set(block, "forward", forward)
        hook = blocks[0].register_forward_pre_hook(_claim, with_kwargs=True)
        stack.callback(hook.remove)
        if not all(active):
            stack.enter_context(image_tokens.listening())
        yield model


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
    return forward.replaced if isinstance(forward, Identity | HalfForward | VisualForward) else forward


def _claim(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    claim, cache = block.__dict__.get(_CLAIM), find_cache(args, kwargs)
    if claim is not None and cache is not None:
        claim(cache)
        count_tokens(cache, args, kwargs)
