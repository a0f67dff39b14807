"""Independent reference for block masks: a copy in which blocks are replaced by modules that do nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.functional import find_blocks

# values that the blocks of a family return, where that is a tuple
TUPLES = {"FalconDecoderLayer": 2, "BloomBlock": 2, "MptBlock": 2, "BambaDecoderLayer": 2, "FalconH1DecoderLayer": 1}


def identity_copy(model: PreTrainedModel, mask: Tensor | Sequence[bool]) -> PreTrainedModel:
    """Deep-copy ``model`` and let the class of every skipped block return the hidden states that it is given.

    Nobody tells its cache: it is a reference for forwards without one.
    """
    model = copy.deepcopy(model)
    for block, is_active in zip(find_blocks(model), mask, strict=True):
        kind = type(block)
        if not is_active:
            block.__class__ = type("Passing", (kind,), {"forward": _passing(TUPLES.get(kind.__name__))})
    return model


def _passing(length: int | None) -> Any:
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if length is None else (hidden_states, *[None] * (length - 1))

    return forward
