"""What the last query of every block's attention sees: noted by a stand-in for transformers' attention function."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_depth.functional.model_state import attention_of


class Attention(NamedTuple):
    """What the last query of an attention module sees."""

    module: nn.Module
    logits: Tensor  # [heads, keys], -inf where a key is not visible
    values: Tensor  # [key-value heads, keys, head_dim]


class Recorder:
    """Stands in for the attention function: notes what the blocks' last query sees, or answers in its place."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.home = {module: block for block in blocks for module in block.modules()}
        self.attentions: dict[nn.Module, list[Attention]] = {}
        self.replay: Tensor | None = None  # head outputs [rows, 1, heads, head_dim]

    def __call__(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **kwargs: Any,
    ) -> Any:
        block = self.home.get(module)  # None in a vision tower, or in another model
        if block is not None and self.replay is not None:
            return self.replay, None
        if block is not None:
            logits = _final_logits(query, key, attention_mask, kwargs.get("scaling"), kwargs.get("softcap"))
            self.attentions.setdefault(block, []).append(Attention(module, logits, value[0]))
        return original(module, query, key, value, attention_mask, **kwargs)


def _final_logits(query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> Tensor:
    """Logits ``[heads, keys]`` of the last query; query and key ``[1, heads or key-value heads, seq, head_dim]``."""
    grouped = query[0, :, -1].unflatten(0, (key.shape[1], -1))  # [key-value heads, queries of each, head_dim]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (grouped @ key[0].mT).flatten(0, 1) * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask is None:  # causal: the last query sees every key
        return logits
    row = mask[0, :, -1, : key.shape[2]]
    if row.dtype == torch.bool:
        return logits.masked_fill(~row, -torch.inf)
    return (logits + row).masked_fill(row <= torch.finfo(row.dtype).min, -torch.inf)


class Hider:
    """Stands in for the attention function: hides keys from queries in the blocks, as it is told to.

    Attributes:
        hidden: Bool ``[rows, 1, queries, keys]``, True = this query does not see this key; None = nothing is hidden.
        num_calls: Attentions that were hidden from.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.inside = {module for block in blocks for module in block.modules()}
        self.hidden: Tensor | None = None
        self.num_calls = 0

    def __call__(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **kwargs: Any,
    ) -> Any:
        if self.hidden is not None and module in self.inside:
            if (query.shape[2], key.shape[2]) != self.hidden.shape[2:]:
                raise ValueError(
                    f"expected an attention of {self.hidden.shape[2]} tokens to themselves, but "
                    f"{type(module).__name__} has {query.shape[2]} queries and {key.shape[2]} keys"
                )
            attention_mask = _hide(attention_mask, self.hidden, query.dtype)
            self.num_calls += 1
        return original(module, query, key, value, attention_mask, **kwargs)


def _hide(given: Tensor | None, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive mask ``[rows, 1 or heads, queries, keys]`` that hides these keys too; none given is a causal one."""
    lowest = torch.finfo(dtype).min
    if given is None:
        given = torch.ones(hidden.shape[2:], dtype=torch.bool, device=hidden.device).tril()[None, None]
    if given.dtype == torch.bool:
        return torch.zeros((), dtype=dtype, device=given.device).masked_fill(~given | hidden, lowest)
    return given[..., : hidden.shape[3]].masked_fill(hidden, lowest)


@contextmanager
def recording(blocks: nn.ModuleList, config: Any) -> Iterator[Recorder]:
    """Hand a recorder to every attention module that asks for its attention function."""
    recorder = Recorder(blocks)
    with standing_in(recorder, config):
        yield recorder


@contextmanager
def standing_in(stand_in: Callable[..., Any], config: Any) -> Iterator[None]:
    """Call ``stand_in(original, module, ...)`` wherever a module asks for its attention function."""
    name = attention_of(config)
    if name not in ("sdpa", "eager"):  # others have masks of their own kinds, or no float32
        raise ValueError(
            f"expected a model with attn_implementation 'sdpa' or 'eager', got {name!r}; "
            "model.set_attn_implementation('sdpa') changes it"
        )
    own = vars(ALL_ATTENTION_FUNCTIONS)  # an instance attribute hides the method
    found, get_interface = own.get("get_interface"), ALL_ATTENTION_FUNCTIONS.get_interface
    own["get_interface"] = lambda name, default: partial(stand_in, get_interface(name, default))
    try:
        yield
    finally:
        del own["get_interface"]
        if found is not None:
            own["get_interface"] = found
