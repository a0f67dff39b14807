"""The length of a sequence, told by no block: a mask may leave recurrent blocks alone, whose states do not know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

# attribute of a cache that has such a layer
_TOLD = "_lit_depth_told_length"


class LengthLayer(CacheLayerMixin):
    """Cache layer of a skipped block with attention that counts the tokens of the sequence, and stores nothing.

    transformers asks the first layer with keys and values for the length, so one such layer is enough.
    """

    supports_early_init = False
    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to make room for."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Raise ValueError: the block that would store something is skipped under the mask of this cache."""
        if key_states is None and value_states is None:
            return key_states, value_states
        raise ValueError(
            "this KV cache was made under a mask that skips a block which now runs; "
            "make a new cache for every mask, and one for the whole model"
        )

    def advance(self, num_tokens: int) -> None:
        """Note that the blocks are about to read so many more tokens."""
        self.length += num_tokens
        self.is_initialized = True

    def reset(self) -> None:
        self.length, self.is_initialized = 0, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens."""
        self.length -= min(abs(tokens_to_remove), self.length)

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        """There is nothing to move or to choose rows of, here and below."""

    def prefetch(self) -> None: ...

    def reorder_cache(self, beam_idx: Tensor) -> None: ...

    def batch_repeat_interleave(self, repeats: int) -> None: ...

    def batch_select_indices(self, indices: Tensor) -> None: ...


def tell_length(cache: Cache, block_idx: int) -> None:
    """Let the layer of a skipped block count the tokens of the sequence."""
    layer = LengthLayer()
    cache.layers[block_idx] = layer
    setattr(cache, _TOLD, layer)


def count_tokens(cache: Cache, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Note how many more tokens block 0 is about to read, by its arguments; nothing where a block tells the length."""
    layer = getattr(cache, _TOLD, None)
    if layer is not None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        layer.advance(hidden_states.shape[1])
