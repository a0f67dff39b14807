"""What the families of the zoo are built from: sizes, weights and prompts."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t
from torch import Tensor

from tests.helpers.tiny_models import VOCABULARY

Model = tuple[t.PreTrainedModel, dict[str, Tensor]]

IMAGE_TOKEN = VOCABULARY - 1
ROWS, LENGTH = 3, 9
TEXT: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)
VISION: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
)


def ready(model: t.PreTrainedModel) -> t.PreTrainedModel:
    """Wide random weights, so that greedy candidates lie far apart, and no end token from a default configuration."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
        elif name.endswith("bias"):
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    for each in model.modules():
        if getattr(each, "generation_config", None) is not None:
            each.generation_config.eos_token_id = None
            each.generation_config.pad_token_id = 0
    return model.eval()


def prompts(images: int = 0, length: int = LENGTH) -> dict[str, Tensor]:
    """Prompts of different lengths; ``images`` image tokens each, which padding never reaches."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCABULARY - 4, (ROWS, length), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 1)):
        ids[row, :padding] = 0
        mask[row, :padding] = 0
    ids[:, 3 : 3 + images] = IMAGE_TOKEN
    return {"input_ids": ids, "attention_mask": mask}


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def without(*names: str, **others: Any) -> dict[str, Any]:
    return {name: value for name, value in TEXT.items() if name not in names} | others
