"""Log-probability of a reference answer, and the model inputs that it and generation need."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_depth.functional.checks import check_token_ids, checked, prompt_inputs
from lit_depth.functional.compatibility import CACHE_NAME

IGNORE = -100


@checked
@torch.no_grad()
def reference_logprob(
    model: nn.Module, inputs: Mapping[str, Tensor], answer_ids: Tensor, *, pad_token_id: int, in_phases: bool = False
) -> Tensor:
    """Mean log-probability of each row's reference answer given its prompt: one forward, no decoding.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        inputs: Left-padded prompt, see `sweep_generate`.
        answer_ids: ``[batch, answer]``, padded on the right with -100; every row has at least one token.
        pad_token_id: Stands in for the padding of the answers.
        in_phases: Read the answer on the prompt's KV cache, in a forward of its own: for masks that apply to prefill
            or decode alone.

    Returns:
        float32 ``[batch]``, on the CPU.
    """
    inputs = prompt_inputs(model, inputs)
    check_answers(model, answer_ids, len(inputs["input_ids"]))
    check_token_ids(model, pad_token_id=pad_token_id)
    if in_phases:
        return _logprob_on_cache(model, inputs, answer_ids, pad_token_id)
    extended = with_positions(model, with_answers(inputs, answer_ids, pad_token_id))
    logits = model(**extended, use_cache=False, **keep_last(model, answer_ids.shape[1] + 1)).logits
    return answer_logprob(logits[:, -answer_ids.shape[1] - 1 :], answer_ids)


def check_answers(model: nn.Module, answer_ids: Tensor, batch: int) -> None:
    """Check the tokens of reference answers, one row per prompt.

    Raises:
        ValueError: A shape other than ``[batch, answer]``, a row without a token or with one behind its padding, or an
            id that the model does not know.
    """
    shape, real = list(answer_ids.shape), answer_ids != IGNORE
    if len(shape) != 2 or shape[0] != batch or answer_ids.is_floating_point():
        raise ValueError(f"expected answer_ids, integers [{batch}, answer], given {answer_ids.dtype} {shape}")
    if not shape[1] or not real[:, 0].all() or (real[:, 1:] & ~real[:, :-1]).any():
        raise ValueError("expected answer_ids with at least one token in every row, padded on the right with -100")
    check_token_ids(model, answer_ids=answer_ids[real])


def _logprob_on_cache(model: nn.Module, inputs: Mapping[str, Tensor], answer_ids: Tensor, pad: int) -> Tensor:
    prompt = model(**with_positions(model, inputs), use_cache=True, **keep_last(model, 1))
    extended = with_answers(inputs, answer_ids, pad)
    answer = {
        "input_ids": extended["input_ids"][:, -answer_ids.shape[1] :],
        "attention_mask": extended["attention_mask"],
    }
    logits = model(**with_positions(model, answer), **{CACHE_NAME: prompt[CACHE_NAME]}, use_cache=True).logits
    return answer_logprob(torch.cat([prompt.logits[:, -1:], logits], dim=1), answer_ids)


def with_answers(inputs: Mapping[str, Tensor], answer_ids: Tensor, pad: int) -> dict[str, Tensor]:
    """The prompt with the reference answer behind it."""
    real = answer_ids != IGNORE
    attention = inputs["attention_mask"]
    # positions follow from the longer attention mask; types of tokens are those of text
    others = {name: value for name, value in inputs.items() if name != "position_ids"}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in others:
            others[name] = torch.cat([others[name], torch.zeros_like(answer_ids)], dim=1)
    return {
        **others,
        "input_ids": torch.cat([inputs["input_ids"], answer_ids.masked_fill(~real, pad)], dim=1),
        "attention_mask": torch.cat([attention, real.to(attention.dtype)], dim=1),
    }


def answer_logprob(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """Mean log-probability from logits ``[rows, answer + 1, vocabulary]``, the first at the prompt's last token."""
    real = answer_ids != IGNORE
    targets = answer_ids.masked_fill(~real, 0).unsqueeze(-1)
    # float32 before the softmax: bfloat16 has too few digits for sums of log-probabilities
    logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, targets).squeeze(-1)
    return (logprobs.masked_fill(~real, 0.0).sum(1) / real.sum(1)).cpu()


def with_positions(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the positions that ``generate`` would derive from the attention mask: padding does not count."""
    if "position_ids" in inputs or "position_ids" not in inspect.signature(type(model).forward).parameters:
        return dict(inputs)
    # multi-axis rotary positions are the model's own business
    if any(hasattr(module, "get_rope_index") for module in (model, getattr(model, "model", None))):
        return dict(inputs)
    positions = (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
    return {**inputs, "position_ids": positions[:, -inputs["input_ids"].shape[1] :]}


def keep_last(model: nn.Module, positions: int) -> dict[str, int]:
    """Ask for the last logits only, where the model knows how."""
    return (
        {"logits_to_keep": positions} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}
    )
