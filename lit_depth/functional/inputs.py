"""Log-probability of a reference answer, as decoding would give it, and the inputs of a forward of one's own."""

import inspect
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_depth.functional.arguments import check_goes_on, check_token_ids, checked, prompt_inputs
from lit_depth.functional.engine.decoding_configuration import (
    PreparedPrompt,
    check_generates,
    generating_model,
    greedy_options,
    inside_generate,
)
from lit_depth.functional.engine.proof import LONGEST_WAY, probe_of, same_beyond, turning_length

IGNORE = -100
TEXT_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")

# how an answer is read: with its prompt in one forward; at once on the prompt's KV cache; token by token on that cache
Way = Literal["whole", "chunk", "steps"]

# of each model, for as long as it lives: the way that was proven for inputs of these names, and for how many tokens
_PROVEN: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[int, Way]]] = weakref.WeakKeyDictionary()


@checked
@torch.no_grad()
def reference_logprob(
    model: nn.Module, inputs: Mapping[str, Tensor], answer_ids: Tensor, *, pad_token_id: int, in_phases: bool = False
) -> Tensor:
    """Mean log-probability of each row's reference answer given its prompt, as decoding would give it.

    Args:
        model: A Hugging Face decoder (text or vision-language) with ``generate``.
        inputs: Left-padded prompt, see `sweep_generate`.
        answer_ids: ``[batch, answer]``, padded on the right with -100; every row has at least one token.
        pad_token_id: Stands in for the padding of the answers.
        in_phases: Read the answer on the prompt's KV cache in any case: for masks that apply to prefill or decode
            alone.

    Returns:
        float32 ``[batch]``, on the CPU.

    Raises:
        ValueError: If the model has no ``generate``, or a prompt is not padded on the left alone.
    """
    inputs = prompt_inputs(model, inputs)
    check_goes_on(inputs)
    check_answers(model, answer_ids, len(inputs["input_ids"]))
    check_token_ids(model, pad_token_id=pad_token_id)
    check_generates(model)
    return answer_logprob(proven_logits(model, inputs, answer_ids, pad_token_id, in_phases), answer_ids)


def proven_logits(
    model: nn.Module, inputs: Mapping[str, Tensor], answer_ids: Tensor, pad: int, in_phases: bool
) -> Tensor:
    """`answer_logits` read in the cheapest way that gives what decoding gives."""
    way = scoring_way(model, inputs, answer_ids, pad, in_phases)
    return answer_logits(model, inputs, answer_ids, pad, way)


def scoring_way(
    model: nn.Module, inputs: Mapping[str, Any], answer_ids: Tensor, pad: int, in_phases: bool = False
) -> Way:
    """The cheapest way to read answers that gives what decoding gives, which reads them token by token.

    It is measured on the first answers to prompts of a kind, on some tokens of each: some families see what follows
    while they read a prompt, or place and mark an answer in ways of their own.
    """
    if inputs["input_ids"].shape[1] + answer_ids.shape[1] > turning_length(model):
        return "steps"
    probe = probe_of(model, inputs, longest_answer(answer_ids))
    if probe.inside > LONGEST_WAY:
        return "steps"
    known, key = _PROVEN.setdefault(model, {}), (probe.kind, in_phases)
    proven, way = known.get(key, (0, "steps"))
    if proven < probe.beyond:
        ways: tuple[Way, ...] = ("chunk",) if in_phases else ("whole", "chunk")
        probed = answer_ids[:, : probe.length]
        expected = answer_logits(model, inputs, probed, pad, "steps")
        is_like_decoding = partial(_is_like_decoding, model, inputs, probed, pad, expected, probe.inside)
        way = next((way for way in ways if is_like_decoding(way)), "steps")
        known[key] = probe.beyond, way
    return way


def longest_answer(answer_ids: Tensor) -> int:
    """Tokens of the longest answer."""
    return int((answer_ids != IGNORE).sum(1).max())


def check_answers(model: nn.Module, answer_ids: Tensor, batch: int) -> None:
    """Check the tokens of reference answers, one row per prompt.

    Raises:
        ValueError: A shape other than ``[batch, answer]``, a row without a token or with one behind its padding, or an
            id that the model does not know.
    """
    shape, real = list(answer_ids.shape), answer_ids != IGNORE
    if len(shape) != 2 or shape[0] != batch or answer_ids.is_floating_point():
        raise ValueError(f"expected answer_ids, integers [{batch}, answer], got {answer_ids.dtype} {shape}")
    if not shape[1] or not real[:, 0].all() or (real[:, 1:] & ~real[:, :-1]).any():
        raise ValueError("expected answer_ids with at least one token in every row, padded on the right with -100")
    check_token_ids(model, answer_ids=answer_ids[real])


def _is_like_decoding(
    model: nn.Module, inputs: Mapping[str, Any], answer_ids: Tensor, pad: int, expected: Tensor, inside: int, way: Way
) -> bool:
    try:
        found = answer_logits(model, inputs, answer_ids, pad, way)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a family that does not take answers so; token by token is what its `generate` does
        return False
    if found.shape != expected.shape:
        return False
    return same_beyond(model, found[:, :-1], expected[:, :-1], answer_ids != IGNORE, inside)


