"""Tiny random Molmos of all three text families, and prompts with images for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Olmo2Config, OlmoeConfig, Qwen2Config

from lit_depth.models.molmo import MolmoConfig, MolmoForConditionalGeneration

FAMILIES = ("olmoe", "qwen2", "olmo2")
VOCABULARY, ADDED, LENGTH = 48, 8, 12


def tiny_config(
    family: str, vocabulary: int = VOCABULARY, context: int = 128, blocks: int = 3, **others: Any
) -> MolmoConfig:
    sizes: dict[str, Any] = dict(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    text = {
        "olmoe": lambda: OlmoeConfig(**sizes, num_experts=4, num_experts_per_tok=2),
        "qwen2": lambda: Qwen2Config(**sizes),
        "olmo2": lambda: Olmo2Config(**sizes),
    }[family]()
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    given = {"vit_layers": (-1, -2), "additional_vocab_size": ADDED, "tokenizer_vocab_size": vocabulary - 2}
    return MolmoConfig(text_config=text, vision_config=vision, **given | others)


def tiny_molmo(family: str, **sizes: int) -> MolmoForConditionalGeneration:
    torch.manual_seed(0)
    model = MolmoForConditionalGeneration(tiny_config(family, **sizes))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return model.eval()


def tiny_inputs(rows: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Left-padded prompts with one crop of 4 image tokens each; the last row has padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (rows, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    ids[-1, :2], mask[-1, :2] = 0, 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "images": torch.randn(rows, 1, 16, 48, generator=generator),
        "image_masks": torch.ones(rows, 1, 16),
        "image_input_idx": torch.arange(3, 7).repeat(rows, 1, 1),
    }
