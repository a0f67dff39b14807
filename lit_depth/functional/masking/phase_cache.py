"""KV-cache entries of blocks that are skipped in one phase only, and when they change."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer, LinearAttentionCacheLayerMixin

from lit_depth.functional.masking.kv_cache import (
    Claim,
    Entry,
    Placeholder,
    SkippedLayer,
    check_size,
    is_filled,
    refuse_placeholders,
)


class RetiredLayer(SkippedLayer):
    """Cache entry of a block that ran in the prefill and is skipped from the first decode step on.

    Nothing reads the prompt's keys and values again, so a growing entry gives their memory back. A static one keeps its
    memory, as static caches do, for the next prompt after ``cache.reset()``.

    Args:
        entry: what the block wrote the prompt's keys and values to.
    """

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self.entry = entry
        # the cache was reset: the next forward is a prefill, which needs the entry again
        self.emptied = False
        if not entry.is_compileable:
            entry.reset()

    def reset(self) -> None:
        """Empty the entry kept for the next prompt."""
        self.entry.reset()
        self.emptied = True


class DecodedLayer(Placeholder):
    """Cache entry of a block that is skipped in the prefill and runs in decode steps: it holds the decoded tokens only.

    Args:
        entry: the block's own entry, still empty.
    """

    def __init__(self, entry: CacheLayerMixin) -> None:
        super().__init__()
        self.entry = entry
        self.prompt_length = 0  # known from the first decode step on; until then the block is skipped
        self.num_tokens = 0  # decoded tokens that the entry was given
        self.is_open = False

    @property
    def is_compileable(self) -> bool:  # type: ignore[override]
        return self.entry.is_compileable

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        return self.entry.is_croppable

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values of decoded tokens.

        Raises:
            ValueError: the block runs outside the context that cuts its attention mask to these tokens.
        """
        if key_states is None and value_states is None:
            return super().update(key_states, value_states)
        if not self.is_open:
            raise ValueError(
                "this KV cache was made under a mask that skips a block in the prefill only; "
                "decode with it under that mask, or make a new cache"
            )
        self.num_tokens += key_states.shape[-2]
        return self.entry.update(key_states, value_states, *args, **kwargs)

    def reset(self) -> None:
        """Empty the entry; the next forward is a prefill."""
        self.entry.reset()
        self.prompt_length = self.num_tokens = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens of the sequence, of which some may belong to the prompt."""
        own = min(abs(tokens_to_remove), self.num_tokens)
        if self.entry.is_initialized:
            self.entry.crop(-own)  # type: ignore[attr-defined]
        self.num_tokens -= own
        self.prompt_length = max(0, self.prompt_length - (abs(tokens_to_remove) - own))

    def activate_past_recording(self) -> None:
        """Keep what a sliding window would drop until the next `crop`."""
        if hasattr(self.entry, "activate_past_recording"):
            self.entry.activate_past_recording()

    def offload(self) -> None:
        """See `CacheLayerMixin`, like the methods below."""
        self.entry.offload()

    def prefetch(self) -> None:
        self.entry.prefetch()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.entry.reorder_cache(beam_idx)  # type: ignore[arg-type]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.entry.batch_repeat_interleave(repeats)  # type: ignore[attr-defined]

    def batch_select_indices(self, indices: Tensor) -> None:
        self.entry.batch_select_indices(indices)  # type: ignore[attr-defined]


class PhaseClaim(Claim):
    """A claim that arranges entries anew when a prefill begins, and when the first decode step does."""

    def _holds_for_decode(self, cache: Cache) -> bool:
        if getattr(cache, "_lit_depth_claim", None) is not self:
            return False
        # The cache may have been emptied since. The length of a static entry is a tensor on the device, not waited for
        # at every step: such an entry cannot be cropped, and the entries of the skipped blocks notice a reset.
        lengths = (entry.get_seq_length() for entry in cache.layers if isinstance(entry, CacheLayerMixin))
        length = next(lengths, None)
        return not isinstance(length, int) or length > 0


class DecodeClaim(PhaseClaim):
    """Before every forward: in the prefill all blocks own an entry, from the first decode step on the active ones."""

    def __call__(self, cache: Cache) -> None:
        if self._holds_for_decode(cache) and not cache.layers[self.skipped[0]].emptied:  # type: ignore[union-attr]
            return
        check_size(cache, len(self.active))
        layers = cache.layers
        if any(map(is_filled, layers)):
            refuse_placeholders(layers, self.active)
            for block_idx in self.skipped:
                if not isinstance(layers[block_idx], RetiredLayer):
                    layers[block_idx] = RetiredLayer(layers[block_idx])
            cache._lit_depth_claim = self  # type: ignore[attr-defined]
        else:
            restored = [entry.entry if isinstance(entry, RetiredLayer) else entry for entry in layers]
            refuse_placeholders(restored, [True] * len(self.active))
            layers[:] = restored
            cache._lit_depth_claim = None  # type: ignore[attr-defined]


class PrefillClaim(PhaseClaim):
    """Before every forward: skipped blocks own an entry for the decoded tokens alone."""

    def __call__(self, cache: Cache) -> None:
        if self._holds_for_decode(cache) and cache.layers[self.skipped[0]].prompt_length:  # type: ignore[union-attr]
            return
        check_size(cache, len(self.active))
        layers = cache.layers
        refuse_placeholders(layers, self.active)
        if any(map(is_filled, layers)):
            self._begin_decode(cache)
        else:
            for block_idx in self.skipped:
                entry = layers[block_idx]
                if isinstance(entry, DummyLayer | LinearAttentionCacheLayerMixin) and type(entry) is not DecodedLayer:
                    raise ValueError(
                        f"block {block_idx} cannot decode without the prompt: expected a cache entry for keys and "
                        f"values, given {type(entry).__name__}; make a new cache, or skip the block in decode too"
                    )
            for block_idx in self.skipped:
                entry = layers[block_idx]
                if isinstance(entry, DecodedLayer):
                    entry.reset()
                else:
                    layers[block_idx] = DecodedLayer(entry)  # type: ignore[arg-type]
            cache._lit_depth_claim = None  # type: ignore[attr-defined]

    def _begin_decode(self, cache: Cache) -> None:
        entries = [(block_idx, cache.layers[block_idx]) for block_idx in self.skipped]
        foreign = [block_idx for block_idx, entry in entries if not isinstance(entry, DecodedLayer)]
        if foreign:
            raise ValueError(
                f"this KV cache was not filled under a mask that skips blocks {foreign} in the prefill only; "
                "make a new cache"
            )
        length = int(cache.get_seq_length())
        for _, entry in entries:
            assert isinstance(entry, DecodedLayer)
            entry.prompt_length = length - entry.num_tokens
        cache._lit_depth_claim = self  # type: ignore[attr-defined]
