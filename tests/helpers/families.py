"""Tiny random checkpoints of the families that people use, each on disk as its release lies on the hub.

A family is one function, which writes a folder: weights in float32, a tokenizer with the family's special tokens, a
chat template of the family's form where it has one, and the files that name its processor class and its image
processor. Those files are written as text, so that a folder can be made where a package is
lacking that its processor needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as t
from tokenizers import processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lit_depth.recipes.shapes_tokenizer import IMAGE_TOKENS, build_tokenizer
from tests.helpers.tiny_molmo import FAMILIES as MOLMO_FAMILIES
from tests.helpers.tiny_molmo import tiny_molmo

NUM_BLOCKS, CONTEXT = 4, 512
SIDE, PATCH = 16, 4  # pixels of an image or a crop, and of its patches


class Family(NamedTuple):
    """A family of models as one knows it from the hub."""

    name: str
    model_class: str
    """Class of transformers."""
    write: Callable[[Path], None]
    """Writes a checkpoint into a folder that exists."""
    sees: bool
    """Whether it takes images."""
    needs: tuple[str, ...] = ()
    """Packages beyond those of lit_depth without which its processor does not exist."""


# ---- chat templates, as short as the form of each family allows

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\nTHINK{% endif %}"
)
# the turns that a thinking mode leaves out are written as an empty thought
NO_THOUGHT = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"


def chatml(image: str = "", thinks: bool = False) -> str:
    return CHATML.replace("IMAGE", image).replace("THINK", NO_THOUGHT if thinks else "")


def turns(user: str, assistant: str, image: str = "", start: str = "{{ bos_token }}") -> str:
    """Text of a user's turn and of an answer, each with a place for its content; the answer's also opens the prompt."""
    content = (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        f"{{% if part.type == 'image' %}}{image}{{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    )
    refusal = "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    opening = assistant.partition("CONTENT")[0]
    return (
        f"{start}{{% for m in messages %}}{refusal}"
        f"{{% if m.role == 'assistant' %}}{assistant.replace('CONTENT', content)}"
        f"{{% else %}}{user.replace('CONTENT', content)}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{opening}{{% endif %}}"
    )


LLAMA = turns(
    "<|start_header_id|>user<|end_header_id|>\n\nCONTENT<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\nCONTENT<|eot_id|>",
)
MISTRAL = turns("[INST] CONTENT[/INST]", " CONTENT</s>")
GEMMA = turns(
    "<start_of_turn>user\nCONTENT<end_of_turn>\n",
    "<start_of_turn>model\nCONTENT<end_of_turn>\n",
    image="<start_of_image>",
)
PHI = turns("<|user|>CONTENT<|end|>", "<|assistant|>CONTENT<|end|>", image="<|image|>", start="")
OLMO = turns("<|user|>\nCONTENT\n", "<|assistant|>\nCONTENT<|endoftext|>")
GRANITE = turns(
    "<|start_of_role|>user<|end_of_role|>CONTENT<|end_of_text|>\n",
    "<|start_of_role|>assistant<|end_of_role|>CONTENT<|end_of_text|>\n",
    start="",
)
HARMONY = turns(
    "<|start|>user<|message|>CONTENT<|end|>",
    "<|start|>assistant<|channel|>final<|message|>CONTENT<|return|>",
    start="<|start|>system<|message|>Reasoning: low<|end|>",
)
VICUNA = turns("USER: CONTENT ", "ASSISTANT: CONTENT</s>", image="<image>\n", start="")
COHERE = turns(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>CONTENT<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>CONTENT<|END_OF_TURN_TOKEN|>",
    image="<image>",
)
IDEFICS = turns("User: CONTENT<end_of_utterance>\n", "Assistant: CONTENT<end_of_utterance>\n", image="<image>")
GLM = turns(
    "<|user|>\nCONTENT",
    "<|assistant|>\nCONTENT",
    image="<|begin_of_image|><|image|><|end_of_image|>",
    start="[gMASK]<sop>",
)
MOLMO2 = turns("<|im_start|>user\nCONTENT<|im_end|>\n", "<|im_start|>assistant\nCONTENT<|im_end|>\n", "<|image|>", "")


# ---- what every folder has


def tokenizer(
    eos: str,
    *others: str,
    bos: str | None = None,
    pad: str | None = None,
    template: str | None = None,
    named: dict[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """Bytes, the words of the task and a family's own special tokens.

    Args:
        bos: Put before every text, where a family has it.
        named: Tokens that the family's processor asks its tokenizer for by name.
    """
    words = build_tokenizer(())
    tokens = dict.fromkeys(token for token in (bos, eos, pad, *others, *(named or {}).values()) if token)
    words.add_special_tokens({"additional_special_tokens": list(tokens)})
    if bos is not None:
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, words.convert_tokens_to_ids(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=template,
        extra_special_tokens=named or {},
        clean_up_tokenization_spaces=False,
    )


def sizes(words: PreTrainedTokenizerFast, *without: str, **others: Any) -> dict[str, Any]:
    """A text model's configuration, for the vocabulary of its tokenizer and a few rows that no token has."""
    known = dict(
        vocab_size=len(words) + 7,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,  # tied, a random model repeats its last token
    )
    return {name: value for name, value in known.items() if name not in without} | others


