"""Drive the blocks of a decoder inside its own forward: many masks at once, or one mask per row.

The model around the blocks (embedding, vision tower, masks and positions, final norm, head) runs as it is. While a
driver is attached, the ``forward`` of every block is the driver's, which decides on which rows the real one runs:

- `TrieDriver` (prefill): all rows share their hidden state until masks diverge; a block runs once per distinct prefix.
- `RowDriver` (decoding, and prefill with per-row masks): rows that keep a block are gathered, run and scattered back.

Both write keys and values to a `RowCache`, whose entry of a block holds only the rows that run it.

Forward hooks on the blocks themselves see a stand-in for the hidden states and cannot change them; those on the modules
inside a block see the rows that it runs on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from lit_depth.functional.masking import unmasked
from lit_depth.functional.sublayers import HalfForward, find_halves
from lit_depth.functional.trie import MaskTrie

Forward = Callable[..., Tensor]


class CannotDriveError(Exception):
    """The model's blocks are called in a way that the engine does not understand."""


@dataclass
class Extent:
    """How many tokens the entries of one cache hold, and how many they have room for.

    Entries share it in place of the cache itself: a cycle would keep all keys and values until Python looks for cycles.
    """

    length: int
    capacity: int


class RowLayer(CacheLayerMixin):
    """Keys and values of one block, for the rows that run it: preallocated, so that growing copies nothing.

    Shapes are ``[rows, heads, length, head_dim]``.
    """

    is_sliding = False

    def __init__(self, extent: Extent) -> None:
        super().__init__()
        self.extent = extent
        # prefill by groups: what each group's call produced, until `assign` deals it out to rows
        self.parts: list[tuple[Tensor, Tensor]] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, _ = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.extent.capacity, key_states.shape[-1])
        self.values = value_states.new_empty(rows, heads, self.extent.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.parts is not None:
            self.parts.append((key_states, value_states))
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start, stop = self.extent.length, self.extent.length + key_states.shape[-2]
        self.keys[:, :, start:stop] = key_states
        self.values[:, :, start:stop] = value_states
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def assign(self, sources: Tensor) -> None:
        """Give each row its prompt's keys and values: row i takes row ``sources[i]`` of all parts in a line."""
        assert self.parts is not None
        parts, self.parts = self.parts, None
        if not len(sources):
            return
        length = self.extent.length
        self.lazy_initialization(*(states[:1].expand(len(sources), -1, -1, -1) for states in parts[0]))
        assert self.keys is not None and self.values is not None
        # rows one behind the other that come from such rows of one part are copied together: an index for every row
        # would copy all of them twice
        starts = torch.tensor([0, *(len(keys) for keys, _ in parts)]).cumsum(0)
        part = torch.bucketize(sources, starts, right=True) - 1
        breaks = ((sources.diff() != 1) | (part.diff() != 0)).nonzero().flatten() + 1
        for row, stop in itertools.pairwise([0, *breaks.tolist(), len(sources)]):
            keys, values = parts[int(part[row])]
            taken = slice(int(sources[row] - starts[part[row]]), int(sources[stop - 1] - starts[part[row]]) + 1)
            self.keys[row:stop, :, :length] = keys[taken, :, :length]
            self.values[row:stop, :, :length] = values[taken, :, :length]

    def keep_rows(self, kept: Tensor) -> None:
        """Drop all rows but ``kept`` (indices among this entry's rows)."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, kept), self.values.index_select(0, kept)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.extent.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.extent.length

    def get_max_length(self) -> int:
        return self.extent.capacity


class RowCache(Cache):
    """One `RowLayer` per block; the length is kept once, because a block without rows has nothing to measure.

    Args:
        num_blocks: Blocks of the model.
        capacity: Tokens per row that there is room for.
    """

    def __init__(self, num_blocks: int, capacity: int) -> None:
        self.extent = Extent(0, capacity)
        super().__init__(layers=[RowLayer(self.extent) for _ in range(num_blocks)])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.extent.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.extent.length + query_length, 0


@contextmanager
def driven(blocks: nn.ModuleList, make_forward: Callable[[int, Forward], Forward]) -> Iterator[None]:
    """Replace the blocks' instance ``forward`` by ``make_forward(block index, real forward)``; restore exactly.

    A mask that the model is under (`masked`) is replaced, as an inner mask replaces it.
    """
    with unmasked(blocks):
        for block_idx, block in enumerate(blocks):
            block.__dict__["forward"] = make_forward(block_idx, block.forward)
        yield


class TrieDriver:
    """Run a trie of masks through one forward of the decoder (see the module's docstring).

    Hidden states travel beside the decoder, one tensor per group, so a group that passes a block by costs nothing. The
    last block returns the states of all masks, mask after mask. Where a group meets its last block, only the positions
    that are kept go through the MLP, if the block can be halved (`lit_depth.functional.sublayers`): nobody reads the
    others.

    Args:
        trie: The plan.
        width: How many groups share a call; None = all.
        cache: Filled with each group's keys and values; None = no cache.
        keep: Positions from the end that the last block returns; 0 = all.
        embeddings: Input of block 0 from an earlier pass over the same batch, which then needs no image tensors.
    """

    def __init__(
        self, trie: MaskTrie, width: int | None, cache: RowCache | None, keep: int = 0, embeddings: Tensor | None = None
    ) -> None:
        self.trie, self.width, self.keep = trie, width, keep
        self.embeddings = embeddings
        self.groups: list[Tensor] = []
        if cache is not None:
            for layer in cache.layers:
                layer.parts = []  # type: ignore[union-attr]

    def make_forward(self, block_idx: int, real: Forward) -> Forward:
        """The ``forward`` of block ``block_idx``."""
        level = self.trie.levels[block_idx]
        last = block_idx == len(self.trie.levels) - 1
        real_at_end = self._cut_before_mlp(real) if self.keep else real

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if block_idx == 0:
                if self.embeddings is None:
                    self.embeddings = hidden_states
                self.groups = [self.embeddings]
            entering = [self.groups[group] for group in level.run]
            outputs = self._run(entering[: level.num_continued], real, args, kwargs)
            outputs += self._run(entering[level.num_continued :], real_at_end, args, kwargs)
            self.groups = [
                self.groups[parent] if place is None else outputs[place]
                for place, parent in zip(level.sources, level.parents)
            ]
            if not last:
                return hidden_states
            leaves = [self.groups[leaf] for leaf in self.trie.leaves]
            self.groups = []  # the driver lives on while rows are decoded
            return torch.cat([states[:, -self.keep :] for states in leaves])

        return forward

    def _cut_before_mlp(self, real: Forward) -> Forward:
        """``real``, but its MLP runs on the kept positions alone; ``real`` itself where the block cannot be halved."""
        block = getattr(real, "__self__", None)
        # a forward on the instance is somebody else's; checkpointing wraps the whole block
        if not isinstance(block, nn.Module) or "forward" in block.__dict__ or block.training:
            return real
        if find_halves(type(block).forward)[0] is None:
            return real
        attend, apply_mlp = (HalfForward(None, block, keep_attention) for keep_attention in (True, False))
        return lambda hidden_states, *args, **kwargs: apply_mlp(attend(hidden_states, *args, **kwargs)[:, -self.keep :])

    def _run(self, groups: list[Tensor], real: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        outputs: list[Tensor] = []
        for start in range(0, len(groups), self.width or max(1, len(groups))):
            members = groups[start : start + self.width] if self.width else groups
            count = len(members)
            if count == 1:
                output = real(members[0], *args, **kwargs)
            else:
                repeat = partial(_repeat, count=count)
                repeated = _map_rows((args, kwargs), len(members[0]), repeat)
                output = real(torch.cat(members), *repeated[0], **repeated[1])
            if not isinstance(output, Tensor):
                raise CannotDriveError(f"a block returned {type(output).__name__} instead of a tensor")
            outputs += output.chunk(count) if count > 1 else [output]
        return outputs


class RowDriver:
    """Run every block on the rows whose mask keeps it.

    Args:
        masks: Bool ``[rows, num_blocks]``.
    """

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks
        self._index()

    def _index(self) -> None:
        every = self.masks.all(dim=0).tolist()
        self.rows = [None if all_rows else column.nonzero().flatten() for all_rows, column in zip(every, self.masks.T)]

    def keep_rows(self, kept: Tensor, cache: RowCache) -> None:
        """Drop all rows but ``kept`` (indices among the present rows), here and in the cache."""
        chosen = torch.zeros(len(self.masks), dtype=torch.bool, device=self.masks.device)
        chosen[kept] = True
        for layer, rows in zip(cache.layers, self.rows):
            layer.keep_rows(kept if rows is None else chosen[rows].nonzero().flatten())  # type: ignore[union-attr]
        self.masks = self.masks[kept]
        self._index()

    def make_forward(self, block_idx: int, real: Forward) -> Forward:
        """The ``forward`` of block ``block_idx``."""

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            rows = self.rows[block_idx]
            if rows is None:
                return real(hidden_states, *args, **kwargs)
            if not len(rows):
                return hidden_states
            selected = _map_rows((args, kwargs), len(hidden_states), lambda values: values.index_select(0, rows))
            output = real(hidden_states.index_select(0, rows), *selected[0], **selected[1])
            return hidden_states.index_copy(0, rows, output)

        return forward


def _repeat(rows: Tensor, count: int) -> Tensor:
    return rows.repeat(count, *[1] * (rows.ndim - 1))


def _map_rows(value: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to every tensor with a row per sample; a leading dimension of 1 broadcasts and stays."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] == 1:
            return value
        if value.shape[0] == batch:
            return change(value)
        raise CannotDriveError(f"a block is called with a tensor of shape {list(value.shape)} for {batch} rows")
    if isinstance(value, tuple):
        return tuple(_map_rows(item, batch, change) for item in value)
    if isinstance(value, dict):
        return {name: _map_rows(item, batch, change) for name, item in value.items()}
    return value
