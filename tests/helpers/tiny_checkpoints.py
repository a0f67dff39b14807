"""Tiny random models on disk, with everything that loading them needs."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from lit_depth.recipes.shapes_tokenizer import build_tokenizer
from tests.helpers.tiny_models import tiny_model

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


def _sizes(words: PreTrainedTokenizerFast) -> dict[str, int]:
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
    return {"vocab_size": len(words), "max_position_embeddings": 256, **tokens}


def write_llava(folder: Path) -> Path:
    """A LLaVA with processor and chat template."""
    words = tokenizer()
    model = tiny_model("llava", NUM_BLOCKS, **_sizes(words))
    model.config.image_token_id = words.convert_tokens_to_ids("<image>")
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
    tiny_model("llama", NUM_BLOCKS, **_sizes(words)).save_pretrained(folder)
    words.chat_template = chat_template
    words.save_pretrained(folder)
    return folder
