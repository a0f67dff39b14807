"""A model is changed for one pass and given back exactly."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional.model_state import eager_attention, evaluation_mode, only_these_require_grad
from tests.helpers.tiny_models import tiny_model


def modes(model) -> list[bool]:
    return [module.training for module in model.modules()]


def flags(model) -> list[bool]:
    return [weight.requires_grad for weight in model.parameters()]


def test_every_module_gets_its_own_mode_back_after_an_error():
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    before = modes(model)
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not any(modes(model))
        raise ZeroDivisionError
    assert modes(model) == before and any(before) and not all(before)


def test_only_these_weights_require_a_gradient():
    model = tiny_model("llama")
    model.lm_head.weight.requires_grad_(False)
    chosen, before = list(model.model.layers[0].mlp.parameters()), flags(model)
    with pytest.raises(ZeroDivisionError), only_these_require_grad(model, chosen):
        assert {id(w) for w in model.parameters() if w.requires_grad} == {id(w) for w in chosen}
        raise ZeroDivisionError
    assert flags(model) == before


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_attention_is_eager_inside_and_what_it_was_outside(family):
    model = tiny_model(family)
    decoder = model.get_decoder()
    before = [each.config._attn_implementation for each in model.modules() if hasattr(each, "set_attn_implementation")]
    with pytest.raises(ZeroDivisionError), eager_attention(decoder):
        assert decoder(torch.tensor([[2, 3]]), output_attentions=True).attentions is not None
        assert decoder.config._attn_implementation == "eager"
        raise ZeroDivisionError
    after = [each.config._attn_implementation for each in model.modules() if hasattr(each, "set_attn_implementation")]
    assert after == before and "eager" not in before


def test_without_a_decoder_nothing_happens():
    with eager_attention(None):
        pass
