"""Text models of many families, tiny and random, with a left-padded batch each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

from tests.helpers.tiny_models import VOCABULARY, tiny_batch, tiny_model
from tests.helpers.zoo_parts import LENGTH, ROWS, TEXT, Model, prompts, ready, without

# sizes of models whose configuration has names of its own
N_SIZES: dict[str, Any] = dict(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128)


def gpt2() -> Model:
    config = t.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128)
    return ready(t.GPT2LMHeadModel(config)), prompts()


def gpt_bigcode() -> Model:
    config = t.GPTBigCodeConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128)
    return ready(t.GPTBigCodeForCausalLM(config)), prompts()


def gptj() -> Model:
    config = t.GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, rotary_dim=4)
    return ready(t.GPTJForCausalLM(config)), prompts()


def codegen() -> Model:
    config = t.CodeGenConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, rotary_dim=4)
    return ready(t.CodeGenForCausalLM(config)), prompts()


def ctrl() -> Model:
    sizes = dict(vocab_size=VOCABULARY, n_embd=32, dff=48, n_layer=3, n_head=4, n_positions=128)
    return ready(t.CTRLLMHeadModel(t.CTRLConfig(**sizes))), prompts()


def opt() -> Model:
    config = t.OPTConfig(**without("intermediate_size", "num_key_value_heads", ffn_dim=48, word_embed_proj_dim=32))
    return ready(t.OPTForCausalLM(config)), prompts()


def bloom() -> Model:
    return ready(t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4))), (
        prompts()
    )


def phi3_long() -> Model:
    """Its rotary factors change once the sequence is longer than the prompt and a token or two."""
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    config = t.Phi3Config(**TEXT, rope_parameters=factors, original_max_position_embeddings=LENGTH + 2)
    return ready(t.Phi3ForCausalLM(config)), prompts()


def deepseek_v3() -> Model:
    sizes = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1)
    latent = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
    config = t.DeepseekV3Config(**TEXT | {"num_key_value_heads": 4}, **sizes, **latent, first_k_dense_replace=1)
    return ready(t.DeepseekV3ForCausalLM(config)), prompts()


def deepseek_v32() -> Model:
    """Attends to a few keys of its choice, of which some tie."""
    sizes = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1)
    latent = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
    index = dict(index_head_dim=16, index_n_heads=2, index_topk=4)
    config = t.DeepseekV32Config(**TEXT | {"num_key_value_heads": 4}, **sizes, **latent, **index)
    return ready(t.DeepseekV32ForCausalLM(config)), prompts()


def deepseek_v4() -> Model:
    sizes = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, q_lora_rank=8, head_dim=8)
    config = t.DeepseekV4Config(**TEXT | {"num_key_value_heads": 1}, **sizes, index_head_dim=8, index_n_heads=2)
    return ready(t.DeepseekV4ForCausalLM(config)), prompts()


def moshi(window: int = 4) -> Model:
    """Leaves it to its cache to forget what lies outside of a window."""
    config = t.MoshiConfig(**without("intermediate_size", ffn_dim=48, sliding_window=window, audio_vocab_size=16))
    return ready(t.MoshiForCausalLM(config)), {name: value[:1] for name, value in prompts().items()}


def text(model_class: Any, config_class: Any, **others: Any) -> Callable[[], Model]:
    def build() -> Model:
        return ready(model_class(config_class(**TEXT | others))), prompts()

    return build


def plain(family: str) -> Callable[[], Model]:
    def build() -> Model:
        model = tiny_model(family)
        return model, tiny_batch(model, rows=ROWS)

    return build


def typed_prompts(build: Callable[[], Model]) -> Callable[[], Model]:
    """With types of tokens that differ along the prompt."""

    def typed() -> Model:
        model, inputs = build()
        types = torch.randint(2, 20, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(4))
        return model, inputs | {"token_type_ids": types}

    return typed


def mpt() -> Model:
    """Its blocks return tuples, and add a bias per key."""
    sizes = dict(d_model=32, n_heads=4, n_layers=3, expansion_ratio=2, max_seq_len=64, vocab_size=VOCABULARY)
    return ready(t.MptForCausalLM(t.MptConfig(**sizes))), prompts()


def falcon(**others: Any) -> Callable[[], Model]:
    """Its blocks return tuples."""
    sizes = without("num_key_value_heads", "intermediate_size", **others)
    return lambda: (ready(t.FalconForCausalLM(t.FalconConfig(**sizes))), prompts())


def deepseek_v2() -> Model:
    sizes = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1)
    latent = dict(kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
    config = t.DeepseekV2Config(**TEXT | {"num_key_value_heads": 4}, **sizes, **latent, first_k_dense_replace=1)
    return ready(t.DeepseekV2ForCausalLM(config)), prompts()


EXPERTS: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2)
WINDOWS = dict(sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
GRANITE = dict(residual_multiplier=0.7, embedding_multiplier=2.0, attention_multiplier=0.3, logits_scaling=1.5)

TEXT_ZOO: dict[str, Callable[[], Model]] = {
    **{family: plain(family) for family in ("llama", "qwen3", "olmoe", "olmo2", "gemma2", "mistral", "gpt_neox")},
    "mixtral": text(t.MixtralForCausalLM, t.MixtralConfig, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": text(t.Qwen2ForCausalLM, t.Qwen2Config),
    "qwen3_moe": text(t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig, head_dim=8, moe_intermediate_size=16, **EXPERTS),
    "gemma": text(t.GemmaForCausalLM, t.GemmaConfig, head_dim=8),
    "gemma3, text": text(t.Gemma3ForCausalLM, t.Gemma3TextConfig, head_dim=8, **WINDOWS),
    "phi3": text(t.Phi3ForCausalLM, t.Phi3Config),
    "phi3, long": phi3_long,
    "phi": text(t.PhiForCausalLM, t.PhiConfig),
    "olmo": text(t.OlmoForCausalLM, t.OlmoConfig),
    "olmo3": text(t.Olmo3ForCausalLM, t.Olmo3Config, **WINDOWS),
    "smollm3": text(t.SmolLM3ForCausalLM, t.SmolLM3Config, no_rope_layers=[1, 1, 0]),
    "granite": text(t.GraniteForCausalLM, t.GraniteConfig, **GRANITE),
    "glm4": text(t.Glm4ForCausalLM, t.Glm4Config, head_dim=8),
    "cohere": text(t.CohereForCausalLM, t.CohereConfig),
    "cohere2": text(t.Cohere2ForCausalLM, t.Cohere2Config, head_dim=8, **WINDOWS),
    "stablelm": text(t.StableLmForCausalLM, t.StableLmConfig),
    "falcon": plain("falcon"),
    "falcon, alibi": falcon(alibi=True),
    "mpt": mpt,
    "bloom": bloom,
    "gpt2": gpt2,
    "gpt2, types": typed_prompts(gpt2),
    "gpt_bigcode": gpt_bigcode,
    "gptj": gptj,
    "gptj, types": typed_prompts(gptj),
    "codegen, types": typed_prompts(codegen),
    "ctrl, types": typed_prompts(ctrl),
    "opt": opt,
    "flex_olmo": text(t.FlexOlmoForCausalLM, t.FlexOlmoConfig, **EXPERTS),
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "deepseek_v32": deepseek_v32,
    "deepseek_v4": deepseek_v4,
    "moshi": moshi,
    "gpt_oss": text(
        t.GptOssForCausalLM, t.GptOssConfig, num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=4
    ),
}
