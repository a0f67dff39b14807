"""Many families of Hugging Face models, tiny and random, each with a left-padded batch as its processor would make it.

A law about models is written once and run over `ZOO`. A new family is one function more: it returns a model in float32
and evaluation mode, and inputs with the padding, images and types of tokens that the family knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from tiny_models import VOCABULARY, tiny_batch, tiny_model
from torch import Tensor

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


def _ready(model: t.PreTrainedModel) -> t.PreTrainedModel:
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


def _prompts(first: int = 2, images: int = 0) -> dict[str, Tensor]:
    """Prompts of different lengths; ``images`` image tokens each, which padding never reaches."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(first, VOCABULARY - 4, (ROWS, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 1)):
        ids[row, :padding] = 0
        mask[row, :padding] = 0
    ids[:, 3 : 3 + images] = IMAGE_TOKEN
    return {"input_ids": ids, "attention_mask": mask}


def _pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def _without(*names: str, **others: Any) -> dict[str, Any]:
    return {name: value for name, value in TEXT.items() if name not in names} | others


def _text(model_class: Any, config_class: Any, *without: str, **others: Any) -> Callable[[], Model]:
    def build() -> Model:
        return _ready(model_class(config_class(**_without(*without, **others)))), _prompts()

    return build


def _plain(family: str) -> Callable[[], Model]:
    def build() -> Model:
        model = tiny_model(family)
        return model, tiny_batch(model, rows=ROWS)

    return build


def _typed(build: Callable[[], Model]) -> Callable[[], Model]:
    """With types of tokens that differ along the prompt."""

    def typed() -> Model:
        model, inputs = build()
        types = torch.randint(2, 20, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(4))
        return model, inputs | {"token_type_ids": types}

    return typed


def gpt2() -> Model:
    config = t.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128)
    return _ready(t.GPT2LMHeadModel(config)), _prompts()


def gpt_bigcode() -> Model:
    config = t.GPTBigCodeConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128)
    return _ready(t.GPTBigCodeForCausalLM(config)), _prompts()


def gptj() -> Model:
    config = t.GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, rotary_dim=4)
    return _ready(t.GPTJForCausalLM(config)), _prompts()


def codegen() -> Model:
    config = t.CodeGenConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, rotary_dim=4)
    return _ready(t.CodeGenForCausalLM(config)), _prompts()


def ctrl() -> Model:
    sizes = dict(vocab_size=VOCABULARY, n_embd=32, dff=48, n_layer=3, n_head=4, n_positions=128)
    return _ready(t.CTRLLMHeadModel(t.CTRLConfig(**sizes))), _prompts()


def opt() -> Model:
    config = t.OPTConfig(**_without("intermediate_size", "num_key_value_heads", ffn_dim=48, word_embed_proj_dim=32))
    return _ready(t.OPTForCausalLM(config)), _prompts()


def bloom() -> Model:
    return _ready(t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4))), (
        _prompts()
    )


def phi3_long() -> Model:
    """Its rotary factors change once the sequence is longer than the prompt and a token or two."""
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    config = t.Phi3Config(**TEXT, rope_parameters=factors, original_max_position_embeddings=LENGTH + 2)
    return _ready(t.Phi3ForCausalLM(config)), _prompts()


def mamba() -> Model:
    config = t.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, state_size=4, pad_token_id=0)
    # a recurrent state does not know about padding
    return _ready(t.MambaForCausalLM(config)), {name: value[:1] for name, value in _prompts().items()}


def falcon_h1() -> Model:
    """Every block has attention and a recurrent state; asks for one position's logits, whatever it is told."""
    sizes = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4)
    return _ready(t.FalconH1ForCausalLM(t.FalconH1Config(**TEXT | {"num_key_value_heads": 4}, **sizes))), _prompts()


def bamba() -> Model:
    """Block 1 has attention, the others a recurrent state."""
    sizes = dict(attn_layer_indices=[1], mamba_d_state=4, mamba_n_heads=8, mamba_d_head=8)
    return _ready(t.BambaForCausalLM(t.BambaConfig(**TEXT, **sizes))), _prompts()


def lfm2() -> Model:
    """Block 1 has attention, the others convolve."""
    config = t.Lfm2Config(**TEXT, layer_types=["conv", "full_attention", "conv"])
    return _ready(t.Lfm2ForCausalLM(config)), _prompts()


