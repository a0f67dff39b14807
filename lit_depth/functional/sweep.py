"""Answer one batch under many block masks in one pass, or under one mask per row.

Equal to `masked` + plain greedy ``generate`` of each mask alone, token for token in float32 up to exact ties; several
times cheaper, because vision and shared leading blocks run once and all masks decode together.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from lit_depth.functional.blocks import find_blocks
from lit_depth.functional.engine import CallWidth, CannotDriveError, RowCache, RowDriver, TrieDriver, driven
from lit_depth.functional.masking import check_drivable, check_mask, masked
from lit_depth.functional.scoring import answer_logprob, keep_last, reference_logprob, with_answers, with_positions
from lit_depth.functional.trie import MaskTrie, chunk_masks

# needed with the prompt only; a later pass over the same batch reuses the embeddings that they went into
IMAGE_INPUTS = (
    "images",
    "image_masks",
    "image_input_idx",
    "pixel_values",
    "pixel_attention_mask",
    "image_sizes",
    "image_grid_thw",
)


class SweepOutput(NamedTuple):
    """Result of `sweep_forward` (M masks, B samples, K kept positions)."""

    logits: Tensor  # [M, B, K, vocabulary]
    hidden_states: Tensor  # [M, B, K, hidden], after the last block, before the final norm


@torch.no_grad()
def sweep_forward(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor | Sequence[Tensor],
    *,
    logits_to_keep: int = 0,
    blocks: str | None = None,
) -> SweepOutput:
    """One forward of the model for all masks.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        inputs: Model inputs, each with one row per sample.
        masks: Block masks, bool ``[masks, num_blocks]``.
        logits_to_keep: Positions from the end to compute logits for; 0 = all.
        blocks: Dotted path of the blocks where they cannot be found.

    Raises:
        ValueError: If a mask is malformed, or the model's blocks cannot be skipped or driven (see `masked`).
    """
    module_list = find_blocks(model, blocks)
    masks = _check_masks(masks, len(module_list))
    reason = check_drivable(model, module_list)
    if reason:
        raise ValueError(f"cannot sweep {type(model).__name__}: {reason}")
    driver = TrieDriver(MaskTrie(masks), _call_width(model, inputs), None, keep=logits_to_keep)
    states: list[Tensor] = []
    hook = module_list[-1].register_forward_hook(lambda _module, _args, output: states.append(output))
    try:
        with driven(module_list, driver.make_forward):
            logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return SweepOutput(logits.unflatten(0, (len(masks), -1)), states[0].unflatten(0, (len(masks), -1)))


def sweep_generate(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor | Sequence[Tensor],
    max_new_tokens: int,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    max_rows: int | None = None,
    blocks: str | None = None,
) -> Tensor:
    """Greedy answers of a batch under every mask.

    Args:
        model: A Hugging Face decoder (text or vision-language) with ``generate``.
        inputs: Left-padded prompt: ``input_ids`` and ``attention_mask`` ``[batch, seq]`` and the model's image tensors.
        masks: Block masks, bool ``[masks, num_blocks]``.
        max_new_tokens: Longest answer.
        eos_token_id: Token (or tokens) that end an answer; None = never.
        pad_token_id: Fills a row after its end.
        max_rows: Most (mask, sample) rows at once; None = as many as fit a share of the free memory.
        blocks: Dotted path of the blocks where they cannot be found.

    Returns:
        Long ``[masks, batch, max_new_tokens]``, on the CPU.

    Raises:
        ValueError: If a mask is malformed or the model's blocks cannot be skipped.
    """
    return answer_masks(
        model,
        inputs,
        masks,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        max_rows=max_rows,
        blocks=blocks,
    )[0]


@torch.no_grad()
def answer_masks(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor | Sequence[Tensor],
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None,
    pad_token_id: int,
    answer_ids: Tensor | None = None,
    max_rows: int | None = None,
    blocks: str | None = None,
    on_mask: Callable[[], Any] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """`sweep_generate`, and in the same pass the log-probability of a reference answer under every mask.

    A model that the engine cannot drive is answered one mask after another, with one warning. When CUDA memory runs
    out, fewer masks are taken at once, now and in later calls.

    Args:
        model: As for `sweep_generate`, like the arguments not named here.
        answer_ids: Tokens of the reference answer ``[batch, answer]``, padded on the right with -100; None = score
            nothing.
        on_mask: Called after each finished mask, for progress.

    Returns:
        Generated tokens, long ``[masks, batch, max_new_tokens]``, and the mean log-probability of the reference answer,
        float32 ``[masks, batch]`` (``[masks, 0]`` without one); both on the CPU.
    """
    module_list = find_blocks(model, blocks)
    masks = _check_masks(masks, len(module_list))
    eos = _eos_tensor(eos_token_id)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "eos": eos,
        "pad": pad_token_id,
        "answer_ids": answer_ids,
    }
    reason = check_drivable(model, module_list)
    if reason is None:
        batch = len(inputs["input_ids"])
        limit = max_rows or _affordable_rows(model, inputs, module_list, max_new_tokens, answer_ids)
        try:
            return _in_chunks(model, inputs, masks, max(1, limit // batch), module_list, options, on_mask)
        except CannotDriveError as error:
            reason = str(error)
    if model not in _WARNED:
        _WARNED.add(model)
        warnings.warn(f"{type(model).__name__} is answered one mask after another: {reason}", stacklevel=2)
    return _one_by_one(model, inputs, masks, blocks, options, on_mask)


@torch.no_grad()
def generate(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor,
    max_new_tokens: int,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    blocks: str | None = None,
) -> Tensor:
    """Greedy answers of a batch in which every request has its own depth.

    Args:
        model: As for `sweep_generate`, like the arguments not named here.
        masks: One block mask per request, bool ``[batch, num_blocks]``.

    Returns:
        Long ``[batch, max_new_tokens]``, on the CPU.

    Raises:
        ValueError: If the masks are malformed, or the model's blocks cannot be skipped or driven.
    """
    module_list = find_blocks(model, blocks)
    masks = _check_masks(masks, len(module_list))
    prompt = inputs["input_ids"]
    if len(masks) != len(prompt):
        raise ValueError(f"expected one mask per request, given {len(masks)} masks for {len(prompt)} requests")
    reason = check_drivable(model, module_list)
    if reason:
        raise ValueError(f"cannot drive {type(model).__name__}: {reason}")
    driver = RowDriver(masks.to(prompt.device))
    cache = RowCache(len(module_list), prompt.shape[1] + max_new_tokens)
    with driven(module_list, driver.make_forward):
        logits = model(
            **with_positions(model, inputs), past_key_values=cache, use_cache=True, **keep_last(model, 1)
        ).logits
    cache.length = prompt.shape[1]
    first = logits[:, -1].argmax(-1)
    return _decode(
        model,
        module_list,
        driver,
        cache,
        first,
        inputs["attention_mask"],
        max_new_tokens,
        _eos_tensor(eos_token_id),
        pad_token_id,
    )


# one warning per model, and what was learnt about it, for as long as it lives
_WARNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_WIDTHS: weakref.WeakKeyDictionary[nn.Module, dict[Any, CallWidth]] = weakref.WeakKeyDictionary()
_MASKS_THAT_FIT: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def _in_chunks(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor,
    max_masks: int,
    blocks: nn.ModuleList,
    options: dict[str, Any],
    on_mask: Callable[[], Any],
) -> tuple[Tensor, Tensor]:
    batch, answer_ids = len(inputs["input_ids"]), options["answer_ids"]
    tokens = torch.full((len(masks), batch, options["max_new_tokens"]), options["pad"])
    logprobs = torch.zeros(len(masks), 0 if answer_ids is None else batch)
    embeddings: Tensor | None = None
    max_masks = min(max_masks, _MASKS_THAT_FIT.get(model, max_masks))
    waiting = list(chunk_masks(masks, max_masks))
    while waiting:
        chunk = waiting.pop(0)
        try:
            chunk_tokens, chunk_logprobs, embeddings = _answer_chunk(
                model, inputs, masks[chunk], blocks, embeddings, options
            )
        except torch.OutOfMemoryError:
            if len(chunk) == 1:
                raise
            max_masks = max(1, len(chunk) // 2)
            _MASKS_THAT_FIT[model] = max_masks
            left = [chunk, *waiting]
            waiting = [part[start : start + max_masks] for part in left for start in range(0, len(part), max_masks)]
            continue
        tokens[chunk] = chunk_tokens
        logprobs[chunk] = chunk_logprobs
        for _ in chunk:
            on_mask()
    return tokens, logprobs


def _answer_chunk(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor,
    blocks: nn.ModuleList,
    embeddings: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor | None]:
    prompt, answer_ids = inputs["input_ids"], options["answer_ids"]
    batch, length = prompt.shape
    new_tokens = options["max_new_tokens"]
    answer_length = 0 if answer_ids is None else answer_ids.shape[1]
    trie = MaskTrie(masks)
    cache = RowCache(len(blocks), length + max(new_tokens, answer_length))
    extended = inputs if answer_ids is None else with_answers(inputs, answer_ids, options["pad"])
    if embeddings is not None:
        extended = {name: value for name, value in extended.items() if name not in IMAGE_INPUTS}
    driver = TrieDriver(trie, _call_width(model, inputs), cache, keep=answer_length + 1, embeddings=embeddings)
    with driven(blocks, driver.make_forward):
        logits = model(**with_positions(model, extended), past_key_values=cache, use_cache=True).logits
    cache.length = length
    for block_idx, (layer, level) in enumerate(zip(cache.layers, trie.levels)):
        if level.run and not layer.parts:  # type: ignore[union-attr]
            raise CannotDriveError(f"block {block_idx} keeps its state elsewhere than in keys and values")
        places = trie.places[:, block_idx]
        layer.assign(places[places >= 0].tolist(), batch)  # type: ignore[union-attr]
    scored = torch.zeros(len(masks), 0)
    if answer_ids is not None:
        scored = answer_logprob(logits, answer_ids.repeat(len(masks), 1)).unflatten(0, (len(masks), batch))
    rows = RowDriver(masks.to(prompt.device).repeat_interleave(batch, dim=0))
    attention = inputs["attention_mask"].repeat(len(masks), 1)
    first = logits[:, 0].argmax(-1)
    del logits
    tokens = _decode(model, blocks, rows, cache, first, attention, new_tokens, options["eos"], options["pad"])
    return tokens.unflatten(0, (len(masks), batch)), scored, driver.embeddings


def _decode(
    model: nn.Module,
    blocks: nn.ModuleList,
    driver: RowDriver,
    cache: RowCache,
    token: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    eos: Tensor,
    pad: int,
) -> Tensor:
    """Decode greedily from each row's first token; rows that ended leave the batch. Long ``[rows, max_new_tokens]``."""
    device = token.device
    tokens = torch.full((len(token), max_new_tokens), pad)
    present = torch.arange(len(token))
    alive = torch.ones(len(token), dtype=torch.bool)
    with driven(blocks, driver.make_forward):
        for step in range(max_new_tokens):
            tokens[present[alive], step] = token.cpu()[alive]
            alive &= ~torch.isin(token.cpu(), eos)
            if step == max_new_tokens - 1 or not alive.any():
                break
            # a row that ended is carried along until dropping pays for the copy of the others' keys and values
            if alive.float().mean() <= 0.75:
                kept = alive.nonzero().flatten().to(device)
                driver.keep_rows(kept, cache)
                token, attention_mask = token[kept], attention_mask[kept]
                present, alive = present[alive], alive[alive]
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(token), 1)], dim=1)
            inputs = with_positions(model, {"input_ids": token[:, None], "attention_mask": attention_mask})
            logits = model(**inputs, past_key_values=cache, use_cache=True).logits
            cache.length += 1
            token = logits[:, -1].argmax(-1)
    return tokens