VISION: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=PATCH
)
# of the Qwen-VL kind: patches in one line, a picture of up to 8 x 8 of them, 2 x 2 to a token
PACKED = dict(patch_size=PATCH, merge_size=2, temporal_patch_size=2)
PACKED_SIZE = dict(shortest_edge=SIDE**2, longest_edge=4 * SIDE**2)


def save(
    folder: Path,
    model: PreTrainedModel,
    words: PreTrainedTokenizerFast,
    processor: str = "",
    image: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """A folder as `from_pretrained` reads it.

    Args:
        processor: Class of the processor; empty for a text model.
        image: Fields of its image processor, ``image_processor_type`` among them.
        options: Further fields of the processor.
    """
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():  # wide, so that greedy candidates lie far apart
        if weight.dim() > 1:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.2
        elif name.endswith("bias"):
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    model.generation_config.update(
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if processor:
        files = {
            "preprocessor_config.json": {"processor_class": processor, **(image or {})},
            "processor_config.json": {"processor_class": processor, **options},
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")


# ---- text


def _text(name: str, family: str, words: Callable[[], PreTrainedTokenizerFast], *without: str, **others: Any) -> Family:
    config_class, model_class = (getattr(t, f"{family}{end}") for end in ("Config", "ForCausalLM"))

    def write(folder: Path) -> None:
        own = words()
        save(folder, model_class(config_class(**sizes(own, *without, **others))), own)

    return Family(name, model_class.__name__, write, sees=False)


def _llama_words() -> PreTrainedTokenizerFast:
    header = ("<|start_header_id|>", "<|end_header_id|>")
    return tokenizer("<|eot_id|>", *header, bos="<|begin_of_text|>", template=LLAMA)


def _mistral_words() -> PreTrainedTokenizerFast:
    return tokenizer("</s>", "[INST]", "[/INST]", bos="<s>", template=MISTRAL)


def _qwen_words(thinks: bool = False) -> PreTrainedTokenizerFast:
    return tokenizer("<|im_end|>", "<|im_start|>", pad="<|endoftext|>", template=chatml(thinks=thinks))


def _gemma_words() -> PreTrainedTokenizerFast:
    return tokenizer("<eos>", "<start_of_turn>", "<end_of_turn>", bos="<bos>", pad="<pad>", template=GEMMA)


def _phi_words() -> PreTrainedTokenizerFast:
    return tokenizer("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", pad="<|pad|>", template=PHI)


def _base_words() -> PreTrainedTokenizerFast:
    """Of a model that was not trained to chat."""
    return tokenizer("<|endoftext|>")


def _olmo_words() -> PreTrainedTokenizerFast:
    return tokenizer("<|endoftext|>", "<|user|>", "<|assistant|>", bos=None, pad="<|padding|>", template=OLMO)


def _granite_words() -> PreTrainedTokenizerFast:
    role = ("<|start_of_role|>", "<|end_of_role|>")
    return tokenizer("<|end_of_text|>", *role, pad="<|pad|>", template=GRANITE)


def _harmony_words() -> PreTrainedTokenizerFast:
    marks = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>")
    return tokenizer("<|return|>", *marks, pad="<|endoftext|>", template=HARMONY)


MIXED = dict(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=32)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)


def write_gpt2(folder: Path) -> None:
    words = _base_words()
    ends = dict(bos_token_id=words.eos_token_id, eos_token_id=words.eos_token_id)
    config = t.GPT2Config(
        vocab_size=len(words) + 7, n_embd=32, n_layer=NUM_BLOCKS, n_head=4, n_positions=CONTEXT, **ends
    )
    save(folder, t.GPT2LMHeadModel(config), words)


def write_gemma3_text(folder: Path) -> None:
    words = _gemma_words()
    save(folder, t.Gemma3ForCausalLM(t.Gemma3TextConfig(**sizes(words, **MIXED))), words)


TEXT = (
    _text("Llama", "Llama", _llama_words),
    _text("Mistral", "Mistral", _mistral_words, sliding_window=32),
    _text("Mixtral", "Mixtral", _mistral_words, **EXPERTS),
    _text("Qwen2", "Qwen2", _qwen_words),
    _text("Qwen3", "Qwen3", lambda: _qwen_words(thinks=True)),
    _text(
        "Qwen3-MoE",
        "Qwen3Moe",
        lambda: _qwen_words(thinks=True),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    ),
    _text("Gemma", "Gemma", _gemma_words),
    _text("Gemma 2", "Gemma2", _gemma_words, query_pre_attn_scalar=8, **MIXED),
    Family("Gemma 3 (text)", "Gemma3ForCausalLM", write_gemma3_text, sees=False),
    _text("Phi-3", "Phi3", _phi_words, "head_dim"),
    _text("OLMo", "Olmo", _base_words, "head_dim"),
    _text("OLMo 2", "Olmo2", _olmo_words, "head_dim"),
    _text("OLMo 3", "Olmo3", _qwen_words, "head_dim", **MIXED),
    _text("OLMoE", "Olmoe", _olmo_words, "head_dim", num_experts=4, num_experts_per_tok=2),
    _text("SmolLM3", "SmolLM3", lambda: _qwen_words(thinks=True), "head_dim"),
    _text("Granite", "Granite", _granite_words, "head_dim"),
    _text("GPT-NeoX", "GPTNeoX", _base_words, "head_dim", "num_key_value_heads"),
    Family("GPT-2", "GPT2LMHeadModel", write_gpt2, sees=False),
    _text("gpt-oss", "GptOss", _harmony_words, **EXPERTS, **MIXED),
)


# ---- with images


def _molmo(family: str) -> Family:
    def write(folder: Path) -> None:
        words = tokenizer("<|endoftext|>", pad="<|padding|>")
        words.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS)})
        image = dict(
            image_processor_type="MolmoImageProcessor",
            base_image_input_size=[SIDE, SIDE],
            image_patch_size=PATCH,
            overlap_margins=[0, 2],
            max_crops=2,
            image_token_length_h=2,
            image_token_length_w=2,
        )
        model = tiny_molmo(family, vocabulary=len(words) - len(IMAGE_TOKENS), context=CONTEXT, blocks=NUM_BLOCKS)
        save(folder, model, words, "MolmoProcessor", image)

    named = {"olmoe": "MolmoE-1B", "qwen2": "7B-D, 72B", "olmo2": "7B-O"}[family]
    return Family(f"Molmo ({named})", "MolmoForConditionalGeneration", write, sees=True)


