"""One request read by the full model and by a draft of fewer blocks, on keys and values that they share where they can.

Keys and values: each depth has those of its own blocks, as the law of masks demands. The blocks before the first
skipped one read the same states at both depths, so they have one cache layer for both; the prompt is read once, through
the engine's trie, with vision and these blocks once. A draft in the decode phase alone takes the full model's keys and
values of the prompt, so that reading it costs nothing more. A rejected draft is forgotten by the length alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_depth.functional.engine.comparison import Request
from lit_depth.functional.engine.decoding_configuration import PreparedPrompt
from lit_depth.functional.engine.drivers import Forward, TrieDriver, driven
from lit_depth.functional.engine.memory import call_width
from lit_depth.functional.engine.row_cache import RowCache, RowLayer
from lit_depth.functional.engine.trie import MaskTrie
from lit_depth.functional.masking.blocks import find_decoder
from lit_depth.functional.masking.support import adds_between_blocks
from lit_depth.functional.masks import MaskSet

DraftPhase = Literal["both", "decode"]


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