def _one_by_one(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor,
    blocks: str | None,
    options: dict[str, Any],
    on_mask: Callable[[], Any],
) -> tuple[Tensor, Tensor]:
    batch, length = inputs["input_ids"].shape
    answer_ids, eos = options["answer_ids"], options["eos"].tolist()
    tokens = torch.full((len(masks), batch, options["max_new_tokens"]), options["pad"])
    logprobs = torch.zeros(len(masks), 0 if answer_ids is None else batch)
    for index, mask in enumerate(masks):
        with masked(model, mask, blocks=blocks):
            if answer_ids is not None:
                logprobs[index] = reference_logprob(model, inputs, answer_ids, pad_token_id=options["pad"])
            generated = model.generate(  # type: ignore[operator]
                **inputs,
                generation_config=GenerationConfig(
                    max_new_tokens=options["max_new_tokens"],
                    do_sample=False,
                    num_beams=1,
                    eos_token_id=eos or [-1],  # None would be filled in from the model's own configuration
                    pad_token_id=options["pad"],
                ),
            )[:, length:]
        tokens[index, :, : generated.shape[1]] = generated.cpu()
        on_mask()
    return tokens, logprobs


def _check_masks(masks: Tensor | Sequence[Tensor], num_blocks: int) -> Tensor:
    rows = list(masks)
    if not rows:
        raise ValueError("expected at least one mask, given none")
    return torch.stack([check_mask(mask, num_blocks) for mask in rows])


