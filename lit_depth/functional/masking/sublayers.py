"""Run one half of a block: its attention or its MLP alone, and nothing in place of the other.

A form of block that can be halved is a pair of functions. Put together they read, word for word, as the ``forward`` of
such a block, and that is how a block is recognised: one that does anything else with its residual stream (attention
and MLP side by side, more norms, multipliers) is refused instead of run wrongly. So a new form is a new pair.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

Half = Callable[..., Tensor]


def _pre_norm_attention(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.input_layernorm(hidden_states)
    hidden_states, _ = self.self_attn(hidden_states=hidden_states, **arguments)
    hidden_states = residual + hidden_states
    return hidden_states


def _pre_norm_mlp(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states = self.mlp(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


def _post_norm_attention(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states, _ = self.self_attn(hidden_states=hidden_states, **arguments)
    hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


def _post_norm_mlp(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.mlp(hidden_states)
    hidden_states = self.post_feedforward_layernorm(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


def _both_norms_attention(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.input_layernorm(hidden_states)
    hidden_states, _ = self.self_attn(hidden_states=hidden_states, **arguments)
    hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


def _both_norms_mlp(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.pre_feedforward_layernorm(hidden_states)
    hidden_states = self.mlp(hidden_states)
    hidden_states = self.post_feedforward_layernorm(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


def _sandwich_attention(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.input_layernorm(hidden_states)
    hidden_states, _ = self.self_attn(hidden_states=hidden_states, **arguments)
    hidden_states = self.post_self_attn_layernorm(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


def _sandwich_mlp(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states = self.mlp(hidden_states)
    hidden_states = self.post_mlp_layernorm(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


def _dropout_attention(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.input_layernorm(hidden_states)
    hidden_states, self_attn_weights = self.self_attn(hidden_states=hidden_states, **arguments)
    hidden_states = residual + self.resid_attn_dropout(hidden_states)
    return hidden_states


def _dropout_mlp(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states = self.mlp(hidden_states)
    hidden_states = residual + self.resid_mlp_dropout(hidden_states)
    return hidden_states


def _scaled_attention(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.input_layernorm(hidden_states)
    hidden_states, _ = self.self_attn(hidden_states=hidden_states, **arguments)
    hidden_states = residual + hidden_states * self.residual_multiplier
    return hidden_states


def _scaled_mlp(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states = self.mlp(hidden_states)
    hidden_states = residual + hidden_states * self.residual_multiplier
    return hidden_states


def _routed_mlp(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states, _ = self.mlp(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


def _either_norm_attention(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    if not self.norm_after:
        hidden_states = self.input_layernorm(hidden_states)
    hidden_states, _ = self.self_attn(hidden_states=hidden_states, **arguments)
    if self.norm_after:
        hidden_states = self.input_layernorm(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


def _either_norm_mlp(self: Any, hidden_states: Tensor, **arguments: Any) -> Tensor:
    residual = hidden_states
    if not self.norm_after:
        hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states = self.mlp(hidden_states)
    if self.norm_after:
        hidden_states = self.post_attention_layernorm(hidden_states)
    hidden_states = residual + hidden_states
    return hidden_states


# (attention, MLP), and which blocks are so
FORMS: tuple[tuple[Half, Half], ...] = (
    (_pre_norm_attention, _pre_norm_mlp),  # Llama, Mistral, Qwen, Olmo, Olmoe
    (_post_norm_attention, _post_norm_mlp),  # Olmo2, Olmo3
    (_both_norms_attention, _both_norms_mlp),  # Gemma2, Gemma3
    (_sandwich_attention, _sandwich_mlp),  # Glm4, GLM-4V
    (_dropout_attention, _dropout_mlp),  # Phi3, Phi-4-multimodal
    (_scaled_attention, _scaled_mlp),  # Granite
    (_pre_norm_attention, _routed_mlp),  # gpt-oss
    (_either_norm_attention, _either_norm_mlp),  # Molmo2
)


class HalfForward:
    """Stands in for the ``forward`` of a block of which one half is skipped; that half does not run at all.

    Args:
        replaced: The instance attribute whose place it takes.
        block: A block that :func:`check_halves` accepts.
        keep_attention: True = its attention runs, False = its MLP.
    """

    def __init__(self, replaced: object, block: nn.Module, keep_attention: bool) -> None:
        block_forward = type(block).forward
        halves, _ = find_halves(block_forward)
        assert halves is not None
        self.replaced = replaced
        self.block: Any = block
        self.half = halves[0 if keep_attention else 1]
        # what the block's own forward hands on to its attention
        parameters = list(inspect.signature(block_forward).parameters.values())[2:]  # after self and hidden_states
        self.names = [parameter.name for parameter in parameters]
        self.defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        arguments = self.defaults | dict(zip(self.names, args)) | kwargs
        block = self.block
        if block.training and getattr(block, "gradient_checkpointing", False):
            # as transformers does around the forward that this one replaces: recomputed keys and values are not stored
            arguments |= {name: None for name, value in arguments.items() if isinstance(value, Cache)}
            return block._gradient_checkpointing_func(functools.partial(self.half, block, **arguments), hidden_states)
        return self.half(block, hidden_states, **arguments)


def check_halves(blocks: Iterable[nn.Module]) -> None:
    """Raise ValueError unless every block is of one of the :data:`FORMS`.

    >>> from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXConfig, GPTNeoXLayer
    >>> sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
    >>> check_halves([GPTNeoXLayer(GPTNeoXConfig(**sizes), layer_idx=0)])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: cannot skip half of a GPTNeoXLayer: expected ...
    """
    for block in blocks:
        halves, departure = find_halves(type(block).forward)
        if halves is None:
            raise ValueError(
                f"cannot skip half of a {type(block).__name__}: expected a block that adds attention and then its MLP "
                f"to the residual stream, but {departure}; skip whole blocks instead"
            )


def check_attends(masks: Tensor) -> None:
    """Raise ValueError for a mask of sublayers, of ``[..., 2 * num_blocks]``, that skips every attention."""
    if not masks[..., ::2].any(-1).all():
        raise ValueError("expected at least one active attention, got a sublayer mask of MLPs only")


@functools.cache
def find_halves(block_forward: Callable[..., Any]) -> tuple[tuple[Half, Half] | None, str]:
    """The halves of a block by the source of its ``forward``; None, and what is different, where it has no known form.

    Every argument must reach the attention under its own name, as it does in :class:`HalfForward`.
    """
    try:
        given = _statements(block_forward)
    except (OSError, TypeError, ValueError, SyntaxError):
        return None, "the source of its forward cannot be read"
    num_shared = 0
    for attention, mlp in FORMS:
        # both end with "return hidden_states"
        known = _statements(attention)[:-1] + _statements(mlp)
        if given == known:
            return (attention, mlp), ""
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(given, known))
        num_shared = max(num_shared, len(list(shared)))
    line = textwrap.shorten("".join(given[num_shared : num_shared + 1]), 200, placeholder="...")
    return None, f"its forward departs from theirs at {line!r}"


def _statements(function: Callable[..., Any]) -> list[str]:
    """Statements of a function, without comments and docstring; a call that is given all its arguments says just so."""
    function = inspect.unwrap(function)
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise TypeError(f"expected a function, got {type(definition).__name__}")
    parameters = list(inspect.signature(function).parameters.values())[1:]  # after self
    everything = {f"**{p.name}" if p.kind is p.VAR_KEYWORD else f"{p.name}={p.name}" for p in parameters}
    for node in ast.walk(definition):
        if isinstance(node, ast.Call) and {ast.unparse(keyword) for keyword in node.keywords} == everything:
            node.keywords = [ast.keyword(None, ast.Name("arguments"))]
    body = definition.body[1:] if ast.get_docstring(definition) is not None else definition.body
    return [ast.unparse(statement) for statement in body]
