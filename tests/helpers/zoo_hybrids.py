"""Models with recurrent states, alone or beside attention, tiny and random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as t

from tests.helpers.tiny_models import VOCABULARY
from tests.helpers.zoo_parts import TEXT, Model, prompts, ready, without

MIXED = ["linear_attention", "full_attention", "linear_attention"]


def mamba() -> Model:
    config = t.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, state_size=4, pad_token_id=0)
    # a recurrent state does not know about padding
    return ready(t.MambaForCausalLM(config)), {name: value[:1] for name, value in prompts().items()}


def falcon_h1() -> Model:
    """Every block has attention and a recurrent state; asks for one position's logits, whatever it is told."""
    sizes = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4)
    return ready(t.FalconH1ForCausalLM(t.FalconH1Config(**TEXT | {"num_key_value_heads": 4}, **sizes))), prompts()


def bamba() -> Model:
    """Block 1 has attention, the others a recurrent state."""
    sizes = dict(attn_layer_indices=[1], mamba_d_state=4, mamba_n_heads=8, mamba_d_head=8)
    return ready(t.BambaForCausalLM(t.BambaConfig(**TEXT, **sizes))), prompts()


def lfm2() -> Model:
    """Block 1 has attention, the others convolve."""
    config = t.Lfm2Config(**TEXT, layer_types=["conv", "full_attention", "conv"])
    return ready(t.Lfm2ForCausalLM(config)), prompts()


def minimax() -> Model:
    """Keeps recurrent states in a cache of its own class, beside the entries."""
    sizes = dict(num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    config = t.MiniMaxConfig(**TEXT, **sizes, layer_types=["linear_attention", "full_attention", "linear_attention"])
    return ready(t.MiniMaxForCausalLM(config)), prompts()


def jamba() -> Model:
    sizes = dict(attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1)
    sizes |= dict(num_experts=2, num_experts_per_tok=1, mamba_d_state=4, use_mamba_kernels=False)
    return ready(t.JambaForCausalLM(t.JambaConfig(**TEXT, **sizes))), prompts()


def qwen3_next() -> Model:
    # of 8 values a head's output may be as short as 4e-5, and the norm behind it makes of rounding 1e-5 of a logit
    linear = dict(linear_key_head_dim=8, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
    config = t.Qwen3NextConfig(**TEXT, **linear, **experts, head_dim=8, layer_types=MIXED)
    return ready(t.Qwen3NextForCausalLM(config)), prompts()


def granite_hybrid() -> Model:
    sizes = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4, num_local_experts=4, num_experts_per_tok=2)
    types = ["mamba", "attention", "mamba"]
    config = t.GraniteMoeHybridConfig(**TEXT, **sizes, shared_intermediate_size=16, layer_types=types)
    return ready(t.GraniteMoeHybridForCausalLM(config)), prompts()


def nemotron_h() -> Model:
    """Each block is one thing: a recurrent state, attention, or an MLP."""
    sizes = dict(ssm_state_size=4, mamba_num_heads=8, mamba_head_dim=8, n_groups=2, head_dim=8, use_mamba_kernels=False)
    given = without("num_hidden_layers", layers_block_type=["mamba", "attention", "mlp", "mamba"])
    return ready(t.NemotronHForCausalLM(t.NemotronHConfig(**given, **sizes))), prompts()


def recurrent_gemma() -> Model:
    sizes = dict(block_types=["recurrent", "attention", "recurrent"], attention_window_size=16, lru_width=32)
    config = t.RecurrentGemmaConfig(**without("max_position_embeddings"), **sizes)
    return ready(t.RecurrentGemmaForCausalLM(config)), prompts()


def rwkv() -> Model:
    config = t.RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, attention_hidden_size=32)
    return ready(t.RwkvForCausalLM(config)), {name: value[:1] for name, value in prompts().items()}


def xlstm() -> Model:
    sizes = dict(num_heads=4, chunk_size=4)
    config = t.xLSTMConfig(vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=3, **sizes)
    return ready(t.xLSTMForCausalLM(config)), {name: value[:1] for name, value in prompts().items()}


def xlnet() -> Model:
    sizes = dict(d_model=32, n_layer=3, n_head=4, d_inner=48, dropout=0.0)
    return ready(t.XLNetLMHeadModel(t.XLNetConfig(vocab_size=VOCABULARY, **sizes))), prompts()


def reformer() -> Model:
    sizes: dict[str, Any] = dict(attention_head_size=8, attn_layers=["local", "local", "local"], feed_forward_size=48)
    sizes |= dict(axial_pos_embds=False, hidden_size=32, is_decoder=True, local_attn_chunk_length=8)
    sizes |= dict(max_position_embeddings=128, num_attention_heads=4, vocab_size=VOCABULARY, hidden_dropout_prob=0.0)
    model = ready(t.ReformerModelWithLMHead(t.ReformerConfig(**sizes, local_attention_probs_dropout_prob=0.0)))
    return model, {name: value[:1] for name, value in prompts().items()}


HYBRID_ZOO: dict[str, Callable[[], Model]] = {
    "mamba": mamba,
    "falcon_h1": falcon_h1,
    "bamba": bamba,
    "lfm2": lfm2,
    "jamba": jamba,
    "qwen3_next": qwen3_next,
    "granite_hybrid": granite_hybrid,
    "nemotron_h": nemotron_h,
    "recurrent_gemma": recurrent_gemma,
}
# keep states beside the layers of a cache, or carry them from block to block
UNSKIPPABLE_ZOO: dict[str, Callable[[], Model]] = {
    "minimax": minimax,
    "rwkv": rwkv,
    "xlstm": xlstm,
    "xlnet": xlnet,
    "reformer": reformer,
}