def _qwen_vl_words() -> PreTrainedTokenizerFast:
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    template = chatml("<|vision_start|><|image_pad|><|vision_end|>")
    return tokenizer("<|im_end|>", "<|im_start|>", *marks, pad="<|endoftext|>", template=template)


def _qwen_vl_ids(words: PreTrainedTokenizerFast) -> dict[str, int]:
    names = dict(image="image_pad", video="video_pad", vision_start="vision_start", vision_end="vision_end")
    return {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in names.items()}


def _rope(**others: Any) -> dict[str, Any]:
    """Positions of three axes: time, height and width."""
    return {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4, **others}


QWEN_IMAGE = dict(
    image_processor_type="Qwen2VLImageProcessor", size=PACKED_SIZE, min_pixels=SIDE**2, max_pixels=4 * SIDE**2, **PACKED
)


def write_qwen2_vl(folder: Path) -> None:
    words = _qwen_vl_words()
    config = t.Qwen2VLConfig(
        vision_config=dict(depth=2, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=PATCH),
        text_config=t.Qwen2VLTextConfig(**sizes(words, "head_dim"), rope_parameters=_rope()).to_dict(),
        **_qwen_vl_ids(words),
    )
    save(folder, t.Qwen2VLForConditionalGeneration(config), words, "Qwen2VLProcessor", QWEN_IMAGE)