def minimax() -> Model:
    """Keeps recurrent states in a cache of its own class, beside the entries."""
    sizes = dict(num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    config = t.MiniMaxConfig(**TEXT, **sizes, layer_types=["linear_attention", "full_attention", "linear_attention"])
    return _ready(t.MiniMaxForCausalLM(config)), _prompts()


def deepseek_v3() -> Model:
    sizes = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1)
    latent = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
    config = t.DeepseekV3Config(**TEXT | {"num_key_value_heads": 4}, **sizes, **latent, first_k_dense_replace=1)
    return _ready(t.DeepseekV3ForCausalLM(config)), _prompts()


def deepseek_v32() -> Model:
    """Attends to a few keys of its choice, of which some tie."""
    sizes = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1)
    latent = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
    index = dict(index_head_dim=16, index_n_heads=2, index_topk=4)
    config = t.DeepseekV32Config(**TEXT | {"num_key_value_heads": 4}, **sizes, **latent, **index)
    return _ready(t.DeepseekV32ForCausalLM(config)), _prompts()


def deepseek_v4() -> Model:
    sizes = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, q_lora_rank=8, head_dim=8)
    config = t.DeepseekV4Config(**TEXT | {"num_key_value_heads": 1}, **sizes, index_head_dim=8, index_n_heads=2)
    return _ready(t.DeepseekV4ForCausalLM(config)), _prompts()


def moshi(window: int = 4) -> Model:
    """Leaves it to its cache to forget what lies outside of a window."""
    config = t.MoshiConfig(**_without("intermediate_size", ffn_dim=48, sliding_window=window, audio_vocab_size=16))
    return _ready(t.MoshiForCausalLM(config)), {name: value[:1] for name, value in _prompts().items()}


# ---- with images


def paligemma(types: bool = True) -> Model:
    """Sees the image and the prompt in both directions (types of 0), and what follows (1) causally."""
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=32).to_dict(),
        text_config=t.GemmaConfig(**TEXT, head_dim=8).to_dict(),
        image_token_index=IMAGE_TOKEN,
        projection_dim=32,
        hidden_size=32,
    )
    inputs = _prompts(images=4) | {"pixel_values": _pixels(ROWS, 3, 8, 8)}
    if types:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return _ready(t.PaliGemmaForConditionalGeneration(config)), inputs


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
    inputs = _prompts(images=4) | {"pixel_values": _pixels(ROWS, 3, 8, 8)}
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).long()
    return _ready(t.Gemma3ForConditionalGeneration(config)), inputs


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
    inputs = _prompts(images=1) | {"pixel_values": _pixels(ROWS, 1, 3, 8, 8)}
    inputs["pixel_attention_mask"] = torch.ones(ROWS, 1, 8, 8, dtype=torch.bool)
    return _ready(getattr(t, f"{family}ForConditionalGeneration")(config)), inputs


def qwen2_vl() -> Model:
    """Its images are patches of all rows in one line, its positions have three axes."""
    config = t.Qwen2VLConfig(
        vision_config=dict(depth=1, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=4),
        text_config=t.Qwen2VLTextConfig(
            **TEXT, rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
        ).to_dict(),
        image_token_id=IMAGE_TOKEN,
        video_token_id=VOCABULARY - 2,
        vision_start_token_id=VOCABULARY - 3,
        vision_end_token_id=VOCABULARY - 4,
    )
    inputs = _prompts(images=1)
    inputs["input_ids"][:, 3], inputs["input_ids"][:, 4] = VOCABULARY - 3, IMAGE_TOKEN
    inputs["pixel_values"] = _pixels(ROWS * 4, 3 * 2 * 4 * 4)
    inputs["image_grid_thw"] = torch.tensor([[1, 2, 2]] * ROWS)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).int()
    return _ready(t.Qwen2VLForConditionalGeneration(config)), inputs


