"""Speculative decoding by the model itself: under a mask it drafts, as a whole it checks the drafts.

Leviathan, Kalman and Matias 2023 (arXiv:2211.17192) let a small model draft some tokens and the large one read all of
them in one forward. Here the small model is the large one under a block mask, as in Draft & Verify (Zhang et al. 2024,
arXiv:2309.08168) and, for masks that keep the first blocks, in LayerSkip (Elhoushi et al. 2024, arXiv:2404.16710). The
answer is greedy, so a draft is accepted where it is the token that the full model chooses itself. Keys and values of
both depths are in `lit_depth.functional.engine.two_depths`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import (
    MAX_TOKENS,
    check_goes_on,
    check_range,
    check_token_ids,
    checked,
    prompt_inputs,
)
from lit_depth.functional.engine.api import driven_or_not, end_tokens
from lit_depth.functional.engine.comparison import Comparison, Request, compare
from lit_depth.functional.engine.decode import answer_one_by_one
from lit_depth.functional.engine.decoding_configuration import (
    CannotDriveError,
    PreparedPrompt,
    check_generates,
    inside_generate,
)
from lit_depth.functional.engine.two_depths import DraftPhase, TwoDepths, reading
from lit_depth.functional.inputs import scoring_way
from lit_depth.functional.masking.blocks import context_length, find_blocks
from lit_depth.functional.masking.skip import masked
from lit_depth.functional.masks import MaskSet

MAX_DRAFT = 64  # tokens of one draft; more than any drafter is worth


class SpeculativeAnswers(NamedTuple):
    """Result of `speculative_generate` (B requests), on the CPU.

    Attributes:
        tokens: Long ``[B, max_new_tokens]``, those of the full model.
        num_drafted: Tokens that the masked model proposed, long ``[B]``.
        num_accepted: How many of them are the full model's own, long ``[B]``.
        num_verifications: Forwards of the full model after the one that read the prompt, long ``[B]``.
    """

    tokens: Tensor
    num_drafted: Tensor
    num_accepted: Tensor
    num_verifications: Tensor


@checked
@torch.no_grad()
def speculative_generate(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    mask: Tensor | Sequence[bool],
    num_draft: int,
    max_new_tokens: int,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    blocks: str | None = None,
    phase: DraftPhase = "both",
) -> SpeculativeAnswers:
    """Greedy answers of the full model, with drafts of the masked one.

    In each round the masked model drafts ``num_draft`` tokens one after another, and the full model reads them in one
    forward. The drafts up to the first that it would not have chosen are accepted, and its own next token comes on top,
    so a round gives between 1 and ``num_draft + 1`` tokens. In float32 the tokens are those of the full model alone,
    up to ties closer than the rounding of a forward of another length.

    Rows of a batch accept different numbers of drafts. So the prompts are read together, and then each row is decoded
    on its own: its counts are those that it has alone.

    A model that reads several tokens on its cache otherwise than one by one, or that the engine cannot drive (recurrent
    states), is answered without drafts, with one warning and counts of 0.

    Args:
        model: As for `sweep_generate`, like the arguments not named here.
        mask: Blocks that draft, bool ``[num_blocks]``.
        num_draft: Tokens that are drafted before they are checked, at most 64; 0 = plain decoding by the full model.
        phase: Forwards in which the draft skips its blocks, see `masked`: ``"both"``, or ``"decode"``, where it reads
            on from the full model's keys and values of the prompt.

    Raises:
        ValueError: As `sweep_generate`, or if ``num_draft`` is out of range.
    """
    module_list = find_blocks(model, blocks)
    draft = MaskSet.of([mask], len(module_list), "block")
    inputs = prompt_inputs(model, inputs)
    check_range(0, MAX_DRAFT, num_draft=num_draft)
    check_range(1, MAX_TOKENS, max_new_tokens=max_new_tokens)
    check_goes_on(inputs, max_new_tokens, context_length(model))
    check_token_ids(model, pad_token_id=pad_token_id)
    check_generates(model)
    request = Request(inputs, max_new_tokens, end_tokens(model, eos_token_id), pad_token_id)
    full = MaskSet.full(len(module_list))

    def without_drafts() -> SpeculativeAnswers:
        tokens, _ = answer_one_by_one(model, request, full, blocks, lambda: None)
        return SpeculativeAnswers(tokens[0], *torch.zeros(3, tokens.shape[1], dtype=torch.long))

    return driven_or_not(
        model,
        module_list,
        lambda: _answer(model, request, full, draft, num_draft, module_list, blocks, phase),
        without_drafts,
        request.check_length(model),
        how="without drafts",
    )


def _answer(
    model: nn.Module,
    request: Request,
    full: MaskSet,
    draft: MaskSet,
    num_draft: int,
    blocks: nn.ModuleList,
    path: str | None,
    phase: DraftPhase,
) -> SpeculativeAnswers:
    """`speculative_generate` by the engine.

    Raises:
        CannotDriveError: The engine cannot answer the batch, or gives other answers than the full model.
    """
    check = compare(model, request, full, 0, path, "with drafts")
    if check is not None and num_draft:
        with masked(model, full[0], blocks=path):
            way = scoring_way(model, request.inputs, check.steps.tokens, request.pad, in_phases=True)
        if way != "chunk":
            raise CannotDriveError("it does not read several tokens on its cache as it reads one after another")

    def answer(prompt: PreparedPrompt) -> SpeculativeAnswers:
        with reading(model, request, prompt, draft if num_draft else full, blocks, phase) as (logits, row):
            batch = len(logits)
            tokens = torch.full((batch, request.max_new_tokens), request.pad)
            counts = torch.zeros(3, batch, dtype=torch.long)
            for index in range(batch):
                note = None if check is None else partial(_note, check, index)
                found, *counted = _decode(row(index), logits[index], request, num_draft, note)
                tokens[index, : len(found)] = torch.tensor(found)
                counts[:, index] = torch.tensor(counted)
        if check is not None:
            check.check(model, logits[:, None], tokens, request)
        return SpeculativeAnswers(tokens, *counts)

    return inside_generate(model, request.inputs, request.options, answer)


def _note(check: Comparison, index: int, step: int, logits: Tensor) -> None:
    check.note(step, torch.tensor([index]), logits[None])


def _decode(
    row: TwoDepths, logits: Tensor, request: Request, num_draft: int, note: Callable[[int, Tensor], None] | None
) -> tuple[list[int], int, int, int]:
    """Tokens of one request, and how many were drafted, accepted, and how often the full model looked at them.

    Args:
        logits: Those of the full model at the end of the prompt.
        note: Called with each step and the logits that its token was chosen from.
    """
    tokens = [int(row.prompt.next_tokens(logits[None]))]
    num_drafted = num_accepted = num_verifications = 0
    row.accept(tokens)
    while len(tokens) < request.max_new_tokens and tokens[-1] not in request.eos:
        # the full model's own token comes on top
        drafts = row.draft(min(num_draft, request.max_new_tokens - len(tokens) - 1), request.eos)
        own, logits = row.verify(drafts)
        agreed = count_agreed(drafts, own)
        new = own[: agreed + 1]
        if agreed and new[agreed - 1] in request.eos:
            new = new[:agreed]
        for step, each in enumerate(logits[: len(new)] if note is not None else ()):
            note(len(tokens) + step, each)  # type: ignore[misc]
        row.accept(new)
        tokens += new
        num_drafted, num_accepted = num_drafted + len(drafts), num_accepted + agreed
        num_verifications += 1
    return tokens, num_drafted, num_accepted, num_verifications


def count_agreed(drafts: Sequence[int], own: Sequence[int]) -> int:
    """How many drafts come before the first that is another token than the full model's own.

    >>> count_agreed([5, 6, 7], [5, 6, 8, 9]), count_agreed([5], [6, 7]), count_agreed([], [4])
    (2, 0, 0)
    """
    return next((place for place, pair in enumerate(zip(drafts, own)) if pair[0] != pair[1]), len(drafts))
