"""KV-cache layers under a block mask: who owns one, who has none, and when that changes.

transformers reads the sequence length and the attention-mask sizes from the first layer that is not a `DummyLayer`. So
a layer that does not hold every token of the sequence has to be one: it is then never asked for its length.

A `Claim` arranges the layers of a cache before block 0 of every forward, when the cache still holds exactly what the
earlier forwards wrote: that is what tells a prefill (nothing) from a decode step (something).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
)

from lit_depth.functional.masking.told_length import RUNS_AFTER_ALL, LengthLayer, tell_length

CacheLayer = CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer


def find_cache(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Cache | None:
    """The cache among the arguments of a call, by its type: families name the argument differently."""
    return next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), None)


class Placeholder(DummyLayer):
    """Cache layer that does not hold every token of the sequence; the classes below say which ones it holds."""


class SkippedLayer(Placeholder):
    """Cache layer of a skipped block: stores nothing, and refuses the block if it runs after all."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Raise ValueError; like its base, accept None so that caches can be rebuilt across processes."""
        if key_states is None and value_states is None:
            return super().update(key_states, value_states)
        raise ValueError(RUNS_AFTER_ALL)


class Claim:
    """Before every forward: skipped blocks own no layer.

    Args:
        active: One bool per block, True = the block runs.
        config: That of the decoder; None = there is none.
    """

    # whether a draft by the first blocks alone has its place here
    has_drafts = True

    def __init__(self, active: Sequence[bool], config: Any = None) -> None:
        self.active = tuple(active)
        self.skipped = [block_idx for block_idx, is_active in enumerate(active) if not is_active]
        self.config, self.depth = config, getattr(config, "num_hidden_layers", None)

    def reached(self) -> tuple[bool, ...]:
        """`active` as far as the decoder goes: ``assistant_early_exit`` makes it leave after its first blocks.

        Raises:
            ValueError: No block of a draft would run, or prefill and decode differ.
        """
        depth = getattr(self.config, "num_hidden_layers", None)
        if depth is None or depth == self.depth:
            return self.active
        if self.has_drafts and any(self.active[:depth]):
            return self.active[:depth]
        self.give_back_depth()
        needed = (
            f"assistant_early_exit of at least {self.active.index(True) + 1}, the first active block"
            if self.has_drafts
            else "no assistant_early_exit where prefill and decode differ"
        )
        raise ValueError(f"expected {needed}, got {depth}")

    def give_back_depth(self) -> None:
        """Make the decoder as deep as it was: transformers does so after drafts that ended without an error only."""
        if getattr(self.config, "num_hidden_layers", None) != self.depth:
            self.config.num_hidden_layers = self.depth

    def __call__(self, cache: Cache) -> None:
        # a cache that has been through this is not looked over again at every decode step
        if getattr(cache, "_lit_depth_claim", None) is not self:
            claim_layers(cache, self.reached())
            cache._lit_depth_claim = self  # type: ignore[attr-defined]


def claim_layers(cache: Cache, owned: Sequence[bool]) -> None:
    """Make ``cache`` hold layers for the owned blocks only: placeholders go where ``owned`` is False.

    Nothing happens when the cache already has this pattern. All checks come before the first change.

    Raises:
        ValueError: the cache holds tokens written under another pattern, or it is of a kind or size that does not fit.
    """
    check_size(cache, len(owned))
    layers = cache.layers
    refuse_placeholders(layers, owned)
    missing = [
        block_idx
        for block_idx, (is_owned, layer) in enumerate(zip(owned, layers))
        if not is_owned and not _stores_nothing(layer)
    ]
    if not missing:
        return
    if any(map(is_filled, layers)):
        raise ValueError(
            f"this KV cache was filled without skipping blocks {missing}, which the mask skips; make a new cache"
        )
    untold = lost_attention(layers, missing)
    placeholder = SkippedLayer()  # it holds nothing; torch.compile checks one object before every forward, not many
    for block_idx in missing:
        layers[block_idx] = placeholder
    if untold:
        tell_length(cache, untold[0])


def check_size(cache: Cache, num_blocks: int) -> None:
    if isinstance(cache, EncoderDecoderCache):
        raise ValueError("expected the cache of a decoder-only model, got an EncoderDecoderCache")
    if type(cache).__len__ is not Cache.__len__:
        raise ValueError(f"cannot skip blocks with a {type(cache).__name__}: it keeps states beside its layers")
    layers = cache.layers
    if cache.layer_class_to_replicate is not None:
        # a cache that grows on first use: let it grow now, so that every block finds its own layer
        layers.extend(cache.layer_class_to_replicate() for _ in range(num_blocks - len(layers)))
    if len(layers) < num_blocks:
        raise ValueError(f"expected a KV cache with a layer for each of {num_blocks} blocks, got {len(layers)}")


def check_length_is_told(layers: Sequence[CacheLayer], skipped: Sequence[int]) -> None:
    """Raise ValueError where only recurrent states would be left of a cache that has keys and values."""
    lost = lost_attention(layers, skipped)
    if lost:
        raise ValueError(
            f"expected at least one active block with attention, got a mask that skips all of them: {lost}; "
            "the others keep recurrent states, which do not tell the length of a sequence"
        )


def lost_attention(layers: Sequence[CacheLayer], skipped: Sequence[int]) -> list[int]:
    """The skipped blocks that have keys and values, where all others that keep something have recurrent states."""
    lost = [block_idx for block_idx in skipped if isinstance(layers[block_idx], CacheLayerMixin)]
    left = [layer for block_idx, layer in enumerate(layers) if block_idx not in skipped]
    is_told = any(isinstance(layer, CacheLayerMixin) for layer in left)
    return lost if not is_told and any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in left) else []


def refuse_placeholders(layers: Sequence[CacheLayer], owned: Sequence[bool]) -> None:
    for block_idx, (is_owned, layer) in enumerate(zip(owned, layers)):
        if is_owned and isinstance(layer, Placeholder | LengthLayer):
            raise ValueError(
                f"block {block_idx} is active, but this KV cache was made under a mask that skips it; make a new cache"
            )


def _stores_nothing(layer: CacheLayer) -> bool:
    return isinstance(layer, SkippedLayer | LengthLayer) or (
        isinstance(layer, DummyLayer) and not isinstance(layer, Placeholder)
    )


def is_filled(layer: CacheLayer) -> bool:
    if isinstance(layer, CacheLayerMixin):
        # the length of a static layer is a tensor on the device; it is read only while placeholders are still missing
        return layer.is_initialized and int(layer.get_seq_length()) > 0
    return isinstance(layer, LinearAttentionCacheLayerMixin) and any(layer.has_previous_state.values())
