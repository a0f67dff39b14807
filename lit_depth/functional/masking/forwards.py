"""Stand-ins for the ``forward`` of a whole block: the identity, always or in one phase only."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_depth.functional.masking.kv_cache import SkippedLayer, find_cache
from lit_depth.functional.masking.phase_cache import DecodedLayer


class Identity:
    """Stands in for the ``forward`` of a skipped block.

    Args:
        num_outputs: Values in the tuple that the block returns; None = it returns the bare tensor.
        replaced: The instance attribute whose place it takes; None = there was none.
    """

    def __init__(self, num_outputs: int | None, replaced: object = None) -> None:
        self.replaced = replaced
        self.other_outputs = None if num_outputs is None else (None,) * (num_outputs - 1)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        return hidden_states if self.other_outputs is None else (hidden_states, *self.other_outputs)


# one object for all contexts: torch.compile would compile anew for another one
shared_identity = functools.cache(Identity)


class PhasedForward(Identity):
    """Stands in for the ``forward`` of a block that is skipped in one phase only; the cache says in which one it is."""

    def __init__(self, replaced: object, block: nn.Module, block_idx: int) -> None:
        block_forward = type(block).forward
        super().__init__(num_outputs(block_forward), replaced)
        self.real: Any = block_forward.__get__(block) if replaced is None else replaced
        self.arguments = list(inspect.signature(block_forward).parameters)[2:]  # after self and hidden_states
        self.block_idx = block_idx


class SkipInDecode(PhasedForward):
    """The identity once the cache has given the block's layer up."""

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = find_cache(args, kwargs)
        if cache is not None and isinstance(cache.layers[self.block_idx], SkippedLayer):
            return super().__call__(hidden_states)
        return self.real(hidden_states, *args, **kwargs)


class SkipInPrefill(PhasedForward):
    """The identity until the cache holds a prompt; then the block sees the decoded tokens alone."""

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = find_cache(args, kwargs)
        layer = None if cache is None else cache.layers[self.block_idx]
        if not isinstance(layer, DecodedLayer) or not layer.prompt_length:
            return super().__call__(hidden_states)
        arguments = dict(zip(self.arguments, args)) | kwargs
        biased = [name for name in ("alibi", "position_bias") if arguments.get(name) is not None]
        if biased:
            raise ValueError(f"cannot decode without the prompt: block {self.block_idx} takes {', '.join(biased)}")
        arguments["attention_mask"] = decoded_columns(arguments.get("attention_mask"), layer, hidden_states.shape[1])
        layer.is_open = True
        try:
            return self.real(hidden_states, **arguments)
        finally:
            layer.is_open = False


def decoded_columns(attention_mask: object, layer: DecodedLayer, num_new: int) -> Tensor | None:
    """Cut an attention mask, made for the whole sequence, to the keys that ``layer`` holds.

    Args:
        attention_mask: ``[..., keys]``, bool, additive, or of zeros and ones; None = every key is visible.
        num_new: tokens of this forward, which the layer is about to be given.
    """
    if attention_mask is None and not layer.is_compileable:
        return None
    if not isinstance(attention_mask, Tensor):
        given = "none for a static cache" if attention_mask is None else type(attention_mask).__name__
        raise ValueError(f"cannot decode without the prompt: expected a tensor as attention mask, got {given}")
    length, offset = layer.layer.get_mask_sizes(num_new)
    num_columns, num_seen = attention_mask.shape[-1], layer.prompt_length + layer.num_tokens + num_new
    # columns are positions: they end with the newest token where layers grow or slide, begin at 0 where there is room
    first_position = max(0, num_seen - num_columns)
    start = layer.prompt_length + offset - first_position
    if start < 0:
        raise ValueError(
            f"cannot decode without the prompt: the attention mask begins at position {first_position}, but a skipped "
            f"block needs it from {layer.prompt_length + offset} on; keep a block that attends as far back active"
        )
    columns = attention_mask[..., start : start + length]
    # room of a static layer beyond the positions that the mask speaks of
    hidden = torch.finfo(columns.dtype).min if columns.is_floating_point() else 0
    missing = length - columns.shape[-1]
    return nn.functional.pad(columns, (0, missing), value=hidden) if missing else columns


@functools.cache
def num_outputs(block_forward: Callable[..., Any]) -> int | None:
    """Number of values in the tuple that a block's forward returns; None where it returns the bare tensor.

    Read from the source of ``forward``: its annotation is wrong in many families, and a skipped block 0 has to answer
    before any block has run. Most families return the tensor, so that is what no source means.
    """
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(block_forward)))
        function = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    if not returned:
        return None
    last = returned[-1]
    if isinstance(last, ast.Name):  # "outputs = (hidden_states,)", perhaps extended, then "return outputs"
        values = [
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == last.id for t in node.targets)
        ]
        last = next((value for value in values if isinstance(value, ast.Tuple)), last)
    if isinstance(last, ast.BinOp) and isinstance(last.left, ast.Tuple):  # "return (hidden_states,) + outputs"
        last = last.left
    return len(last.elts) if isinstance(last, ast.Tuple) else None
