"""KV-cache entries under a block mask: who owns one, who has none, and when that changes.

transformers reads the sequence length and the attention-mask sizes from the first entry that is not a `DummyLayer`. So
an entry that does not hold every token of the sequence has to be one: it is then never asked for its length.

A `Claim` arranges the entries of a cache before block 0 of every forward, when the cache still holds exactly what the
earlier forwards wrote: that is what tells a prefill (nothing) from a decode step (something).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
)

from lit_depth.functional.compatibility import DummyLayer

Entry = CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer


def find_cache(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Cache | None:
    """The cache among the arguments of a call, by its type: families name the argument differently."""
    return next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), None)


class SkippedLayer(DummyLayer):
    """Cache entry of a skipped block: stores nothing, and refuses the block if it runs after all."""

    # what a cache takes from an entry without it; torch.compile would look in vain for it before every forward
    is_sliding = getattr(DummyLayer, "is_sliding", False)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Raise ValueError; like its base, accept None so that caches can be rebuilt across processes."""
        if key_states is None and value_states is None:
            return super().update(key_states, value_states)
        raise ValueError(
            "this KV cache was made under a mask that skips a block which now runs; "
            "make a new cache for every mask, and one for the whole model"
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


class DecodedLayer(DummyLayer):
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


class Claim:
    """Before every forward: skipped blocks own no entry.

    Args:
        active: One bool per block, True = the block runs.
    """

    def __init__(self, active: Sequence[bool]) -> None:
        self.active = tuple(active)
        self.skipped = [block_idx for block_idx, is_active in enumerate(active) if not is_active]
        # what the decoder made for itself, still empty, and whether it is about to make one
        self._own_cache: DynamicCache | None = None
        self._is_awaited = False

    def __call__(self, cache: Cache) -> None:
        # a cache that has been through this is not looked over again at every decode step
        if getattr(cache, "_lit_depth_claim", None) is not self:
            claim_entries(cache, self.active)
            cache._lit_depth_claim = self  # type: ignore[attr-defined]
        if self._is_awaited:
            self._is_awaited = False
            is_plain = type(cache) is DynamicCache and all(type(entry) in _COPYABLE for entry in cache.layers)
            if is_plain and not any(map(_is_filled, cache.layers)):
                self._own_cache = _copy_empty(cache)

    def new_cache(self, is_wanted: bool) -> DynamicCache | None:
        """The empty cache that the decoder would make for itself in this forward, once it was seen to make one.

        transformers asks the config anew for the entry of every block, skipped or not, of every cache: about 20
        microseconds each, which a model without the skipped blocks would not spend.

        Args:
            is_wanted: Whether the decoder is about to make a cache; else the answer is None.
        """
        self._is_awaited = is_wanted and self._own_cache is None
        return _copy_empty(self._own_cache) if is_wanted and self._own_cache is not None else None

    def _holds_for_decode(self, cache: Cache) -> bool:
        if getattr(cache, "_lit_depth_claim", None) is not self:
            return False
        # The cache may have been emptied since. The length of a static entry is a tensor on the device, not waited for
        # at every step: such an entry cannot be cropped, and the entries of the skipped blocks notice a reset.
        lengths = (entry.get_seq_length() for entry in cache.layers if isinstance(entry, CacheLayerMixin))
        length = next(lengths, None)
        return not isinstance(length, int) or length > 0


class DecodeClaim(Claim):
    """Before every forward: in the prefill all blocks own an entry, from the first decode step on the active ones."""

    def new_cache(self, is_wanted: bool) -> None:
        """The decoder makes its own: its entries change between prefill and decode."""

    def __call__(self, cache: Cache) -> None:
        if self._holds_for_decode(cache) and not cache.layers[self.skipped[0]].emptied:  # type: ignore[union-attr]
            return
        _check_size(cache, len(self.active))
        layers = cache.layers
        if any(map(_is_filled, layers)):
            _refuse_placeholders(layers, self.active)
            for block_idx in self.skipped:
                if not isinstance(layers[block_idx], RetiredLayer):
                    layers[block_idx] = RetiredLayer(layers[block_idx])
            cache._lit_depth_claim = self  # type: ignore[attr-defined]
        else:
            restored = [entry.entry if isinstance(entry, RetiredLayer) else entry for entry in layers]
            _refuse_placeholders(restored, [True] * len(self.active))
            _check_length_is_told(restored, self.skipped)
            layers[:] = restored
            cache._lit_depth_claim = None  # type: ignore[attr-defined]


class PrefillClaim(Claim):
    """Before every forward: skipped blocks own an entry for the decoded tokens alone."""

    def new_cache(self, is_wanted: bool) -> None:
        """See `DecodeClaim.new_cache`."""

    def __call__(self, cache: Cache) -> None:
        if self._holds_for_decode(cache) and cache.layers[self.skipped[0]].prompt_length:  # type: ignore[union-attr]
            return
        _check_size(cache, len(self.active))
        layers = cache.layers
        _refuse_placeholders(layers, self.active)
        if any(map(_is_filled, layers)):
            self._begin_decode(cache)
        else:
            for block_idx in self.skipped:
                entry = layers[block_idx]
                if isinstance(entry, DummyLayer | LinearAttentionCacheLayerMixin) and type(entry) is not DecodedLayer:
                    raise ValueError(
                        f"block {block_idx} cannot decode without the prompt: expected a cache entry for keys and "
                        f"values, given {type(entry).__name__}; make a new cache, or skip the block in decode too"
                    )
            _check_length_is_told(layers, self.skipped)
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


def claim_entries(cache: Cache, owned: Sequence[bool]) -> None:
    """Make ``cache`` hold entries for the owned blocks only: placeholders go where ``owned`` is False.

    Nothing happens when the cache already has this pattern. All checks come before the first change.

    Raises:
        ValueError: the cache holds tokens written under another pattern, or it is of a kind or size that does not fit;
            or no entry of keys and values is left, which are what tells the length of a sequence.
    """
    _check_size(cache, len(owned))
    layers = cache.layers
    _refuse_placeholders(layers, owned)
    missing = [
        block_idx
        for block_idx, (is_owned, entry) in enumerate(zip(owned, layers))
        if not is_owned and (not isinstance(entry, DummyLayer) or isinstance(entry, DecodedLayer))
    ]
    if not missing:
        return
    if any(map(_is_filled, layers)):
        raise ValueError(
            f"this KV cache was filled without skipping blocks {missing}, which the mask skips; make a new cache"
        )
    _check_length_is_told(layers, missing)
    placeholder = SkippedLayer()  # it holds nothing; torch.compile checks one object before every forward, not many
    for block_idx in missing:
        layers[block_idx] = placeholder


# entries that hold nothing but plain values until their first update
_COPYABLE = (DynamicLayer, DynamicSlidingWindowLayer, SkippedLayer)


def _copy_empty(cache: Cache) -> DynamicCache:
    """A cache like ``cache``, whose entries are still empty. (The copy module takes five times as long.)"""
    new = object.__new__(DynamicCache)
    new.__dict__ |= cache.__dict__
    new.layers = []
    placeholder = SkippedLayer()
    for entry in cache.layers:
        if type(entry) is SkippedLayer:
            new.layers.append(placeholder)
            continue
        new.layers.append(object.__new__(type(entry)))
        new.layers[-1].__dict__ |= entry.__dict__
    return new


def _check_size(cache: Cache, num_blocks: int) -> None:
    if isinstance(cache, EncoderDecoderCache):
        raise ValueError("expected the cache of a decoder-only model, given an EncoderDecoderCache")
    if type(cache).__len__ is not Cache.__len__:
        raise ValueError(f"cannot skip blocks with a {type(cache).__name__}: it keeps states beside its entries")
    layers = cache.layers
    if cache.layer_class_to_replicate is not None:
        # a cache that grows on first use: let it grow now, so that every block finds its own entry
        layers.extend(cache.layer_class_to_replicate() for _ in range(num_blocks - len(layers)))
    if len(layers) < num_blocks:
        raise ValueError(f"expected a KV cache with an entry for each of {num_blocks} blocks, given {len(layers)}")


def _check_length_is_told(entries: Sequence[Entry], skipped: Sequence[int]) -> None:
    """Raise ValueError where only recurrent states would be left of a cache that has keys and values."""
    lost = [block_idx for block_idx in skipped if isinstance(entries[block_idx], CacheLayerMixin)]
    left = [entry for block_idx, entry in enumerate(entries) if block_idx not in skipped]
    is_told = any(isinstance(entry, CacheLayerMixin) for entry in left)
    if lost and not is_told and any(isinstance(entry, LinearAttentionCacheLayerMixin) for entry in left):
        raise ValueError(
            f"expected at least one active block with attention, given a mask that skips all of them: {lost}; "
            "the others keep recurrent states, which do not tell the length of a sequence"
        )


def _refuse_placeholders(entries: Sequence[Entry], owned: Sequence[bool]) -> None:
    for block_idx, (is_owned, entry) in enumerate(zip(owned, entries)):
        if is_owned and isinstance(entry, SkippedLayer | DecodedLayer):
            raise ValueError(
                f"block {block_idx} is active, but this KV cache was made under a mask that skips it; make a new cache"
            )


def _is_filled(entry: Entry) -> bool:
    if isinstance(entry, CacheLayerMixin):
        # the length of a static entry is a tensor on the device; it is read only while placeholders are still missing
        return entry.is_initialized and int(entry.get_seq_length()) > 0
    return isinstance(entry, LinearAttentionCacheLayerMixin) and any(entry.has_previous_state.values())
