"""What transformers names differently from version to version (the tests run on 5.24, and were run by hand on 5.20)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from transformers import cache_utils
from transformers.modeling_outputs import BaseModelOutputWithPast

# how models name the cache that they take and return: ``cache`` from 5.24 on, ``past_key_values`` before
CACHE_NAME = next(
    field.name for field in dataclasses.fields(BaseModelOutputWithPast) if field.name in ("cache", "past_key_values")
)

if TYPE_CHECKING or hasattr(cache_utils, "DummyLayer"):
    from transformers.cache_utils import DummyLayer
else:  # before 5.23; Python 3.10 gets 5.20

    class DummyLayer:
        """A cache entry without keys and values; a cache reads its length and its mask sizes from the other ones."""

        is_compileable = is_croppable = is_initialized = True
        supports_early_init = False
        # equal to neither True nor False: masks of neither kind are sized after this entry; but it counts as true, so
        # that an offloaded cache does not fetch it in place of the next one
        is_sliding = "neither"
        keys = values = None

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[None, None]:
            if key_states is not None or value_states is not None:
                raise NotImplementedError("this cache entry stores nothing")
            return None, None

        def get_max_length(self) -> int:
            return -1

        def _do_nothing(self, *args: Any, **kwargs: Any) -> None: ...

        offload = prefetch = reset = crop = reorder_cache = _do_nothing
        batch_repeat_interleave = batch_select_indices = _do_nothing
