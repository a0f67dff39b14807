"""Tiny random Hugging Face models and left-padded batches for them, float32, in eval mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import Cache, DummyLayer

VOCABULARY = 64
IMAGE_TOKEN = 63
WINDOW = 4
FAMILIES = ("llama", "qwen3", "olmoe", "olmo2", "gemma2", "mistral", "gpt_neox", "falcon", "llava")


def tiny_model(family: str, num_blocks: int = 4, **overrides: Any) -> PreTrainedModel:
    """Build a random model; the wide initialisation keeps the gaps between greedy candidates far above rounding."""
    sizes: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        tie_word_embeddings=False,  # tied, a random model repeats its last token
    )
    sizes |= overrides
    torch.manual_seed(0)
    if family == "llama":
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**sizes))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    elif family == "olmoe":
        del sizes["head_dim"]
        model = OlmoeForCausalLM(OlmoeConfig(**{"num_experts": 4, "num_experts_per_tok": 2, **sizes}))
    elif family == "olmo2":
        del sizes["head_dim"]
        model = Olmo2ForCausalLM(Olmo2Config(**sizes))
    elif family == "gemma2":
        layer_types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]
        sizes["layer_types"] = layer_types[:num_blocks]
        model = Gemma2ForCausalLM(Gemma2Config(**sizes, sliding_window=WINDOW, query_pre_attn_scalar=8))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=WINDOW))
    elif family == "gpt_neox":
        del sizes["num_key_value_heads"], sizes["head_dim"]
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
    elif family == "falcon":  # its blocks return a tuple
        del sizes["num_key_value_heads"], sizes["head_dim"], sizes["intermediate_size"]
        model = FalconForCausalLM(FalconConfig(**sizes, alibi=False, new_decoder_architecture=False))
    elif family == "llava":
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=num_blocks,  # as many as the decoder has: they must not be mistaken for it
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        )
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=vision,
                text_config=LlamaConfig(**sizes),
                image_token_id=IMAGE_TOKEN,
                vision_feature_layer=-1,
            )
        )
    else:
        raise ValueError(f"expected one of {FAMILIES}, got {family!r}")
    return model.eval()


def tiny_batch(model: PreTrainedModel, length: int = 8, rows: int = 4) -> dict[str, Tensor]:
    """Prompts of different lengths, padded on the left; with an image each for a vision-language model."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(2, VOCABULARY - 1, (rows, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row in range(rows):
        padding = (0, 3, 1, 2)[row % 4]
        input_ids[row, :padding] = 0
        attention_mask[row, :padding] = 0
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    if model.config.model_type == "llava":
        input_ids[:, 3:7] = IMAGE_TOKEN
        batch["pixel_values"] = torch.randn(rows, 3, 8, 8, generator=generator)
    return batch


def placeholders(cache: Cache) -> list[bool]:
    """Which entries belong to blocks without keys and values."""
    return [isinstance(entry, DummyLayer) for entry in cache.layers]
