"""What can be skipped, and what the engine drives."""

from __future__ import annotations

import pytest
from transformers import Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nForCausalLM
from transformers.models.t5 import T5Config, T5ForConditionalGeneration

from lit_depth.functional import find_blocks, masked
from lit_depth.functional.masking.support import adds_between_blocks, check_drivable
from tests.helpers.model_zoo import ZOO
from tests.helpers.tiny_models import tiny_model
from tests.helpers.zoo_hybrids import UNSKIPPABLE_ZOO


def test_coupled_models_are_refused():
    small = dict(vocab_size=16, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=4)
    small |= dict(num_key_value_heads=1, head_dim=8)
    shared = Gemma3nForCausalLM(
        Gemma3nTextConfig(
            **small, num_kv_shared_layers=2, vocab_size_per_layer_input=16, hidden_size_per_layer_input=4, laurel_rank=2
        )
    )
    with pytest.raises(ValueError, match="share the keys and values"):
        masked(shared, [True, False, True, True])
    encoder_decoder = T5ForConditionalGeneration(
        T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    )
    with pytest.raises(ValueError, match="encoder-decoder"):
        masked(encoder_decoder, [True, False])
    crossed = tiny_model("llama")
    find_blocks(crossed)[2].self_attn.layer_idx = 1
    with pytest.raises(ValueError, match="block 2 uses cache layer 1"):
        masked(crossed, [True, False, True, True])


@pytest.mark.parametrize("name", ["mamba", "lfm2"])
def test_the_form_of_a_model_tells_beforehand_why_it_is_not_driven(name):
    model, _ = ZOO[name]()
    assert "recurrent state" in check_drivable(model, find_blocks(model))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("minimax", "MiniMaxCache keeps states beside its layers"),
        ("rwkv", r"block 0 takes and returns more than the residual stream \(state\)"),
        ("xlnet", r"more than the residual stream \(output_g\)"),
    ],
)
def test_other_states_than_the_residual_stream_and_a_cache_are_refused_with_the_reason(name, reason):
    model, _ = UNSKIPPABLE_ZOO[name]()
    blocks = find_blocks(model)
    with pytest.raises(ValueError, match=reason):
        check_drivable(model, blocks)
    with pytest.raises(ValueError, match=reason):
        masked(model, [True] * len(blocks))


def test_features_added_between_blocks_are_known_beforehand():
    decoders = [model.get_decoder() for model in (ZOO["qwen3_vl"]()[0], ZOO["qwen2_vl"]()[0])]
    assert [adds_between_blocks(each) for each in (*decoders, None)] == [True, False, False]


def test_what_is_driven_has_no_reason_and_what_cannot_be_skipped_is_refused():
    model = tiny_model("llama")
    assert check_drivable(model, find_blocks(model)) is None
    find_blocks(model)[1].self_attn.layer_idx = 3
    with pytest.raises(ValueError, match="block 1 uses cache layer 3"):
        check_drivable(model, find_blocks(model))
