"""Calibration batches of questions: prompts with their answers behind them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_depth.functional.inputs import IGNORE, TEXT_INPUTS, filled


def with_answers(inputs: Mapping[str, Tensor], answer_ids: Tensor, pad_token_id: int) -> dict[str, Tensor]:
    """Prompts and their answers as one row each, and ``labels`` that are the answers.

    Args:
        inputs: Left-padded prompts: ``input_ids`` and ``attention_mask`` ``[batch, seq]``, and whatever else the model
            takes; positions are left to the attention mask.
        answer_ids: ``[batch, answer]``, padded on the right with -100.
        pad_token_id: Stands in for the padding of the answers.

    >>> ids = torch.tensor([[5, 6]])
    >>> batch = with_answers({"input_ids": ids, "attention_mask": ids > 0}, torch.tensor([[7, -100]]), pad_token_id=0)
    >>> {name: value.int().tolist() for name, value in batch.items()}
    {'input_ids': [[5, 6, 7, 0]], 'attention_mask': [[1, 1, 1, 0]], 'labels': [[-100, -100, 7, -100]]}
    """
    real = answer_ids != IGNORE
    # an answer is text, whose type is 0
    behind = {"input_ids": filled(answer_ids, pad_token_id), "attention_mask": real}
    found = {name: value for name, value in inputs.items() if name != "position_ids"}
    for name in TEXT_INPUTS:
        if name in found:
            more = behind.get(name, torch.zeros_like(answer_ids))
            found[name] = torch.cat([found[name], more.to(found[name])], dim=1)
    nothing = torch.full(inputs["input_ids"].shape, IGNORE).to(answer_ids)
    return {**found, "labels": torch.cat([nothing, answer_ids], dim=1)}
