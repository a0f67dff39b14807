"""Tiny random checkpoints of other families on disk, with everything that loading them needs."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lit_depth.recipes.shapes_tokenizer import build_tokenizer

# as LLaVA 1.5 writes it, but for the line end
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
NUM_BLOCKS, PATCHES = 4, 4  # of an image


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and words; its image token is the last one."""
    found = build_tokenizer(())
    found.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", special=True, normalized=False)]})
    return found


def _text_config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )


def write_llava(folder: Path) -> Path:
    """A LLaVA with processor and chat template."""
    words = tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=_text_config(len(words)),
            image_token_id=words.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
        )
    )
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    LlavaProcessor(
        images,
        words,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def write_llama(folder: Path, chat_template: str | None = None) -> Path:
    """A Llama and its tokenizer."""
    words = tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(_text_config(len(words))).save_pretrained(folder)
    words.chat_template = chat_template
    words.save_pretrained(folder)
    return folder
