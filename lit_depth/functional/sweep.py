"""Answer one batch under many block masks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_depth.functional.masking import masked

IGNORE = -100


@torch.no_grad()
def answer_sequentially(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Sequence[Tensor],
    *,
    answer_ids: Tensor,
    max_new_tokens: int,
    eos_token_id: int,
    pad_token_id: int,
    blocks: str | None = None,
    on_mask: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Generate greedily and score the reference answer, one mask after another.

    Args:
        model: A Hugging Face decoder (text or vision-language) with ``generate``.
        inputs: Left-padded prompt: ``input_ids`` and ``attention_mask`` ``[batch, seq]`` and the model's image tensors.
        masks: Block masks, each bool ``[num_blocks]``.
        answer_ids: Tokens of the reference answer ``[batch, answer]``, padded on the right with -100.
        max_new_tokens: Longest answer to generate.
        eos_token_id: Token that ends an answer.
        pad_token_id: Token that fills a row after its end.
        blocks: Dotted path of the blocks where they cannot be found.
        on_mask: Called after each mask, for progress.

    Returns:
        Generated tokens, long ``[masks, batch, max_new_tokens]``, padded after the end token; and the mean
        log-probability of the reference answer, float32 ``[masks, batch]``.
    """
    prompt_length = inputs["input_ids"].shape[1]
    tokens = torch.full((len(masks), len(answer_ids), max_new_tokens), pad_token_id, dtype=torch.long)
    scores = []
    for index, mask in enumerate(masks):
        with masked(model, mask, blocks=blocks):
            scores.append(reference_logprob(model, inputs, answer_ids, pad_token_id=pad_token_id))
            generated = model.generate(  # type: ignore[operator]
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=eos_token_id,
                pad_token_id=pad_token_id,
            )[:, prompt_length:]
        tokens[index, :, : generated.shape[1]] = generated.cpu()
        on_mask()
    return tokens, torch.stack(scores)


@torch.no_grad()
def reference_logprob(
    model: nn.Module, inputs: Mapping[str, Tensor], answer_ids: Tensor, *, pad_token_id: int
) -> Tensor:
    """Mean log-probability of each row's reference answer given its prompt: one forward, no decoding.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        inputs: Left-padded prompt, see `answer_sequentially`.
        answer_ids: ``[batch, answer]``, padded on the right with -100; every row has at least one token.
        pad_token_id: Stands in for the padding of the answers.

    Returns:
        float32 ``[batch]``, on the CPU.
    """
    real = answer_ids != IGNORE
    filled = answer_ids.masked_fill(~real, pad_token_id)
    extended = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], filled], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], real.to(inputs["attention_mask"].dtype)], dim=1),
    }
    length = answer_ids.shape[1]
    kwargs: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        kwargs["logits_to_keep"] = length + 1
    logits = model(**extended, **kwargs).logits[:, -length - 1 : -1]
    # float32 before the softmax: bfloat16 has too few digits for sums of log-probabilities
    logprobs = logits.float().log_softmax(-1).gather(-1, filled.unsqueeze(-1)).squeeze(-1)
    return (logprobs.masked_fill(~real, 0.0).sum(1) / real.sum(1)).cpu()