def git() -> Model:
    """Puts the states of the image in front of the prompt."""
    sizes = _without("num_key_value_heads", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    vision = {**VISION, "num_hidden_layers": 1}
    model = _ready(t.GitForCausalLM(t.GitConfig(vision_config=vision, **sizes)))
    return model, _prompts() | {"pixel_values": _pixels(ROWS, 3, 8, 8) * 3}


def _with_queries(family: str) -> Model:
    text = t.OPTConfig(**_without("intermediate_size", "num_key_value_heads", ffn_dim=48, word_embed_proj_dim=32))
    queries = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config = getattr(t, f"{family}Config")(
        vision_config=VISION,
        qformer_config=queries | dict(vocab_size=VOCABULARY, encoder_hidden_size=16),
        text_config=text.to_dict(),
        num_query_tokens=2,
        image_token_index=IMAGE_TOKEN,
    )
    inputs = _prompts(images=2) | {"pixel_values": _pixels(ROWS, 3, 8, 8)}
    if family == "InstructBlip":
        inputs["qformer_input_ids"] = inputs["input_ids"].clamp(max=VOCABULARY - 2)
        inputs["qformer_attention_mask"] = inputs["attention_mask"]
    return _ready(getattr(t, f"{family}ForConditionalGeneration")(config)), inputs


def kosmos2() -> Model:
    """Its image tokens are told by a mask of their positions."""
    text = dict(vocab_size=VOCABULARY, embed_dim=32, layers=3, ffn_dim=48, attention_heads=4, dropout=0.0)
    config = t.Kosmos2Config(
        text_config=text | dict(attention_dropout=0.0, max_position_embeddings=128, pad_token_id=0),
        vision_config=VISION,
        latent_query_num=2,
    )
    inputs = _prompts() | {"pixel_values": _pixels(ROWS, 3, 8, 8)}
    positions = torch.zeros_like(inputs["input_ids"])
    positions[:, 3:5] = 1
    return _ready(t.Kosmos2ForConditionalGeneration(config)), inputs | {"image_embeds_position_mask": positions}


def forced_logprob(model: t.PreTrainedModel, inputs: dict[str, Tensor], answer_ids: Tensor) -> Tensor:
    """Mean log-probability of answers ``[rows, answer]`` (-100 = padding), decoded token by token by ``generate``.

    What it would choose is overruled, what it sees is not: the law that other ways to read an answer are held to.
    """
    forced = iter(answer_ids.clamp(min=0).T)

    def choose(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.zeros_like(scores).scatter(1, next(forced)[:, None], 1.0)

    outputs = model.generate(
        **inputs,
        max_new_tokens=answer_ids.shape[1],
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=[choose],
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = torch.stack(outputs.logits, dim=1).log_softmax(-1)
    found = logprobs.gather(-1, answer_ids.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.stack([row[known].mean() for row, known in zip(found, answer_ids >= 0)])


def plain_answers(model: t.PreTrainedModel, inputs: dict[str, Tensor], max_new_tokens: int, **options: Any) -> Tensor:
    """Greedy answers ``[rows, max_new_tokens]`` by ``generate``, padded with 0."""
    given = {"do_sample": False, "num_beams": 1, "use_cache": True, "eos_token_id": None, "pad_token_id": 0} | options
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, **given)[:, inputs["input_ids"].shape[1] :]
    return torch.nn.functional.pad(tokens, (0, max_new_tokens - tokens.shape[1]))


ZOO: dict[str, Callable[[], Model]] = {
    **{family: _plain(family) for family in ("llama", "qwen3", "olmoe", "olmo2", "gemma2", "mistral", "gpt_neox")},
    "falcon": _plain("falcon"),
    "llava": _plain("llava"),
    "gpt2": gpt2,
    "gpt2, types": _typed(gpt2),
    "gpt_bigcode": gpt_bigcode,
    "gptj": gptj,
    "gptj, types": _typed(gptj),
    "codegen, types": _typed(codegen),
    "ctrl, types": _typed(ctrl),
    "opt": opt,
    "bloom": bloom,
    "phi3, long": phi3_long,
    "mamba": mamba,
    "falcon_h1": falcon_h1,
    "flex_olmo": _text(t.FlexOlmoForCausalLM, t.FlexOlmoConfig, num_experts=4, num_experts_per_tok=2),
    "deepseek_v3": deepseek_v3,
    "deepseek_v32": deepseek_v32,
    "deepseek_v4": deepseek_v4,
    "moshi": moshi,
    "gpt_oss": _text(
        t.GptOssForCausalLM, t.GptOssConfig, num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=4
    ),
    "paligemma": paligemma,
    "paligemma, no types": lambda: paligemma(types=False),
    "gemma3": gemma3,
    "idefics3": idefics3,
    "smolvlm": lambda: idefics3("SmolVLM"),
    "qwen2_vl": qwen2_vl,
    "git": git,
    "blip2": lambda: _with_queries("Blip2"),
    "instructblip": lambda: _with_queries("InstructBlip"),
    "kosmos2": kosmos2,
}
