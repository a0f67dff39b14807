"""KV-cache layers of blocks that are skipped in one phase only, and when they change."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer, LinearAttentionCacheLayerMixin

from lit_depth.functional.masking.kv_cache import (
    CacheLayer,
    Claim,
    Placeholder,
    SkippedLayer,
    check_length_is_told,
    check_size,
    is_filled,
    refuse_placeholders,
)


class RetiredLayer(SkippedLayer):
    """Cache layer of a block that ran in the prefill and is skipped from the first decode step on.

    Nothing reads the prompt's keys and values again, so a growing layer gives their memory back. A static one keeps its
    memory, as static caches do, for the next prompt after ``cache.reset()``.

    Args:
        layer: what the block wrote the prompt's keys and values to.
    """

    def __init__(self, layer: CacheLayer) -> None:
        super().__init__()
        self.layer = layer
        # the cache was reset: the next forward is a prefill, which needs the layer again
        self.emptied = False
        if not layer.is_compileable:
            layer.reset()

    def reset(self) -> None:
        """Empty the layer kept for the next prompt."""
        self.layer.reset()
        self.emptied = True


class DecodedLayer(Placeholder):
    """Cache layer of a block that is skipped in the prefill and runs in decode steps: it holds the decoded tokens only.

    Args:
        layer: the block's own layer, still empty.
    """

    def __init__(self, layer: CacheLayerMixin) -> None:
        super().__init__()
        self.layer = layer
        self.prompt_length = 0  # known from the first decode step on; until then the block is skipped
        self.num_tokens = 0  # decoded tokens that the layer was given
        self.is_open = False

    @property
    def is_compileable(self) -> bool:  # type: ignore[override]
        return self.layer.is_compileable

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        return self.layer.is_croppable

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
        return self.layer.update(key_states, value_states, *args, **kwargs)

    def reset(self) -> None:
        """Empty the layer; the next forward is a prefill."""
        self.layer.reset()
        self.prompt_length = self.num_tokens = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens of the sequence, of which some may belong to the prompt."""
        own = min(abs(tokens_to_remove), self.num_tokens)
        if self.layer.is_initialized:
            self.layer.crop(-own)  # type: ignore[attr-defined]
        self.num_tokens -= own
        self.prompt_length = max(0, self.prompt_length - (abs(tokens_to_remove) - own))

    def activate_past_recording(self) -> None:
        """Keep what a sliding window would drop until the next `crop`."""
        if hasattr(self.layer, "activate_past_recording"):
            self.layer.activate_past_recording()

    def offload(self) -> None:
        """See `CacheLayerMixin`, like the methods below."""
        self.layer.offload()

    def prefetch(self) -> None:
        self.layer.prefetch()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.layer.reorder_cache(beam_idx)  # type: ignore[arg-type]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.layer.batch_repeat_interleave(repeats)  # type: ignore[attr-defined]

    def batch_select_indices(self, indices: Tensor) -> None:
        self.layer.batch_select_indices(indices)  # type: ignore[attr-defined]


class PhaseClaim(Claim):
    """A claim that arranges layers anew when a prefill begins, and when the first decode step does."""

    has_drafts = False

    def _holds_for_decode(self, cache: Cache) -> bool:
        if getattr(cache, "_lit_depth_claim", None) is not self:
            return False
        # The cache may have been emptied since. The length of a static layer is a tensor on the device, not waited for
        # at every step: such a layer cannot be cropped, and the layers of the skipped blocks notice a reset.
        lengths = (layer.get_seq_length() for layer in cache.layers if isinstance(layer, CacheLayerMixin))
        length = next(lengths, None)
        return not isinstance(length, int) or length > 0


class DecodeClaim(PhaseClaim):
    """Before every forward: in the prefill all blocks own a layer, from the first decode step on the active ones."""

    def __call__(self, cache: Cache) -> None:
        if self._holds_for_decode(cache) and not cache.layers[self.skipped[0]].emptied:  # type: ignore[union-attr]
            return
        check_size(cache, len(self.reached()))
        layers = cache.layers
        if any(map(is_filled, layers)):
            refuse_placeholders(layers, self.active)
            for block_idx in self.skipped:
                if not isinstance(layers[block_idx], RetiredLayer):
                    layers[block_idx] = RetiredLayer(layers[block_idx])
            cache._lit_depth_claim = self  # type: ignore[attr-defined]
        else:
            restored = [layer.layer if isinstance(layer, RetiredLayer) else layer for layer in layers]
            refuse_placeholders(restored, [True] * len(self.active))
            check_length_is_told(restored, self.skipped)
            layers[:] = restored
            cache._lit_depth_claim = None  # type: ignore[attr-defined]


class PrefillClaim(PhaseClaim):
    """Before every forward: skipped blocks own a layer for the decoded tokens alone."""

    def __call__(self, cache: Cache) -> None:
        if self._holds_for_decode(cache) and cache.layers[self.skipped[0]].prompt_length:  # type: ignore[union-attr]
            return
        check_size(cache, len(self.reached()))
        layers = cache.layers
        refuse_placeholders(layers, self.active)
        if any(map(is_filled, layers)):
            self._begin_decode(cache)
        else:
            for block_idx in self.skipped:
                layer = layers[block_idx]
                if isinstance(layer, DummyLayer | LinearAttentionCacheLayerMixin) and type(layer) is not DecodedLayer:
                    raise ValueError(
                        f"block {block_idx} cannot decode without the prompt: expected a cache layer for keys and "
                        f"values, got {type(layer).__name__}; make a new cache, or skip the block in decode too"
                    )
            check_length_is_told(layers, self.skipped)
            for block_idx in self.skipped:
                layer = layers[block_idx]
                if isinstance(layer, DecodedLayer):
                    layer.reset()
                else:
                    layers[block_idx] = DecodedLayer(layer)  # type: ignore[arg-type]
            cache._lit_depth_claim = None  # type: ignore[attr-defined]

    def _begin_decode(self, cache: Cache) -> None:
        layers = [(block_idx, cache.layers[block_idx]) for block_idx in self.skipped]
        foreign = [block_idx for block_idx, layer in layers if not isinstance(layer, DecodedLayer)]
        if foreign:
            raise ValueError(
                f"this KV cache was not filled under a mask that skips blocks {foreign} in the prefill only; "
                "make a new cache"
            )
        length = int(cache.get_seq_length())
        for _, layer in layers:
            assert isinstance(layer, DecodedLayer)
            layer.prompt_length = length - layer.num_tokens
        cache._lit_depth_claim = self  # type: ignore[attr-defined]
