"""How a mask's tokens agree with those of the full model: in its answers, and given the same tokens before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_depth.functional.arguments import check_least
from lit_depth.functional.engine.greedy_tokens import GreedyTokens
from lit_depth.functional.inputs import IGNORE


class TokenAgreement(NamedTuple):
    """Agreement with the full model of M masks on B samples.

    Attributes:
        first_difference: Index of the first generated token that is another than the full model's, long ``[M, B]``;
            -1 where the whole answer is the same, end token included.
        reference: Share of the reference answer's positions at which the most likely token, given the reference answer
            before it, is the full model's, ``[M, B]``; NaN where there is no reference answer.
        accepted: 1 where the most likely token, given the full model's own answer before it, is the full model's, else
            0; -1 behind its end. Long ``[M, B, acceptance]``.
    """

    first_difference: Tensor
    reference: Tensor
    accepted: Tensor


def token_agreement(tokens: Tensor, greedy: GreedyTokens, full: int) -> TokenAgreement:
    """Compare the tokens of every mask with those of the full model.

    Args:
        tokens: Greedy answers ``[M, B, tokens]``, padded alike behind their ends.
        greedy: Most likely tokens along given ones.
        full: Index of the full model's mask.
    """
    differs = tokens != tokens[full]
    first = differs.int().argmax(-1) if tokens.shape[-1] else torch.zeros(tokens.shape[:2], dtype=torch.long)
    known = greedy.reference != IGNORE
    same = (greedy.reference == greedy.reference[full]) & known
    accepted = (greedy.own == greedy.own[full]).long()
    return TokenAgreement(
        first.masked_fill(~differs.any(-1), -1),
        same.sum(-1) / known.sum(-1),
        accepted.masked_fill(greedy.own == IGNORE, -1),
    )


def tokens_per_check(accepted: Sequence[bool], num_draft: int) -> float:
    """Tokens of an answer that each forward of the full model yields, if a mask drafts for it.

    In greedy speculative decoding (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192) the mask drafts up to
    ``num_draft`` tokens, and one forward of the full model takes them up to the first that is not its own, and gives
    the one behind them itself. Which tokens the mask drafts follows from what it takes to be most likely along the full
    model's answer: as long as a draft is accepted, it is that answer.

    Args:
        accepted: Of each token of the full model's answer, whether the mask takes it to be the most likely one.
        num_draft: Tokens drafted at a time.

    >>> tokens_per_check([True, True, True, False, True, True], num_draft=2)
    2.0
    >>> tokens_per_check([False] * 5, num_draft=4), tokens_per_check([True] * 5, num_draft=4)
    (1.0, 5.0)
    """
    check_least(1, num_draft=num_draft)
    if not accepted:
        raise ValueError("expected at least one token, got none")
    done = checks = 0
    while done < len(accepted):
        drafted = accepted[done : done + num_draft]
        taken = next((place for place, is_right in enumerate(drafted) if not is_right), len(drafted))
        done += taken + 1
        checks += 1
    return len(accepted) / checks
