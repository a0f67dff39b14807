"""Brute force for token masking: every block runs again for every token that is hidden from its last query."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.functional import find_blocks


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