def answer_logits(model: nn.Module, inputs: Mapping[str, Any], answer_ids: Tensor, pad: int, way: Way) -> Tensor:
    """Logits ``[batch, answer + 1, vocabulary]`` at the prompt's last token and at those of an answer."""
    tokens, num_tokens = filled(answer_ids, pad), answer_ids.shape[1]

    def read(prompt: PreparedPrompt) -> Tensor:
        if way == "whole":
            outputs = prompt.extended(tokens).with_cache(None).forward(keep=num_tokens + 1)
            return outputs.logits[:, -num_tokens - 1 :]
        outputs = prompt.forward()
        return torch.cat([outputs.logits[:, -1:], *read_on(prompt, tokens, way, outputs)], dim=1)

    return inside_generate(model, inputs, greedy_options(max(1, num_tokens), (), pad), read)


def read_on(prompt: PreparedPrompt, tokens: Tensor, way: Way, outputs: Any = None) -> Iterator[Tensor]:
    """Logits at the tokens ``[rows, answer]`` of an answer, piece by piece, on the cache that holds its prompt.

    Args:
        outputs: Those of the prompt's forward, see `PreparedPrompt.extended`.
    """
    for piece in tokens.split(tokens.shape[1] if way == "chunk" else 1, dim=1):
        size = piece.shape[1]
        prompt = prompt.extended(piece, outputs)
        found = prompt.forward(size, keep=size)
        outputs = None if outputs is None else found
        yield found.logits[:, -size:]


def filled(answer_ids: Tensor, pad: int) -> Tensor:
    """Answers with a token in place of their padding; behind them, it changes nothing that is read."""
    return answer_ids.masked_fill(answer_ids == IGNORE, pad)


def answer_logprob(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """Mean log-probability from logits ``[rows, answer + 1, vocabulary]``, the first at the prompt's last token."""
    return (_token_logprobs(logits, answer_ids).sum(1) / (answer_ids != IGNORE).sum(1)).cpu()


def answer_sums(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """Of each answer its log-probability, and the number of its tokens that are the most likely ones.

    Args:
        logits: ``[rows, answer + 1, vocabulary]``, the first at the prompt's last token.
        answer_ids: ``[rows, answer]``, padded on the right with -100.

    Returns:
        float32 ``[rows, 2]``, on the CPU.
    """
    is_best = logits[:, :-1].argmax(-1) == answer_ids
    return torch.stack([_token_logprobs(logits, answer_ids).sum(1), is_best.sum(1).float()], dim=1).cpu()


def _token_logprobs(logits: Tensor, answer_ids: Tensor) -> Tensor:
    """Log-probability of each token ``[rows, answer]``, 0 in place of padding."""
    targets = filled(answer_ids, 0).unsqueeze(-1)
    # float32 before the softmax: bfloat16 has too few digits for sums of log-probabilities
    logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, targets).squeeze(-1)
    return logprobs.masked_fill(answer_ids == IGNORE, 0.0)


def with_answers(model: nn.Module, inputs: Mapping[str, Tensor], answer_ids: Tensor, pad: int) -> dict[str, Tensor]:
    """The prompt with the reference answer behind it, for a forward of one's own.

    What else has an entry per token goes on as it does while the model generates.
    """
    owner, real = generating_model(model), answer_ids != IGNORE
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "position_ids")}
    if owner is not None:
        for _ in range(answer_ids.shape[1]):
            others = owner._update_model_kwargs_for_generation({}, {**others})
    return {
        **others,
        "input_ids": torch.cat([inputs["input_ids"], filled(answer_ids, pad)], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], real.to(inputs["attention_mask"].dtype)], dim=1),
    }


def with_positions(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the positions that ``generate`` would derive from the attention mask: padding does not count."""
    # multi-axis rotary positions are the model's own business
    if (
        "position_ids" in inputs
        or not _takes(model, "position_ids")
        or any(hasattr(module, "get_rope_index") for module in model.modules())
    ):
        return dict(inputs)
    positions = (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
    return {**inputs, "position_ids": positions[:, -inputs["input_ids"].shape[1] :]}


def is_image_input(name: str) -> bool:
    """Whether an input of a vision-language model holds images or tells about them, by the names that models give it.

    >>> list(filter(is_image_input, ["input_ids", "pixel_values", "image_grid_thw", "images", "batch_num_images"]))
    ['pixel_values', 'image_grid_thw', 'images', 'batch_num_images']
    """
    return "image" in name or "pixel" in name or name.startswith(("aspect_ratio", "spatial_shapes"))


def count_image_tokens(config: Any, input_ids: Tensor) -> Tensor:
    """Image tokens of each row, long ``[batch]``: those that the model's configuration names; 0 if it names none."""
    token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    return (input_ids == (-1 if token is None else token)).sum(1)


def keep_last(model: nn.Module, positions: int) -> dict[str, int]:
    """Ask for the last logits only, where the model knows how."""
    return {"logits_to_keep": positions} if _takes(model, "logits_to_keep") else {}


def _takes(model: nn.Module, argument: str) -> bool:
    """Whether the forward of the model, or of the one that a wrapper such as PEFT's holds, has an argument."""
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    return argument in inspect.signature(type(inner).forward).parameters
