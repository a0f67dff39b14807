"""Plan the distinct block forwards that a set of block masks needs.

Masks that agree on their first i bits have the same hidden state after block i - 1, so block i has to run once per
distinct prefix that keeps it, not once per mask. The plan is a trie over the masks' bits, held level by level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from lit_depth.functional.arguments import checked
from lit_depth.functional.masks import Masks, MaskSet


class Level(NamedTuple):
    """What happens at one block. The groups that enter it are numbered as the level before left them.

    Attributes:
        run: Entering groups that the block runs on, those that no later block runs on behind the others. A group is
            there twice where image tokens skip the block under some of its masks, and none do under others.
        for_text: For each of them, whether image tokens skip the block.
        num_continued: How many of them a later block runs on.
        sources: For each group that leaves: its place in ``run`` (it was run), or None (it passes by).
        parents: For each group that leaves: the entering group it comes from.
    """

    run: list[int]
    for_text: list[bool]
    num_continued: int
    sources: list[int | None]
    parents: list[int]


class MaskTrie:
    """The distinct block forwards of a set of masks.

    Args:
        masks: See `MaskSet.of`; repeated masks share everything.

    Attributes:
        masks: The masks, in the order given.
        levels: One `Level` per block.
        leaves: For each mask the group that holds its final hidden state.
        places: Long ``[masks, num_blocks]``: for each mask the place in a level's ``run`` of its own forward, -1 where
            the mask skips the block.

    Raises:
        ValueError: If there is no mask, or one is malformed (see `MaskSet.of`).

    Example:
        >>> from lit_depth.functional import leave_one_out, prefix
        >>> full = torch.ones(1, 16, dtype=torch.bool)
        >>> trie = MaskTrie(torch.cat([full, leave_one_out(16)]))
        >>> trie.block_forwards, trie.sequential_block_forwards
        (136, 256)
        >>> trie = MaskTrie([prefix(16, k) for k in range(1, 17)])
        >>> trie.block_forwards, trie.sequential_block_forwards
        (16, 136)
    """

    @checked
    def __init__(self, masks: Masks) -> None:
        self.masks = MaskSet.of(masks)
        # 0 = skipped, 1 = run, 2 = skipped by image tokens
        symbols = (self.masks.bits.long() + 2 * (self.masks.runs & ~self.masks.bits).long()).tolist()
        groups = [0] * len(self.masks)  # of each mask, at the current level
        self.levels: list[Level] = []
        self.places = torch.full(self.masks.bits.shape, -1)
        for block_idx in range(self.masks.num_units):
            here = [(mask[block_idx], group) for group, mask in zip(groups, symbols)]
            entering = {child for child in here if child[0]}
            continued = {child for child, mask in zip(here, symbols) if child[0] and any(mask[block_idx + 1 :])}
            run = [*sorted(continued), *sorted(entering - continued)]
            place = {child: index for index, child in enumerate(run)}
            for index, child in enumerate(here):
                if child[0]:
                    self.places[index, block_idx] = place[child]
            # groups that ran come first, groups that pass by are appended
            children = sorted(set(here), key=lambda child: (not child[0], child))
            number = {child: index for index, child in enumerate(children)}
            groups = [number[child] for child in here]
            self.levels.append(
                Level(
                    run=[group for _, group in run],
                    for_text=[symbol == 2 for symbol, _ in run],
                    num_continued=len(continued),
                    sources=[place.get(child) for child in children],
                    parents=[group for _, group in children],
                )
            )
        self.leaves = groups

    @property
    def block_forwards(self) -> int:
        """Block forwards that the plan performs, each over the whole batch."""
        return sum(len(level.run) for level in self.levels)

    @property
    def sequential_block_forwards(self) -> int:
        """Block forwards of one mask after another."""
        return int(self.masks.runs.sum())

    @property
    def text_block_forwards(self) -> int:
        """Those of the `block_forwards` that run queries, attention and MLP for text tokens alone."""
        return sum(sum(level.for_text) for level in self.levels)


def chunk_masks(masks: MaskSet, budget: float, costs: Sequence[float] | None = None) -> Iterator[list[int]]:
    """Split masks into chunks of neighbouring branches, which share the longest prefixes.

    Args:
        masks: The masks.
        budget: Largest cost of a chunk, at least 1; a mask that alone costs more is a chunk of its own.
        costs: Cost of each mask; None = 1 each, so that the budget is a number of masks.

    Yields:
        Indices into ``masks``.

    Example:
        >>> masks = MaskSet.of(["11", "01", "10"])
        >>> list(chunk_masks(masks, 2))
        [[0, 2], [1]]
        >>> list(chunk_masks(masks, 2, costs=[2.0, 1.0, 1.0]))
        [[0], [2, 1]]
    """
    if budget < 1:
        raise ValueError(f"expected a budget of at least 1, got {budget}")
    chunk: list[int] = []
    spent = 0.0
    for index in sorted(range(len(masks)), key=masks.ids.__getitem__, reverse=True):
        cost = 1.0 if costs is None else costs[index]
        if chunk and spent + cost > budget:
            yield chunk
            chunk, spent = [], 0.0
        chunk.append(index)
        spent += cost
    if chunk:
        yield chunk
