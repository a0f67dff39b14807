"""What the last query of every block's attention sees, as a stand-in for the attention function notes it."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_depth.functional import find_blocks
from lit_depth.functional.token_masking.capture import recording
from tests.helpers.tiny_models import tiny_model

TOKENS = torch.arange(2, 13)[None]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
@torch.no_grad()
def test_logits_are_those_of_the_models_own_attention_weights(family):
    """Grouped heads, a soft cap, sliding windows: against the weights that eager attention returns."""
    model = tiny_model(family)
    model.set_attn_implementation("eager")
    blocks = find_blocks(model)
    with recording(blocks, model.config) as recorder:
        weights = model(TOKENS, use_cache=False, output_attentions=True).attentions
    for block, expected in zip(blocks, weights):
        (seen,) = recorder.attentions[block]
        assert seen.module is block.self_attn and seen.values.shape[1] == TOKENS.shape[1]
        torch.testing.assert_close(seen.logits.softmax(-1), expected[0, :, -1], rtol=1e-5, atol=1e-6)


def test_the_attention_function_comes_back_after_an_error():
    model = tiny_model("llama")
    before = model(TOKENS).logits
    with pytest.raises(ZeroDivisionError), recording(find_blocks(model), model.config):
        raise ZeroDivisionError
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
    assert torch.equal(model(TOKENS).logits, before)


def test_other_attention_is_refused():
    model = tiny_model("llama")
    model.config._attn_implementation = "flex_attention"
    with (
        pytest.raises(ValueError, match="'sdpa' or 'eager', got 'flex_attention'"),
        recording(model.model.layers, model.config),
    ):
        pass