def _eos_tensor(eos_token_id: int | Sequence[int] | None) -> Tensor:
    if eos_token_id is None:
        return torch.zeros(0, dtype=torch.long)
    return torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id))


def _call_width(model: nn.Module, inputs: Mapping[str, Tensor]) -> CallWidth:
    """What has been learnt about wide calls for batches of about this size."""
    ids = inputs["input_ids"]
    widths = _WIDTHS.setdefault(model, {})
    return widths.setdefault(ids.numel().bit_length(), CallWidth(measure=ids.device.type == "cpu"))


def _affordable_rows(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    blocks: nn.ModuleList,
    max_new_tokens: int,
    answer_ids: Tensor | None,
) -> int:
    """Rows whose keys, values and hidden states fill at most a third of the free memory."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator,union-attr]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    answer_length = 0 if answer_ids is None else answer_ids.shape[1]
    length = inputs["input_ids"].shape[1] + max(max_new_tokens, answer_length)
    parameter = next(model.parameters())
    # twice: prompt keys and values exist for a moment both as groups and as rows
    per_row = 2 * length * len(blocks) * 2 * heads * head_dim * parameter.element_size()
    per_row += (answer_length + 1) * config.vocab_size * 4 + 4 * length * config.hidden_size * parameter.element_size()
    if parameter.device.type == "cuda":
        device = parameter.device
        free = torch.cuda.mem_get_info(device)[0]
        # what torch holds for reuse is free for us
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        free = 4 * 2**30
    return max(1, int(free / 3 / per_row))
