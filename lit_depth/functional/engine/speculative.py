"""Speculative decoding by the model itself: under a mask it drafts, as a whole it checks the drafts.

Leviathan, Kalman and Matias 2023 (arXiv:2211.17192) let a small model draft some tokens and the large one read all of
them in one forward. Here the small model is the large one under a block mask, as in Draft & Verify (Zhang et al. 2024,
arXiv:2309.08168) and, for masks that keep the first blocks, in LayerSkip (Elhoushi et al. 2024, arXiv:2404.16710). The
answer is greedy, so a draft is accepted where it is the token that the full model chooses itself.

Keys and values: each depth has those of its own blocks, as the law of masks demands. The blocks before the first
skipped one read the same states at both depths, so they have one cache layer for both; the prompt is read once, through
the engine's trie, with vision and these blocks once. A draft in the decode phase alone takes the full model's keys and
values of the prompt, so that reading it costs nothing more. A rejected draft is forgotten by the length alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

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
from lit_depth.functional.engine.drivers import Forward, TrieDriver, driven
from lit_depth.functional.engine.memory import call_width
from lit_depth.functional.engine.row_cache import RowCache, RowLayer
from lit_depth.functional.engine.trie import MaskTrie
from lit_depth.functional.inputs import scoring_way
from lit_depth.functional.masking.blocks import context_length, find_blocks, find_decoder
from lit_depth.functional.masking.skip import masked
from lit_depth.functional.masking.support import adds_between_blocks
from lit_depth.functional.masks import MaskSet

MAX_DRAFT = 64  # tokens of one draft; more than any drafter is worth
DraftPhase = Literal["both", "decode"]


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
    check = compare(model, request, full[0], path, "with drafts")
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


@contextmanager
def reading(
    model: nn.Module,
    request: Request,
    prompt: PreparedPrompt,
    draft: MaskSet,
    blocks: nn.ModuleList,
    phase: DraftPhase = "both",
) -> Iterator[tuple[Tensor, Callable[[int], TwoDepths]]]:
    """Read the prompts at both depths; gives the full model's logits ``[batch, vocabulary]``, and each row to go on.

    In the decode phase alone a draft needs no reading of its own.

    Args:
        draft: The one mask that drafts. The full one drafts nothing: prompts are then read at one depth.
    """
    prompt.check_processors()
    bits, batch = draft.bits[0], len(prompt.ids)
    full = MaskSet.full(len(blocks))
    masks = full if phase == "decode" else full.union(draft)
    trie = MaskTrie(masks)
    cache = RowCache(len(blocks), prompt.length + request.max_new_tokens)
    prompt = prompt.with_cache(cache)
    driver = TrieDriver(
        trie,
        call_width(model, request.inputs),
        cache,
        keep=1,
        shape=(batch, prompt.length),
        adds=adds_between_blocks(find_decoder(model, blocks)),
    )
    with driver.driving(blocks):
        logits = prompt.forward().logits
    driver.check_logits(logits)
    cache.advance([bool(level.run) for level in trie.levels], prompt.length)
    depths = Depths(len(blocks))

    def row(index: int) -> TwoDepths:
        sources = trie.places * batch + index
        of_row = prompt.for_decoding(torch.tensor([index], device=prompt.ids.device))
        active = bits.tolist()
        return TwoDepths(of_row, depths, active, _caches(cache, active, sources[0].tolist(), sources[-1].tolist()))

    with driven(blocks, depths.make_forward):
        yield logits[:batch, -1], row


def _caches(read: RowCache, active: list[bool], of_full: list[int], of_draft: list[int]) -> tuple[RowCache, RowCache]:
    """Keys and values of one row at full depth, and those of the draft: shared before the first block that it skips."""
    full, draft = (RowCache(len(active), read.extent.capacity) for _ in range(2))
    full.extent.length = read.extent.length
    draft.extent = full.extent
    num_shared = active.index(False) if False in active else len(active)

    def layer(block_idx: int, source: int) -> RowLayer:
        made = RowLayer(full.extent)
        made.parts = read.layers[block_idx].parts  # type: ignore[union-attr]
        made.assign(torch.tensor([source]))
        return made

    full.layers = [layer(block_idx, source) for block_idx, source in enumerate(of_full)]
    draft.layers = [
        full.layers[block_idx]
        if block_idx < num_shared
        else layer(block_idx, of_draft[block_idx])
        if is_active
        else RowLayer(full.extent)
        for block_idx, is_active in enumerate(active)
    ]
    return full, draft


class Depths:
    """Drives blocks at a depth that changes between two forwards.

    Args:
        num_blocks: Blocks of the model.
    """

    def __init__(self, num_blocks: int) -> None:
        self.active = [True] * num_blocks

    def make_forward(self, block_idx: int, real: Forward) -> Forward:
        """The ``forward`` of block ``block_idx``."""

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return real(hidden_states, *args, **kwargs) if self.active[block_idx] else hidden_states

        return forward


class TwoDepths:
    """One request on its way: what is decided, and what the full model and the draft have read of it.

    Args:
        prompt: The request's prompt.
        depths: Drives the blocks.
        active: Which blocks draft.
        caches: Keys and values of the full model and of the blocks that draft, see `_caches`.
    """

    def __init__(
        self, prompt: PreparedPrompt, depths: Depths, active: list[bool], caches: tuple[RowCache, RowCache]
    ) -> None:
        self.prompt, self.depths, self.caches = prompt, depths, caches
        self.active = [True] * len(active), active
        self.held = [prompt.length, prompt.length]  # tokens that each has read

    def read(self, prompt: PreparedPrompt, of_draft: bool) -> Tensor:
        """Logits ``[new, vocabulary]`` at the tokens of ``prompt`` that the full model, or the draft, has not read."""
        cache, held = self.caches[of_draft], self.held[of_draft]
        length = prompt.length + prompt.ids.shape[1] - prompt.num_given
        num_new = length - held
        self.depths.active = self.active[of_draft]
        cache.extent.length = held
        logits: Tensor = prompt.with_cache(cache).forward(num_new, keep=num_new).logits[0, -num_new:]
        cache.advance(self.depths.active, num_new)
        self.held[of_draft] = length
        return logits

    def draft(self, num_draft: int, ends: Sequence[int]) -> list[int]:
        """Tokens that the masked model decodes from here, up to an end token."""
        prompt, found = self.prompt, []
        for _ in range(num_draft):
            logits = self.read(prompt, of_draft=True)[-1:]
            found.append(int(prompt.next_tokens(logits)))
            if found[-1] in ends:
                break
            prompt = _extended(prompt, found[-1:])
        return found

    def verify(self, drafts: Sequence[int]) -> tuple[list[int], Tensor]:
        """The full model's own next token after what is decided, and after each draft; and their logits."""
        prompt = _extended(self.prompt, drafts)
        logits = self.read(prompt, of_draft=False)
        if not prompt.processors:
            return logits.argmax(-1).tolist(), logits
        decided = self.prompt.ids.shape[1]
        prefixes = [replace(prompt, ids=prompt.ids[:, : decided + step]) for step in range(len(drafts) + 1)]
        return [int(prefix.next_tokens(each[None])) for prefix, each in zip(prefixes, logits)], logits

    def accept(self, tokens: Sequence[int]) -> None:
        """Go on behind ``tokens``, of which neither depth keeps the last; what was read beyond them is forgotten."""
        self.prompt = _extended(self.prompt, tokens)
        known = self.prompt.length + self.prompt.ids.shape[1] - self.prompt.num_given - 1
        self.held = [min(held, known) for held in self.held]


def _extended(prompt: PreparedPrompt, tokens: Sequence[int]) -> PreparedPrompt:
    return prompt.extended(torch.tensor([tokens], dtype=torch.long, device=prompt.ids.device)) if tokens else prompt


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
