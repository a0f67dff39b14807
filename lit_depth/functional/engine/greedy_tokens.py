"""The most likely tokens of every mask along given tokens: the reference answer, and the full model's own answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.engine.comparison import Request
from lit_depth.functional.engine.decoding_configuration import decoding_configuration
from lit_depth.functional.engine.rows import up_to_stop
from lit_depth.functional.inputs import IGNORE
from lit_depth.functional.masks import MaskSet

# stands where a token has to be read yet
OPEN = -1


class GreedyTokens(NamedTuple):
    """Most likely tokens, each given the tokens before it (M masks, B samples), on the CPU; -100 behind an end.

    Attributes:
        reference: At the positions of the reference answer, given that, long ``[M, B, answer]``.
        own: At those of the full model's own answer, its end token included, given that, long ``[M, B, acceptance]``.
    """

    reference: Tensor
    own: Tensor

    @classmethod
    def nothing(cls, request: Request, num_masks: int) -> GreedyTokens:
        """As much as a request asks for, to be filled in."""
        batch = len(request.inputs["input_ids"])
        widths = (request.answer_length if request.on_greedy else 0, request.acceptance)
        return cls(*(torch.full((num_masks, batch, width), IGNORE) for width in widths))

    def put(self, chosen: list[int], found: GreedyTokens) -> None:
        """Fill in what was found of some masks."""
        for whole, part in zip(self, found):
            whole[chosen] = part


def full_place(masks: MaskSet) -> int | None:
    """Index of the full model's mask; None if it is not among them."""
    return next((index for index, count in enumerate(masks.counts) if count == masks.num_units), None)


def full_first(chunks: list[list[int]], full: int | None) -> list[list[int]]:
    """The chunk that holds the mask ``full`` in front of the others, whose order stays.

    >>> full_first([[0, 1], [2, 3], [4]], full=2)
    [[2, 3], [0, 1], [4]]
    """
    return sorted(chunks, key=lambda chunk: full not in chunk)


def greedy_along(greedy: Tensor, given: Tensor) -> Tensor:
    """Most likely tokens ``[rows, answer or more]`` as far as tokens ``[rows, answer]`` are given, on the CPU."""
    return greedy[:, : given.shape[1]].masked_fill(given == IGNORE, IGNORE).cpu()


def own_answers(tokens: Tensor, request: Request) -> Tensor:
    """What the full model's answers ``[batch, tokens]`` are compared by: their first tokens, up to the end token.

    Returns:
        Long ``[batch, acceptance]``, padded on the right with -100.

    >>> asked = Request({}, 3, (7,), 0, acceptance=2)
    >>> own_answers(torch.tensor([[5, 6, 5], [7, 0, 0]]), asked).tolist()
    [[5, 6], [7, -100]]
    """
    tokens = up_to_stop(tokens[None], request)[0]
    ends = torch.isin(tokens, torch.tensor(request.eos, dtype=torch.long))
    over = ends.cumsum(1) - ends.long() > 0
    if request.stop is not None:  # padding alone shows where a text stopped an answer
        over |= (tokens != request.pad).flip(1).cumsum(1).flip(1) == 0
        over[:, 0] = False
    return tokens.masked_fill(over, IGNORE)[:, : request.acceptance]


def known_along(tokens: Tensor, own: Tensor) -> Tensor:
    """What decoded tokens say of those that are most likely along the full model's answer.

    Up to the first one that differs, a mask has decoded given that very answer.

    Args:
        tokens: Under one mask, ``[rows, tokens]``.
        own: The full model's, see `own_answers`.

    Returns:
        Long ``[rows, acceptance]``: -100 behind the end, -1 where a token has to be read yet.

    >>> known_along(torch.tensor([[5, 8, 9], [5, 6, 7]]), torch.tensor([[5, 6, 7], [5, 6, -100]])).tolist()
    [[5, 8, -1], [5, 6, -100]]
    """
    tokens = tokens[:, : own.shape[1]]
    differs = (tokens != own) & (own != IGNORE)
    beyond = differs.cumsum(1) - differs.long() > 0
    return tokens.masked_fill(beyond, OPEN).masked_fill(own == IGNORE, IGNORE)


def check_without_penalties(model: nn.Module) -> None:
    """Refuse a model whose most likely token is not the one that it decodes."""
    penalties = decoding_configuration(model, 1, (), 0)["generation_config"]
    if penalties:
        raise ValueError(
            "expected a model that decodes its most likely tokens, whose acceptance they are, got a generation_config "
            f"with {', '.join(penalties)}: leave out --acceptance"
        )
