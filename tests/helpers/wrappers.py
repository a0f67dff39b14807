"""Modules around a model, as PEFT makes them, without PEFT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Wrapper(nn.Module):
    """Hands everything on; its own forward names no arguments."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model.generate(*args, **kwargs)


class LowRank(nn.Module):
    """A linear map plus one of low rank."""

    def __init__(self, linear: Any, rank: int = 2) -> None:
        super().__init__()
        self.linear = linear
        generator = torch.Generator().manual_seed(7)
        self.down = nn.Parameter(torch.randn(linear.in_features, rank, generator=generator) * 0.3)
        self.up = nn.Parameter(torch.randn(rank, linear.out_features, generator=generator) * 0.3)

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(states) + states @ self.down @ self.up


class SoftPrompt(Wrapper):
    """Learned embeddings in front of every prompt, which only ``generate`` and ``forward`` know of."""

    def __init__(self, model: Any, num_tokens: int = 3) -> None:
        super().__init__(model)
        width = model.get_input_embeddings().weight.shape[1]
        self.soft = nn.Parameter(torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(8)))

    def _put_in_front(self, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor | None]:
        rows = len(input_ids)
        embedded = self.base_model.get_input_embeddings()(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return {
            "inputs_embeds": torch.cat([self.soft.expand(rows, -1, -1), embedded], dim=1),
            "attention_mask": torch.cat([mask.new_ones(rows, len(self.soft)), mask], dim=1),
        }

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        return self.base_model(**self._put_in_front(input_ids, attention_mask), **kwargs)

    def generate(self, **kwargs: Any) -> Any:
        model = self.base_model
        real = model.prepare_inputs_for_generation

        def prepare(input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
            inputs = real(input_ids, **kwargs)
            inputs.pop("position_ids", None)
            if kwargs.get("is_first_iteration"):
                return inputs | self._put_in_front(inputs.pop("input_ids"), inputs.get("attention_mask"))
            if inputs.get("attention_mask") is not None:
                mask = inputs["attention_mask"]
                inputs["attention_mask"] = torch.cat([mask.new_ones(len(mask), len(self.soft)), mask], dim=1)
            return inputs

        model.prepare_inputs_for_generation = prepare
        try:
            return model.generate(**kwargs)
        finally:
            del model.prepare_inputs_for_generation
