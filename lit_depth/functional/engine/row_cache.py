"""The engine's KV cache: each block's layer holds the rows that run it, and nothing grows by copying."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from lit_depth.functional.engine.decoding_configuration import CannotDriveError


@dataclass
class Extent:
    """How many tokens the layers of one cache hold, and how many they have room for.

    Layers share it in place of the cache itself: a cycle would keep all keys and values until Python looks for cycles.
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
        self.num_new = 0  # tokens that the last forward wrote
        # prefill by groups: what each group's call produced, until `assign` deals it out to rows
        self.parts: list[tuple[Tensor, Tensor]] | None = None
        self.kept_parts: list[tuple[Tensor, Tensor]] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, _ = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.extent.capacity, key_states.shape[-1])
        self.values = value_states.new_empty(rows, heads, self.extent.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.num_new = key_states.shape[-2]
        if self.parts is not None:
            self.parts.append((key_states, value_states))
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            if self.extent.length and self.keys is not None and self.values is not None:
                self.keys[:, :, : self.extent.length] = self.values[:, :, : self.extent.length] = 0
        assert self.keys is not None and self.values is not None
        start, stop = self.extent.length, self.extent.length + key_states.shape[-2]
        self.keys[:, :, start:stop] = key_states
        self.values[:, :, start:stop] = value_states
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def assign(self, sources: Tensor, again: bool = False) -> None:
        """Give each row its prompt's keys and values: row i takes row ``sources[i]`` of all parts in a line.

        Args:
            sources: -1 = this row has none, and its block hides the prompt.
            again: Keep the parts: they are dealt out once more.
        """
        parts = self.parts if self.kept_parts is None else self.kept_parts
        assert parts is not None
        self.parts, self.kept_parts = None, parts if again else None
        # without any part, nothing tells the shapes before the block runs
        if not len(sources) or not parts:
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
            if sources[row] < 0:  # numbers, which no attention is paid to
                self.keys[row:stop, :, :length] = self.values[row:stop, :, :length] = 0
                continue
            keys, values = parts[int(part[row])]
            taken = slice(int(sources[row] - starts[part[row]]), int(sources[stop - 1] - starts[part[row]]) + 1)
            self.keys[row:stop, :, :length] = keys[taken, :, :length]
            self.values[row:stop, :, :length] = values[taken, :, :length]

    def keep_rows(self, kept: Tensor) -> None:
        """Drop all rows but ``kept`` (indices among this layer's rows)."""
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

    @property
    def is_initialized(self) -> bool:
        """Whether it holds a prompt; a block that no row runs has nothing to show."""
        return self.extent.length > 0

    def advance(self, ran: Sequence[bool], written: int, length: int | None = None) -> None:
        """Note that a forward is over; the next one goes on at ``length`` (None = after what was written).

        Raises:
            CannotDriveError: Unless the blocks that ran wrote ``written`` tokens each, and no other did.
        """
        for block_idx, (layer, did_run) in enumerate(zip(self.layers, ran)):
            num_new, layer.num_new = layer.num_new, 0  # type: ignore[union-attr]
            if did_run and not num_new:
                raise CannotDriveError(f"block {block_idx} keeps its state elsewhere than in keys and values")
            if num_new != written * did_run:
                raise CannotDriveError(f"block {block_idx} keeps keys and values of {num_new} tokens, not of {written}")
        self.extent.length = self.extent.length + written if length is None else length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.extent.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.extent.length + query_length, 0
