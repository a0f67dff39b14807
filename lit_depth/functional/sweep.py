"""Answer one batch under many block masks in one pass, or under one mask per row.

Equal to `masked` + plain greedy ``generate`` of each mask alone, token for token in float32 up to exact ties; several
times cheaper, because vision and shared leading blocks run once and all masks decode together.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.answering import answer_in_chunks, answer_one_by_one, call_width, decode
from lit_depth.functional.blocks import find_blocks
from lit_depth.functional.checks import (
    MAX_TOKENS,
    check_least,
    check_range,
    check_token_ids,
    checked,
    fits,
    prompt_inputs,
)
from lit_depth.functional.compatibility import CACHE_NAME
from lit_depth.functional.engine import CannotDriveError, RowCache, RowDriver, TrieDriver, driven
from lit_depth.functional.masking import Granularity, Phase, check_drivable, stack_masks
from lit_depth.functional.scoring import check_answers, keep_last, with_positions
from lit_depth.functional.trie import MaskTrie


class SweepOutput(NamedTuple):
    """Result of `sweep_forward` (M masks, B samples, K kept positions)."""

    logits: Tensor  # [M, B, K, vocabulary]
    hidden_states: Tensor  # [M, B, K, hidden], after the last block, before the final norm


@checked
@torch.no_grad()
def sweep_forward(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor | Sequence[Tensor | Sequence[bool]],
    *,
    logits_to_keep: int = 0,
    blocks: str | nn.ModuleList | None = None,
) -> SweepOutput:
    """One forward of the model for all masks.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        inputs: Model inputs, each with one row per sample.
        masks: Block masks, bool ``[masks, num_blocks]``.
        logits_to_keep: Positions from the end to compute logits for; 0 = all.
        blocks: The blocks, or their dotted path, where they cannot be found.

    Raises:
        ValueError: If a mask is malformed, or the model's blocks cannot be skipped or driven (see `masked`).
    """
    module_list = blocks if isinstance(blocks, nn.ModuleList) else find_blocks(model, blocks)
    masks = stack_masks(masks, len(module_list))
    inputs = prompt_inputs(model, inputs)
    check_least(0, logits_to_keep=logits_to_keep)
    reason = check_drivable(model, module_list)
    if reason:
        raise ValueError(f"cannot sweep {type(model).__name__}: {reason}")
    driver = TrieDriver(MaskTrie(masks), call_width(model, inputs), None, keep=logits_to_keep)
    states: list[Tensor] = []
    hook = module_list[-1].register_forward_hook(lambda _module, _args, output: states.append(output))
    try:
        with driven(module_list, driver.make_forward):
            logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return SweepOutput(logits.unflatten(0, (len(masks), -1)), states[0].unflatten(0, (len(masks), -1)))


@checked
def sweep_generate(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor | Sequence[Tensor | Sequence[bool]],
    max_new_tokens: int,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    max_rows: int | None = None,
    blocks: str | None = None,
    granularity: Granularity = "block",
) -> Tensor:
    """Greedy answers of a batch under every mask.

    Args:
        model: A Hugging Face decoder (text or vision-language) with ``generate``.
        inputs: Left-padded prompt: ``input_ids`` and ``attention_mask`` ``[batch, seq]`` and the model's image tensors.
        masks: Block masks, bool ``[masks, num_blocks]``; for sublayers ``[masks, 2 * num_blocks]``.
        max_new_tokens: Longest answer.
        eos_token_id: Token (or tokens) that end an answer; None = never.
        pad_token_id: Fills a row after its end.
        max_rows: Most (mask, sample) rows at once; None = see `lit_depth.functional.answering.affordable_bytes`.
        blocks: Dotted path of the blocks where they cannot be found.
        granularity: What one entry of a mask switches, see `masked`. Masks of sublayers are answered one after another.

    Returns:
        Long ``[masks, batch, max_new_tokens]``, on the CPU.

    Raises:
        ValueError: If a mask is malformed or the model's blocks cannot be skipped.
    """
    check_range(1, MAX_TOKENS, max_new_tokens=max_new_tokens)
    return answer_masks(
        model,
        inputs,
        masks,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        max_rows=max_rows,
        blocks=blocks,
        granularity=granularity,
    )[0]


@checked
@torch.no_grad()
def answer_masks(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Tensor | Sequence[Tensor | Sequence[bool]],
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None,
    pad_token_id: int,
    answer_ids: Tensor | None = None,
    max_rows: int | None = None,
    blocks: str | None = None,
    granularity: Granularity = "block",
    phase: Phase = "both",
    decode_without_prompt: bool = False,
    on_mask: Callable[[], Any] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """`sweep_generate`, and in the same pass the log-probability of a reference answer under every mask.

    A model that the engine cannot drive is answered one mask after another, with one warning. When CUDA memory runs
    out, fewer masks are taken at once, now and in later calls.

    Args:
        model: As for `sweep_generate`, like the arguments not named here.
        answer_ids: Tokens of the reference answer ``[batch, answer]``, padded on the right with -100; None = score
            nothing.
        max_new_tokens: Longest answer; 0 = only score, which decodes nothing and keeps no keys and values.
        phase: Forwards that the masks apply to, see `masked`, like ``decode_without_prompt``. The log-probability is
            then that of an answer decoded on the prompt's cache. Where prefill and decode differ, one mask is answered
            after another.
        on_mask: Called after each finished mask, for progress.

    Returns:
        Generated tokens, long ``[masks, batch, max_new_tokens]``, and the mean log-probability of the reference answer,
        float32 ``[masks, batch]`` (``[masks, 0]`` without one); both on the CPU.
    """
    module_list = find_blocks(model, blocks)
    masks = stack_masks(masks, len(module_list), granularity)
    inputs = prompt_inputs(model, inputs)
    eos = _eos_tensor(model, eos_token_id)
    check_range(0, MAX_TOKENS, max_new_tokens=max_new_tokens)
    check_least(1, max_rows=max_rows)
    check_token_ids(model, pad_token_id=pad_token_id)
    if answer_ids is not None:
        check_answers(model, answer_ids, len(inputs["input_ids"]))
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "eos": eos,
        "pad": pad_token_id,
        "answer_ids": answer_ids,
    }
    phases: dict[str, Any] = {"phase": phase, "decode_without_prompt": decode_without_prompt}
    if phase == "decode" or decode_without_prompt:
        return answer_one_by_one(model, inputs, masks, blocks, options, on_mask, granularity, **phases)
    if granularity == "sublayer":
        return answer_one_by_one(model, inputs, masks, blocks, options, on_mask, granularity)
    reason = check_drivable(model, module_list)
    if reason is None:
        try:
            return answer_in_chunks(model, inputs, masks, max_rows, module_list, options, on_mask)
        except CannotDriveError as error:
            reason = str(error)
    if model not in _WARNED:
        _WARNED.add(model)
        warnings.warn(f"{type(model).__name__} is answered one mask after another: {reason}", stacklevel=2)
    return answer_one_by_one(model, inputs, masks, blocks, options, on_mask)


@checked
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
    masks = stack_masks(masks, len(module_list))
    inputs = prompt_inputs(model, inputs)
    check_range(1, MAX_TOKENS, max_new_tokens=max_new_tokens)
    check_token_ids(model, pad_token_id=pad_token_id)
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
            **with_positions(model, inputs), **{CACHE_NAME: cache}, use_cache=True, **keep_last(model, 1)
        ).logits
    cache.extent.length = prompt.shape[1]
    first = logits[:, -1].argmax(-1)
    del logits
    return decode(
        model,
        module_list,
        driver,
        cache,
        first,
        inputs["attention_mask"],
        max_new_tokens,
        _eos_tensor(model, eos_token_id),
        pad_token_id,
    )


# one warning per model, for as long as it lives
_WARNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _eos_tensor(model: nn.Module, eos_token_id: int | Sequence[int] | None) -> Tensor:
    several: Any = [] if eos_token_id is None else [eos_token_id] if fits(eos_token_id, int) else eos_token_id
    ids = [int(each) for each in several]
    for each in ids:
        check_token_ids(model, eos_token_id=each)
    return torch.tensor(ids, dtype=torch.long)
