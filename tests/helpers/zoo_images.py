"""Vision-language models of many families, tiny and random, with a left-padded batch of images and text each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

from tests.helpers.tiny_models import VOCABULARY, tiny_batch, tiny_model
from tests.helpers.tiny_molmo import tiny_inputs, tiny_molmo
from tests.helpers.zoo_parts import IMAGE_TOKEN, ROWS, TEXT, VISION, Model, pixels, prompts, ready, without

CLIP = {**VISION, "model_type": "clip_vision_model"}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL: dict[str, Any] = {**VISION, "model_type": "pixtral", "image_size": 16, "head_dim": 8}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}


def paligemma(types: bool = True) -> Model:
    """Sees the image and the prompt in both directions (types of 0), and what follows (1) causally."""
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=32).to_dict(),
        text_config=t.GemmaConfig(**TEXT, head_dim=8).to_dict(),
        image_token_index=IMAGE_TOKEN,
        projection_dim=32,
        hidden_size=32,
    )
    inputs = prompts(images=4) | {"pixel_values": pixels(ROWS, 3, 8, 8)}
    if types:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return ready(t.PaliGemmaForConditionalGeneration(config)), inputs


def gemma3() -> Model:
    """Sees image tokens (types of 1) in both directions, and has windows narrower than the prompt."""
    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        text_config=t.Gemma3TextConfig(
            **TEXT,
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] + ["full_attention"],
        ).to_dict(),
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=VOCABULARY - 2,
        eoi_token_index=VOCABULARY - 3,
    )
    inputs = prompts(images=4) | {"pixel_values": pixels(ROWS, 3, 8, 8)}
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).long()
    return ready(t.Gemma3ForConditionalGeneration(config)), inputs


def idefics3(family: str = "Idefics3") -> Model:
    config_class = getattr(t, f"{family}Config")
    config = config_class(
        vision_config=VISION,
        text_config=t.LlamaConfig(**TEXT).to_dict(),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=0,
    )
    # one token per image: 2 x 2 patches, shuffled into one
    inputs = prompts(images=1) | {"pixel_values": pixels(ROWS, 1, 3, 8, 8)}
    inputs["pixel_attention_mask"] = torch.ones(ROWS, 1, 8, 8, dtype=torch.bool)
    return ready(getattr(t, f"{family}ForConditionalGeneration")(config)), inputs


def git() -> Model:
    """Puts the states of the image in front of the prompt."""
    sizes = without("num_key_value_heads", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    vision = {**VISION, "num_hidden_layers": 1}
    model = ready(t.GitForCausalLM(t.GitConfig(vision_config=vision, **sizes)))
    return model, prompts() | {"pixel_values": pixels(ROWS, 3, 8, 8) * 3}


def _with_queries(family: str) -> Model:
    text = t.OPTConfig(**without("intermediate_size", "num_key_value_heads", ffn_dim=48, word_embed_proj_dim=32))
    queries = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config = getattr(t, f"{family}Config")(
        vision_config=VISION,
        qformer_config=queries | dict(vocab_size=VOCABULARY, encoder_hidden_size=16),
        text_config=text.to_dict(),
        num_query_tokens=2,
        image_token_index=IMAGE_TOKEN,
    )
    inputs = prompts(images=2) | {"pixel_values": pixels(ROWS, 3, 8, 8)}
    if family == "InstructBlip":
        inputs["qformer_input_ids"] = inputs["input_ids"].clamp(max=VOCABULARY - 2)
        inputs["qformer_attention_mask"] = inputs["attention_mask"]
    return ready(getattr(t, f"{family}ForConditionalGeneration")(config)), inputs


def kosmos2() -> Model:
    """Its image tokens are told by a mask of their positions."""
    text = dict(vocab_size=VOCABULARY, embed_dim=32, layers=3, ffn_dim=48, attention_heads=4, dropout=0.0)
    config = t.Kosmos2Config(
        text_config=text | dict(attention_dropout=0.0, max_position_embeddings=128, pad_token_id=0),
        vision_config=VISION,
        latent_query_num=2,
    )
    inputs = prompts() | {"pixel_values": pixels(ROWS, 3, 8, 8)}
    positions = torch.zeros_like(inputs["input_ids"])
    positions[:, 3:5] = 1
    return ready(t.Kosmos2ForConditionalGeneration(config)), inputs | {"image_embeds_position_mask": positions}


def _plain(family: str) -> Callable[[], Model]:
    def build() -> Model:
        model = tiny_model(family)
        return model, tiny_batch(model, rows=ROWS)

    return build


def _molmo(family: str) -> Callable[[], Model]:
    def build() -> Model:
        model = tiny_molmo(family)
        model.generation_config.pad_token_id = 0
        return model, tiny_inputs(rows=ROWS)

    return build


def molmo2() -> Model:
    """Sees all its images in both directions, and adds their features to those of their tokens."""
    config = t.Molmo2Config(
        vision_config={**VISION, "num_key_value_heads": 2, "head_dim": 8, "image_size": [8, 8], "num_hidden_layers": 2},
        adapter_config=dict(
            vision_feature_layer=[-1, -2],
            hidden_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=24,
            text_hidden_size=32,
        ),
        text_config=without("pad_token_id", "bos_token_id", "eos_token_id", head_dim=8, additional_vocab_size=0),
        image_patch_id=IMAGE_TOKEN,
    )
    inputs = prompts(images=1) | {"pixel_values": pixels(ROWS, 4, 48)}
    inputs["image_token_pooling"] = torch.arange(4 * ROWS).view(ROWS, 4)
    inputs["image_grids"] = torch.tensor([[1, 1, 0, 0]] * ROWS)
    inputs["image_num_crops"] = torch.ones(ROWS, dtype=torch.long)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).long()
    return ready(t.Molmo2ForConditionalGeneration(config)), inputs


def llava_next() -> Model:
    """Its images are told with their sizes: one tile, and the whole at the same size."""
    config = t.LlavaNextConfig(
        vision_config=CLIP,
        text_config=t.LlamaConfig(**TEXT).to_dict(),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[8, 8]],
        vision_feature_layer=-1,
    )
    model = ready(t.LlavaNextForConditionalGeneration(config))
    inputs = prompts(images=10, length=15) | {"pixel_values": pixels(ROWS, 2, 3, 8, 8)}
    return model, inputs | {"image_sizes": torch.tensor([[8, 8]] * ROWS)}


def llava_onevision() -> Model:
    config = t.LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=t.Qwen2Config(**TEXT).to_dict(),
        image_token_index=IMAGE_TOKEN,
        video_token_index=VOCABULARY - 2,
        image_grid_pinpoints=[[8, 8]],
    )
    inputs = prompts(images=10, length=15) | {"pixel_values": pixels(ROWS, 2, 3, 8, 8)}
    return ready(t.LlavaOnevisionForConditionalGeneration(config)), inputs | {
        "image_sizes": torch.tensor([[8, 8]] * ROWS)
    }


def internvl() -> Model:
    config = t.InternVLConfig(
        vision_config=VISION,
        text_config=t.Qwen2Config(**TEXT).to_dict(),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    return ready(t.InternVLForConditionalGeneration(config)), prompts(images=1) | {
        "pixel_values": pixels(ROWS, 3, 8, 8)
    }


def mistral3() -> Model:
    config = t.Mistral3Config(
        vision_config=PIXTRAL,
        text_config=t.MistralConfig(**TEXT, head_dim=8, sliding_window=None).to_dict(),
        image_token_index=IMAGE_TOKEN,
    )
    inputs = prompts(images=4) | {"pixel_values": pixels(ROWS, 3, 16, 16)}
    return ready(t.Mistral3ForConditionalGeneration(config)), inputs | {"image_sizes": torch.tensor([[16, 16]] * ROWS)}


def pixtral() -> Model:
    config = t.LlavaConfig(
        vision_config=PIXTRAL,
        text_config=t.MistralConfig(**TEXT, head_dim=8, sliding_window=None).to_dict(),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    inputs = prompts(images=4) | {"pixel_values": pixels(ROWS, 3, 8, 8)}
    return ready(t.LlavaForConditionalGeneration(config)), inputs | {"image_sizes": torch.tensor([[8, 8]] * ROWS)}


def aya_vision() -> Model:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    config = t.AyaVisionConfig(
        vision_config=SIGLIP,
        text_config=t.Cohere2Config(**TEXT, head_dim=8, sliding_window=4, layer_types=types).to_dict(),
        image_token_index=IMAGE_TOKEN,
        downsample_factor=2,
    )
    return ready(t.AyaVisionForConditionalGeneration(config)), prompts(images=1) | {
        "pixel_values": pixels(ROWS, 3, 8, 8)
    }


def cohere2_vision() -> Model:
    config = t.Cohere2VisionConfig(
        vision_config=SIGLIP,
        text_config=t.Cohere2Config(**TEXT, head_dim=8).to_dict(),
        image_token_id=IMAGE_TOKEN,
        downsample_factor=2,
        alignment_intermediate_size=48,
    )
    inputs = prompts(images=1) | {"pixel_values": pixels(ROWS, 3, 8, 8)}
    return ready(t.Cohere2VisionForConditionalGeneration(config)), inputs


def phi4_multimodal() -> Model:
    audio = dict(hidden_size=16, intermediate_size=24, num_blocks=1, num_attention_heads=2, input_size=8)
    config = t.Phi4MultimodalConfig(
        **TEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
        vision_config={**VISION, "crop_size": 8, "image_token_id": IMAGE_TOKEN, "num_hidden_layers": 2},
        audio_config=audio | dict(nemo_conv_channels=8, ext_pw_out_channel=16, depthwise_separable_out_channel=16),
    )
    inputs = prompts(images=5) | {"image_pixel_values": pixels(ROWS, 2, 3, 8, 8)}
    inputs["image_sizes"] = torch.tensor([[8, 8]] * ROWS)
    inputs["image_attention_mask"] = torch.ones(ROWS, 2, 2, 2)
    model = ready(t.Phi4MultimodalForCausalLM(config))
    model.generation_config.suppress_tokens = [IMAGE_TOKEN]  # it would ask for another image
    return model, inputs


def idefics2() -> Model:
    resampler = dict(resampler_n_latents=2, resampler_depth=1, resampler_n_heads=2, num_key_value_heads=2)
    config = t.Idefics2Config(
        vision_config=VISION,
        perceiver_config=resampler | dict(resampler_head_dim=8, hidden_size=32),
        text_config=t.MistralConfig(**TEXT).to_dict(),
        image_token_id=IMAGE_TOKEN,
    )
    inputs = prompts(images=2) | {"pixel_values": pixels(ROWS, 1, 3, 8, 8)}
    inputs["pixel_attention_mask"] = torch.ones(ROWS, 1, 8, 8, dtype=torch.bool)
    return ready(t.Idefics2ForConditionalGeneration(config)), inputs


# images of the two rows above the last take 4 tokens instead of one: what follows has positions of another distance
GRIDS = torch.tensor([[1, 2, 2], [1, 4, 4], [1, 4, 2]])


def _grid_prompts(start: int, first: int, end: int | None = None) -> dict[str, torch.Tensor]:
    """Left-padded prompts with one image each, of different sizes, so that positions of rows move unequally."""
    inputs = prompts(images=0)
    wide = torch.nn.functional.pad(inputs["input_ids"], (4, 0))
    mask = torch.nn.functional.pad(inputs["attention_mask"], (4, 0))
    for row, count in enumerate((GRIDS.prod(1) // 4).tolist()):
        image = [start] + [IMAGE_TOKEN] * count + ([] if end is None else [end])
        text = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        tokens = torch.cat([text[:2], torch.tensor(image), text[2:]])[: wide.shape[1]]
        wide[row] = 0
        wide[row, wide.shape[1] - len(tokens) :] = tokens
        mask[row] = (torch.arange(wide.shape[1]) >= wide.shape[1] - len(tokens)).long()
    types = (wide == IMAGE_TOKEN).int()
    return {
        "input_ids": wide,
        "attention_mask": mask,
        "pixel_values": pixels(int(GRIDS.prod(1).sum()), first),
        "image_grid_thw": GRIDS,
        "mm_token_type_ids": types,
    }


VISUAL = dict(
    image_token_id=IMAGE_TOKEN,
    video_token_id=VOCABULARY - 2,
    vision_start_token_id=VOCABULARY - 3,
    vision_end_token_id=VOCABULARY - 4,
)


def qwen2_vl() -> Model:
    """Its images are patches of all rows in one line, its positions have three axes."""
    config = t.Qwen2VLConfig(
        vision_config=dict(depth=1, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=4),
        text_config=t.Qwen2VLTextConfig(**TEXT, rope_parameters=MROPE).to_dict(),
        **VISUAL,
    )
    return ready(t.Qwen2VLForConditionalGeneration(config)), _grid_prompts(VOCABULARY - 3, 96)


def qwen2_5_vl() -> Model:
    vision = dict(depth=2, hidden_size=16, out_hidden_size=32, num_heads=2, intermediate_size=24, patch_size=4)
    config = t.Qwen2_5_VLConfig(
        vision_config=vision | dict(window_size=16, fullatt_block_indexes=[1]),
        text_config=t.Qwen2_5_VLTextConfig(**TEXT, rope_parameters=MROPE).to_dict(),
        **VISUAL,
    )
    return ready(t.Qwen2_5_VLForConditionalGeneration(config)), _grid_prompts(VOCABULARY - 3, 96)


def qwen3_vl(family: str = "Qwen3VL", depth: int = 2) -> Model:
    """Adds features of an image behind its first ``depth`` blocks."""
    vision = dict(depth=3, hidden_size=16, out_hidden_size=32, num_heads=2, intermediate_size=24, patch_size=4)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16) if "Moe" in family else {}
    rope = MROPE | {"mrope_interleaved": True}
    text = getattr(t, f"{family}TextConfig")(**TEXT, **experts, head_dim=8, rope_parameters=rope).to_dict()
    config = getattr(t, f"{family}Config")(
        vision_config=vision | dict(num_position_embeddings=16, deepstack_visual_indexes=list(range(depth))),
        text_config=text,
        **VISUAL,
    )
    return ready(getattr(t, f"{family}ForConditionalGeneration")(config)), _grid_prompts(VOCABULARY - 3, 96)


def glm4v() -> Model:
    vision = dict(depth=1, hidden_size=16, num_heads=2, out_hidden_size=32, intermediate_size=24, patch_size=4)
    config = t.Glm4vConfig(
        vision_config=vision | dict(image_size=16),
        text_config=t.Glm4vTextConfig(**TEXT, rope_parameters=MROPE).to_dict(),
        image_token_id=IMAGE_TOKEN,
        video_token_id=VOCABULARY - 2,
        image_start_token_id=VOCABULARY - 3,
        image_end_token_id=VOCABULARY - 4,
        video_start_token_id=VOCABULARY - 5,
        video_end_token_id=VOCABULARY - 6,
    )
    return ready(t.Glm4vForConditionalGeneration(config)), _grid_prompts(VOCABULARY - 3, 96, VOCABULARY - 4)


def paddleocr_vl() -> Model:
    config = t.PaddleOCRVLConfig(
        vision_config={**VISION, "image_size": 16},
        text_config=TEXT | dict(head_dim=8, rope_parameters=MROPE),
        **VISUAL,
    )
    inputs = _grid_prompts(VOCABULARY - 3, 48)
    inputs["pixel_values"] = inputs["pixel_values"].view(-1, 3, 4, 4)
    return ready(t.PaddleOCRVLForConditionalGeneration(config)), inputs


IMAGE_ZOO: dict[str, Callable[[], Model]] = {
    "llava": _plain("llava"),
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "paligemma": paligemma,
    "paligemma, no types": lambda: paligemma(types=False),
    "gemma3": gemma3,
    "idefics2": idefics2,
    "idefics3": idefics3,
    "smolvlm": lambda: idefics3("SmolVLM"),
    "internvl": internvl,
    "mistral3": mistral3,
    "pixtral": pixtral,
    "aya_vision": aya_vision,
    "cohere2_vision": cohere2_vision,
    "phi4_multimodal": phi4_multimodal,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": lambda: qwen3_vl("Qwen3VLMoe"),
    "glm4v": glm4v,
    "paddleocr_vl": paddleocr_vl,
    "molmo, olmoe": _molmo("olmoe"),
    "molmo, qwen2": _molmo("qwen2"),
    "molmo, olmo2": _molmo("olmo2"),
    "molmo2": molmo2,
    "git": git,
    "blip2": lambda: _with_queries("Blip2"),
    "instructblip": lambda: _with_queries("InstructBlip"),
    "kosmos2": kosmos2,
}
