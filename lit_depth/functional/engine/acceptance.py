"""How often a masked model would have said the full model's own next token: what its drafts are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.engine.api import score_continuations, sweep_generate
from lit_depth.functional.engine.two_depths import DraftPhase
from lit_depth.functional.inputs import IGNORE
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.functional.masks import Masks, MaskSet


class Acceptance(NamedTuple):
    """Result of `draft_acceptance` (M masks, B requests), long, on the CPU.

    Attributes:
        num_agreed: Tokens behind an answer's first that a mask ranks first too, ``[M, B]``.
        num_tokens: Tokens of the answer behind its first, the end token included, ``[B]``.
    """

    num_agreed: Tensor
    num_tokens: Tensor


def draft_acceptance(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Masks,
    max_new_tokens: int,
    *,
    eos_token_id: int | Sequence[int] | None,
    pad_token_id: int,
    phase: DraftPhase = "both",
    **options: Any,
) -> Acceptance:
    """Read the full model's greedy answers under every mask, each token given those before it.

    The first token of an answer comes from the full model's own reading of the prompt, and is no draft.

    Args:
        model: As for `sweep_generate`, like the arguments not named here.
        masks: Those that may draft.
        phase: As for `speculative_generate`.
        options: ``max_rows`` and ``blocks``.
    """
    num_blocks = len(find_blocks(model, options.get("blocks")))
    ends = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    named = {"pad_token_id": pad_token_id, **options}
    (tokens,) = sweep_generate(model, inputs, MaskSet.full(num_blocks), max_new_tokens, eos_token_id=ends, **named)
    is_end = torch.isin(tokens, torch.tensor(ends, dtype=torch.long))
    known = is_end.cumsum(1) - is_end.long() == 0
    answers = tokens.masked_fill(~known, IGNORE)
    whole, first = (
        score_continuations(model, inputs, masks, ids, phase=phase, **named).num_greedy.long()
        for ids in (answers, answers[:, :1])
    )
    return Acceptance(whole - first, known.sum(1) - 1)