def write_qwen2_5_vl(folder: Path) -> None:
    words = _qwen_vl_words()
    vision = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, patch_size=PATCH)
    config = t.Qwen2_5_VLConfig(
        vision_config=vision | dict(window_size=SIDE, fullatt_block_indexes=[1]),
        text_config=t.Qwen2_5_VLTextConfig(**sizes(words, "head_dim"), rope_parameters=_rope()).to_dict(),
        **_qwen_vl_ids(words),
    )
    save(folder, t.Qwen2_5_VLForConditionalGeneration(config), words, "Qwen2_5_VLProcessor", QWEN_IMAGE)


def write_qwen3_vl(folder: Path) -> None:
    """Adds features of its vision tower to what its first two blocks put out."""
    words = _qwen_vl_words()
    vision = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, patch_size=PATCH)
    config = t.Qwen3VLConfig(
        vision_config=vision | dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 1]),
        text_config=t.Qwen3VLTextConfig(**sizes(words), rope_parameters=_rope(mrope_interleaved=True)).to_dict(),
        **_qwen_vl_ids(words),
    )
    save(folder, t.Qwen3VLForConditionalGeneration(config), words, "Qwen3VLProcessor", QWEN_IMAGE)


def write_glm4v(folder: Path) -> None:
    marks = [f"<|{end}_of_{kind}|>" for kind in ("image", "video") for end in ("begin", "end")]
    words = tokenizer(
        "<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", *marks, "<|image|>", "<|video|>", template=GLM
    )
    words.pad_token = words.eos_token
    ids = dict(image_token_id="<|image|>", video_token_id="<|video|>")
    for kind in ("image", "video"):
        ids |= {f"{kind}_start_token_id": f"<|begin_of_{kind}|>", f"{kind}_end_token_id": f"<|end_of_{kind}|>"}
    vision = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, patch_size=PATCH)
    config = t.Glm4vConfig(
        vision_config=vision | dict(image_size=2 * SIDE),
        text_config=t.Glm4vTextConfig(**sizes(words), rope_parameters=_rope(partial_rotary_factor=1.0)).to_dict(),
        **{name: words.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    image = dict(image_processor_type="Glm4vImageProcessor", size=PACKED_SIZE, **PACKED)
    save(folder, t.Glm4vForConditionalGeneration(config), words, "Glm4vProcessor", image)


def write_llava(folder: Path) -> None:
    words = tokenizer("</s>", "<image>", bos="<s>", pad="<pad>", template=VICUNA)
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=t.LlamaConfig(**sizes(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    image = dict(
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
    )
    strategy = dict(patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    save(folder, t.LlavaForConditionalGeneration(config), words, "LlavaProcessor", image, **strategy)


PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def write_llava_next(folder: Path) -> None:
    words = tokenizer("</s>", "<image>", "[INST]", "[/INST]", bos="<s>", pad="<pad>")
    words.chat_template = turns("[INST] CONTENT [/INST]", " CONTENT</s>", image="<image>\n")
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=t.MistralConfig(**sizes(words), sliding_window=None),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
    )
    image = dict(
        image_processor_type="LlavaNextImageProcessor",
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )
    strategy = dict(patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    save(folder, t.LlavaNextForConditionalGeneration(config), words, "LlavaNextProcessor", image, **strategy)


def write_llava_onevision(folder: Path) -> None:
    template = chatml("<image>\n")
    words = tokenizer("<|im_end|>", "<|im_start|>", "<image>", "<video>", pad="<|endoftext|>", template=template)
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=t.Qwen2Config(**sizes(words, "head_dim")),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        video_token_id=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
    )
    image = dict(
        image_processor_type="LlavaOnevisionImageProcessor",
        size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )
    strategy = dict(num_image_tokens=(SIDE // PATCH) ** 2, vision_feature_select_strategy="full")
    model = t.LlavaOnevisionForConditionalGeneration(config)
    save(folder, model, words, "LlavaOnevisionProcessor", image, **strategy, vision_aspect_ratio="anyres_max_9")


def _idefics(name: str, family: str, needs: tuple[str, ...] = ()) -> Family:
    """Of the Idefics3 kind: crops in rows and columns, each behind a token that says where it lies."""
    model_class = f"{family}ForConditionalGeneration"

    def write(folder: Path) -> None:
        places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
        marks = ("<fake_token_around_image>", "<image>", "<global-img>", *places)
        words = tokenizer("<end_of_utterance>", *marks, bos="<|im_start|>", pad="<|pad|>", template=IDEFICS)
        config = getattr(t, f"{family}Config")(
            vision_config=VISION,
            text_config=t.LlamaConfig(**sizes(words)).to_dict(),
            image_token_id=words.convert_tokens_to_ids("<image>"),
            scale_factor=2,
            pad_token_id=words.pad_token_id,
        )
        image = dict(
            image_processor_type=f"{family}ImageProcessor",
            size={"longest_edge": 2 * SIDE},
            max_image_size={"longest_edge": SIDE},
        )
        save(
            folder,
            getattr(t, model_class)(config),
            words,
            f"{family}Processor",
            image,
            image_seq_len=(SIDE // PATCH // 2) ** 2,
        )

    return Family(name, model_class, write, sees=True, needs=needs)


def write_internvl(folder: Path) -> None:
    named = dict(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    template = chatml("<IMG_CONTEXT>\n")
    words = tokenizer("<|im_end|>", "<|im_start|>", pad="<|endoftext|>", template=template, named=named)
    config = t.InternVLConfig(
        vision_config=t.InternVLVisionConfig(**VISION | dict(image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH])),
        text_config=t.Qwen2Config(**sizes(words, "head_dim")),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(SIDE // PATCH // 2) ** 2,
        tie_word_embeddings=False,
    )
    image = dict(
        image_processor_type="GotOcr2ImageProcessor",
        size={"height": SIDE, "width": SIDE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=4,
    )
    model = t.InternVLForConditionalGeneration(config)
    save(folder, model, words, "InternVLProcessor", image, image_seq_length=(SIDE // PATCH // 2) ** 2)


def write_paligemma(folder: Path) -> None:
    words = tokenizer("<eos>", "<image>", bos="<bos>", pad="<pad>")
    words.add_tokens([f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)])
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=32).to_dict(),
        text_config=t.GemmaConfig(**sizes(words)).to_dict(),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        tie_word_embeddings=False,
        pad_token_id=words.pad_token_id,
    )
    image = dict(
        image_processor_type="SiglipImageProcessor",
        size={"height": SIDE, "width": SIDE},
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    save(folder, t.PaliGemmaForConditionalGeneration(config), words, "PaliGemmaProcessor", image)


def write_gemma3(folder: Path) -> None:
    named = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    words = tokenizer(
        "<eos>", "<start_of_turn>", "<end_of_turn>", bos="<bos>", pad="<pad>", template=GEMMA, named=named
    )
    ids = {name: words.convert_tokens_to_ids(token) for name, token in named.items()}
    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        text_config=t.Gemma3TextConfig(**sizes(words, **MIXED)).to_dict(),
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        tie_word_embeddings=False,
    )
    image = dict(image_processor_type="Gemma3ImageProcessor", size={"height": SIDE, "width": SIDE})
    save(folder, t.Gemma3ForConditionalGeneration(config), words, "Gemma3Processor", image, image_seq_length=4)


def _pixtral_words() -> PreTrainedTokenizerFast:
    marks = ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    template = turns("[INST]CONTENT[/INST]", "CONTENT</s>", image="[IMG]")
    return tokenizer("</s>", *marks, bos="<s>", pad="<pad>", template=template)


def _pixtral_image(merge: int) -> dict[str, Any]:
    edge = PATCH * merge
    return dict(
        image_processor_type="PixtralImageProcessor",
        size={"longest_edge": 2 * SIDE},
        patch_size={"height": edge, "width": edge},
    )


PIXTRAL_VISION = {**VISION, "image_size": 2 * SIDE, "head_dim": 8}


def write_pixtral(folder: Path) -> None:
    words = _pixtral_words()
    config = t.LlavaConfig(
        vision_config=t.PixtralVisionConfig(**PIXTRAL_VISION),
        text_config=t.MistralConfig(**sizes(words), sliding_window=None),
        image_token_id=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    model = t.LlavaForConditionalGeneration(config)
    save(folder, model, words, "PixtralProcessor", _pixtral_image(1), patch_size=PATCH, spatial_merge_size=1)


def write_mistral3(folder: Path) -> None:
    words = _pixtral_words()
    config = t.Mistral3Config(
        vision_config=t.PixtralVisionConfig(**PIXTRAL_VISION),
        text_config=t.MistralConfig(**sizes(words), sliding_window=None),
        image_token_id=words.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    model = t.Mistral3ForConditionalGeneration(config)
    save(folder, model, words, "PixtralProcessor", _pixtral_image(2), patch_size=PATCH, spatial_merge_size=2)


COHERE_TURNS = ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")


def write_aya_vision(folder: Path) -> None:
    marks = ("<image>", *(f"<|{mark}|>" for mark in ("START_OF_IMG", "END_OF_IMG", "IMG_PATCH", "IMG_LINE_BREAK")))
    marks += (*COHERE_TURNS, "TILE", "TILE_GLOBAL")
    words = tokenizer("<|END_OF_TURN_TOKEN|>", *marks, bos="<BOS_TOKEN>", pad="<PAD>", template=COHERE)
    config = t.AyaVisionConfig(
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=t.Cohere2Config(**sizes(words, **MIXED)),
        image_token_id=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        tie_word_embeddings=False,
    )
    image = dict(
        image_processor_type="GotOcr2ImageProcessor",
        size={"height": SIDE, "width": SIDE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=2,
    )
    model = t.AyaVisionForConditionalGeneration(config)
    save(folder, model, words, "AyaVisionProcessor", image, patch_size=PATCH, img_size=SIDE, downsample_factor=2)


def write_cohere2_vision(folder: Path) -> None:
    named = dict(
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    template = COHERE.replace("<image>", "<|IMG_PATCH|>")
    words = tokenizer(
        "<|END_OF_TURN_TOKEN|>", *COHERE_TURNS, bos="<BOS_TOKEN>", pad="<PAD>", template=template, named=named
    )
    config = t.Cohere2VisionConfig(
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=t.Cohere2Config(**sizes(words, **MIXED)),
        image_token_id=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        alignment_intermediate_size=32,
        tie_word_embeddings=False,
    )
    image = dict(
        image_processor_type="Cohere2VisionImageProcessor",
        size={"height": SIDE, "width": SIDE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=2,
        patch_size=SIDE // PATCH // 2,  # tokens along a side, whatever it is called
        downsample_factor=2,
    )
    save(folder, t.Cohere2VisionForConditionalGeneration(config), words, "Cohere2VisionProcessor", image)


def write_phi4_multimodal(folder: Path) -> None:
    """Its processor takes every crop for 32 x 32 patches."""
    patch, side, context = 2, 64, 1024
    named = dict(image_token="<|image|>", audio_token="<|audio|>")
    words = tokenizer("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", pad="<|pad|>", template=PHI, named=named)
    audio = dict(
        hidden_size=16,
        intermediate_size=24,
        num_blocks=1,
        num_attention_heads=2,
        ext_pw_out_channel=16,
        depthwise_separable_out_channel=16,
        nemo_conv_channels=16,
        input_size=16,
        audio_token_id=words.convert_tokens_to_ids("<|audio|>"),
    )
    config = t.Phi4MultimodalConfig(
        **sizes(words, "head_dim", bos_token_id=words.eos_token_id, max_position_embeddings=context),
        original_max_position_embeddings=context,
        vision_config=VISION
        | dict(
            image_size=side, patch_size=patch, crop_size=side, image_token_id=words.convert_tokens_to_ids("<|image|>")
        ),
        audio_config=audio,
    )
    image = dict(
        image_processor_type="Phi4MultimodalImageProcessor",
        feature_extractor_type="Phi4MultimodalFeatureExtractor",
        size={"height": side, "width": side},
        patch_size=patch,
        dynamic_hd=1,
    )
    save(folder, t.Phi4MultimodalForCausalLM(config), words, "Phi4MultimodalProcessor", image)


def write_molmo2(folder: Path) -> None:
    marks = (
        "<im_start>",
        "<im_end>",
        "<im_patch>",
        "<im_col>",
        "<low_res_im_start>",
        "<frame_start>",
        "<frame_end>",
        "<im_low>",
    )
    named = dict(image_token="<|image|>", video_token="<|video|>")
    words = tokenizer("<|im_end|>", "<|im_start|>", *marks, pad="<|endoftext|>", template=MOLMO2, named=named)
    ids = dict(
        image_start_token_id="<im_start>",
        low_res_image_start_token_id="<low_res_im_start>",
        image_end_token_id="<im_end>",
        image_patch_id="<im_patch>",
        frame_start_token_id="<frame_start>",
        frame_end_token_id="<frame_end>",
    )
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    text = sizes(words, "bos_token_id", "pad_token_id", "eos_token_id")
    config = t.Molmo2Config(
        text_config=text | dict(vocab_size=len(words), additional_vocab_size=7),
        vision_config=VISION | heads | dict(image_size=[SIDE, SIDE], num_position_embeddings=(SIDE // PATCH) ** 2),
        adapter_config=dict(
            vision_feature_layer=[-1, -2], hidden_size=16, intermediate_size=24, text_hidden_size=32, **heads
        ),
        **{name: words.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    image = dict(
        image_processor_type="Molmo2ImageProcessor",
        size={"height": SIDE, "width": SIDE},
        patch_size=PATCH,
        overlap_margins=[1, 1],
        max_crops=2,
        pooling_size=[2, 2],
    )
    save(folder, t.Molmo2ForConditionalGeneration(config), words, "Molmo2Processor", image)


def _seeing(
    name: str, family: str, write: Callable[[Path], None], *needs: str, head: str = "ConditionalGeneration"
) -> Family:
    return Family(name, f"{family}For{head}", write, sees=True, needs=needs)


SEEING = (
    *map(_molmo, MOLMO_FAMILIES),
    _seeing("Molmo 2", "Molmo2", write_molmo2, "torchvision"),
    _seeing("Qwen2-VL", "Qwen2VL", write_qwen2_vl),
    _seeing("Qwen2.5-VL", "Qwen2_5_VL", write_qwen2_5_vl),
    _seeing("Qwen3-VL", "Qwen3VL", write_qwen3_vl),
    _seeing("LLaVA 1.5", "Llava", write_llava),
    _seeing("LLaVA-NeXT", "LlavaNext", write_llava_next),
    _seeing("LLaVA-OneVision", "LlavaOnevision", write_llava_onevision),
    _idefics("SmolVLM", "SmolVLM", ("num2words",)),
    _idefics("Idefics3", "Idefics3"),
    _seeing("InternVL", "InternVL", write_internvl),
    _seeing("PaliGemma", "PaliGemma", write_paligemma),
    _seeing("Gemma 3", "Gemma3", write_gemma3),
    _seeing("Mistral 3", "Mistral3", write_mistral3, "torchvision"),
    _seeing("Pixtral", "Llava", write_pixtral, "torchvision"),
    _seeing("Aya Vision", "AyaVision", write_aya_vision),
    _seeing("Command A Vision", "Cohere2Vision", write_cohere2_vision, "torchvision"),
    _seeing("GLM-4V", "Glm4v", write_glm4v),
    Family("Phi-4-multimodal", "Phi4MultimodalForCausalLM", write_phi4_multimodal, sees=True, needs=("torchvision",)),
)
FAMILIES = {family.name: family for family in (*SEEING, *TEXT)}


if __name__ == "__main__":
    import sys

    from tests.helpers.family_commands import main

    main(sys.argv[1:])
