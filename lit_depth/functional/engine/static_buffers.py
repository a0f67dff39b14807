"""Tensors of fixed addresses and shapes that a decode step reads and writes, and the step on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from lit_depth.functional.engine.decoding_configuration import CannotDriveError

# move on by one with every token
_COUNTED = ("position_ids", "cache_position")


class Prompt(NamedTuple):
    """What a step starts from: the state of a batch whose prompt was read and whose first token is chosen.

    Attributes:
        keys_values: Of each block ``[batch, heads, tokens, size]``, as the prompt's forward left them; None where the
            block keeps none. They are the last tokens only, where a block looks back no further.
        placeholders: Cache layers of those that keep none.
        inputs: Arguments of the first step's forward, as ``generate`` would give them, but for the cache.
        cache_name: The argument that takes the cache.
        length: Tokens of the prompt, padding included.
    """

    keys_values: list[tuple[Tensor, Tensor] | None]
    placeholders: list[Any]
    inputs: dict[str, Any]
    cache_name: str
    length: int

    @classmethod
    def of(cls, given: dict[str, Any]) -> Prompt:
        """Take a prompt's state from the arguments of the step behind it, the cache that was filled among them.

        Raises:
            CannotDriveError: A block keeps something else than keys and values, or the arguments are of another form.
        """
        cache_name = next((name for name, value in given.items() if isinstance(value, Cache)), None)
        if cache_name is None:
            raise CannotDriveError("its steps do not take a cache of transformers")
        cache = given[cache_name]
        inputs = {name: value for name, value in given.items() if name != cache_name}
        kept: list[tuple[Tensor, Tensor] | None] = []
        for block_idx, layer in enumerate(cache.layers):
            if isinstance(layer, DummyLayer):
                kept.append(None)
            elif type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized:
                kept.append((layer.keys, layer.values))
            else:
                raise CannotDriveError(f"block {block_idx} keeps a {type(layer).__name__}, not just keys and values")
        length, tokens = int(cache.get_seq_length()), inputs.get("input_ids")
        if tokens is None:
            raise CannotDriveError("its steps do not read input_ids")
        if inputs.get("attention_mask") is None:  # generate leaves out one without padding
            inputs["attention_mask"] = tokens.new_ones(len(tokens), length + 1)
        if inputs["attention_mask"].shape != (len(tokens), length + 1):
            raise CannotDriveError("its steps do not take an attention mask over all tokens")
        placeholders = [None if pair else layer for layer, pair in zip(cache.layers, kept)]
        return cls(kept, placeholders, inputs, cache_name, length)

    @property
    def batch(self) -> int:
        return len(self.inputs["input_ids"])

    def kind(self) -> tuple[Any, ...]:
        """What buffers must agree in to hold this prompt, besides their length; not which blocks keep something."""
        given = {**self.inputs, "attention_mask": self.inputs["attention_mask"][:, :0]}
        told = [(name, _form(v) if isinstance(v, Tensor) else repr(v)) for name, v in given.items()]
        return tuple(sorted(told))


class StaticBuffers:
    """Keys and values, tokens, positions and attention mask of a batch, of which only the values change.

    Nothing in a step waits for the device, and no shape in it depends on a value.

    Args:
        prompt: One of the kind that the buffers are for.
        capacity: Tokens that they hold, those of the prompt included.
    """

    def __init__(self, prompt: Prompt, capacity: int) -> None:
        self.capacity = capacity
        self.layers: list[StaticLayer | None] = [None] * len(prompt.keys_values)
        self.make_room(prompt)
        self.inputs = {
            # copies, which do not share memory by being expanded
            name: value.detach().clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value
            for name, value in prompt.inputs.items()
        }
        self.tokens: Tensor = self.inputs["input_ids"]
        mask = prompt.inputs["attention_mask"]
        self.mask = self.inputs["attention_mask"] = mask.new_zeros(prompt.batch, capacity)
        # tokens that were chosen, the next place in them, and the next place in the attention mask
        self.found = self.tokens.new_zeros(prompt.batch, capacity)
        self.num_found, self.place = (torch.zeros(1, dtype=torch.long, device=mask.device) for _ in range(2))

    def make_room(self, prompt: Prompt) -> None:
        """Add keys and values of blocks that this prompt's mask keeps and those of earlier prompts skipped."""
        for block_idx, pair in enumerate(prompt.keys_values):
            if pair is not None and self.layers[block_idx] is None:
                self.layers[block_idx] = _static_layer(*pair, self.capacity)

    def forward(self, model: Any, prompt: Prompt) -> Callable[[], Tensor]:
        """What runs a step's forward and gives logits ``[batch, vocabulary]``.

        Args:
            model: What runs.
            prompt: One of the kind that the buffers are for; its placeholders are those of the mask.
        """
        # a block that the mask skips may have room here, of another mask
        places = zip(self.layers, prompt.placeholders)
        layers: list[Any] = [layer if other is None else other for layer, other in places]
        cache = Cache(layers=layers)
        inputs = {**self.inputs, prompt.cache_name: cache}
        return lambda: model(**inputs, return_dict=True).logits[:, -1]

    def load(self, prompt: Prompt) -> None:
        """Begin with a prompt, whatever was decoded before."""
        for layer, pair in zip(self.layers, prompt.keys_values):
            if layer is not None and pair is not None:
                assert layer.keys is not None and layer.values is not None
                for room, given in zip((layer.keys, layer.values), pair):
                    # a block with a window has kept the last tokens; those before them it never sees again
                    room[:, :, prompt.length - given.shape[2] : prompt.length].copy_(given)
                    # masked, but what is not a number would come through a mask
                    room[:, :, prompt.length :].zero_()
                    room[:, :, : prompt.length - given.shape[2]].zero_()
                layer.cumulative_length.fill_(prompt.length)
        for name, value in prompt.inputs.items():
            if isinstance(value, Tensor) and name != "attention_mask":
                self.inputs[name].copy_(value)
        self.mask.zero_()
        self.mask[:, : prompt.length + 1].copy_(prompt.inputs["attention_mask"])
        self.place.fill_(prompt.length + 1)
        self.num_found.zero_()

    def advance(self, logits: Tensor) -> None:
        """Choose the next tokens by logits ``[batch, vocabulary]``, and be ready for the step that reads them."""
        self.tokens.copy_(logits.argmax(-1, keepdim=True))
        self.found.index_copy_(1, self.num_found, self.tokens)
        self.num_found.add_(1)
        self.mask.index_fill_(1, self.place, 1)
        self.place.add_(1)
        for name in _COUNTED:
            if isinstance(self.inputs.get(name), Tensor):
                self.inputs[name].add_(1)


def _static_layer(keys: Tensor, values: Tensor, capacity: int) -> StaticLayer:
    layer = StaticLayer(max_cache_len=capacity)
    layer.lazy_initialization(keys, values)
    return layer


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device
