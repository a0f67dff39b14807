"""Brute force for token masking: every block runs again for every token that is hidden from its last query."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.functional import find_blocks
from lit_depth.functional.inputs import with_answers


@torch.no_grad()
def hidden_one_by_one(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """How far each block's residual update at the last token moves without each token, and how long it is.

    Returns:
        L2 distances ``[num_blocks, seq]`` and norms ``[num_blocks]``.
    """
    calls: list[tuple[Any, dict[str, Any]]] = []

    def note(block: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        bound = inspect.signature(type(block).forward).bind(block, *args, **given)
        others = bound.arguments.pop("kwargs", {})
        calls.append((block, dict(list(bound.arguments.items())[1:]) | others))

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in find_blocks(model)]
    model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    distances, norms = [], []
    for block, given in calls:
        whole = _update(block, given)
        norms.append(whole.norm())
        length = next(iter(given.values())).shape[1]
        name = "attention_mask" if "attention_mask" in inspect.signature(type(block).forward).parameters else "mask"
        for token in range(length):
            changed = given | {name: _without(given.get(name), token, length)}
            distances.append((_update(block, changed) - whole).norm())
    return torch.stack(distances).view(len(calls), -1), torch.stack(norms)


def _update(block: Any, given: dict[str, Any]) -> Tensor:
    output = block(**given)
    output = output if isinstance(output, Tensor) else output[0]
    return (output.double() - next(iter(given.values())).double())[0, -1]


def _without(mask: Tensor | None, token: int, length: int) -> Tensor:
    """An attention mask ``[1, 1, seq, seq]`` in which the last query does not see a token."""
    if mask is None:
        mask = torch.zeros(1, 1, length, length).masked_fill(~torch.ones(length, length).bool().tril(), -1e9)
    mask = mask.clone()
    mask[:, :, -1, token] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask


@torch.no_grad()
def knocked_out(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], answer_ids: Tensor, span: list[int], from_block: int | None
) -> tuple[float, Tensor]:
    """One plain forward in which blocks from one on let nobody outside of a span see it; None = none of them.

    Returns:
        Mean log-probability of the answer ``[1, answer]``, and the states behind the last block ``[seq, hidden]``.
    """
    whole = with_answers(model, inputs, answer_ids, 0)
    length, num_new = whole["input_ids"].shape[1], answer_ids.shape[1]
    inside = torch.zeros(length, dtype=torch.bool).index_fill(0, torch.tensor(span), True)
    hidden = ~inside[:, None] & inside[None, :]

    def hide(block: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = inspect.signature(type(block).forward).bind(block, *args, **given)
        name = "attention_mask" if "attention_mask" in inspect.signature(type(block).forward).parameters else "mask"
        others = bound.arguments.pop("kwargs", {})
        values = dict(list(bound.arguments.items())[1:]) | others
        values[name] = _with_hidden(values.get(name), hidden)
        return (), values

    blocks, states = find_blocks(model), []
    chosen = [] if from_block is None else blocks[from_block:]
    hooks = [block.register_forward_pre_hook(hide, with_kwargs=True) for block in chosen]
    hooks.append(blocks[-1].register_forward_hook(lambda _block, _args, output: states.append(output)))
    logits = model(**whole, use_cache=False).logits[0, -num_new - 1 : -1]
    for hook in hooks:
        hook.remove()
    logprobs = logits.log_softmax(-1).gather(-1, answer_ids[0, :, None])
    return float(logprobs.mean()), (states[0] if isinstance(states[0], Tensor) else states[0][0])[0]


def _with_hidden(mask: Tensor | None, hidden: Tensor) -> Tensor:
    if mask is None:
        mask = torch.zeros(1, 1, *hidden.shape).masked_fill(~torch.ones_like(hidden).tril(), -1e9)
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
