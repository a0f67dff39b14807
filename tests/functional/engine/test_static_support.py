"""What static buffers do not serve is said before anything is decoded, and a changed model is seen."""

from __future__ import annotations

import pytest
from torch import nn

from lit_depth.functional import find_blocks
from lit_depth.functional.engine.static_support import check_serves_static, state_of
from tests.helpers.model_zoo import ZOO
from tests.helpers.tiny_models import tiny_model


def _with(model, **settings):
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: _with(tiny_model("llama"), repetition_penalty=1.3), "repetition_penalty"),
        (lambda: ZOO["mamba"]()[0], "."),
        (lambda: tiny_model("llama").to("meta"), "devices"),
    ],
    ids=["penalty", "recurrent", "meta"],
)
def test_what_cannot_be_served_is_refused(model, reason):
    made = model()
    with pytest.raises(ValueError, match=reason):
        check_serves_static(made, find_blocks(made))


def test_flash_attention_is_refused():
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="load it with sdpa attention"):
        check_serves_static(model, find_blocks(model))


def test_a_changed_model_has_another_state():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)).eval()
    states = [state_of(model)]

    def note() -> None:
        states.append(state_of(model))

    hook = model[0].register_forward_hook(lambda *_: None)
    note()
    hook.remove()
    assert state_of(model) == states[0]
    model[0].weight.data.add_(1.0)
    assert state_of(model) == states[0]
    model[1].p = 0.2
    note()
    model[0].weight.data = model[0].weight.data.clone()
    note()
    model[0] = nn.Linear(2, 2).eval()
    note()
    model[0].weight.data = model[0].weight.data.T  # lies at the same place
    note()
    for factor in (1, 2, 3):  # each may lie where the one before it lay
        model[0].forward = lambda x, by=factor: x * by
        note()
    assert len(set(states)) == len(states)


def test_a_changed_setting_of_the_configuration_is_another_state():
    model = tiny_model("llama")
    before = state_of(model)
    assert state_of(model) == before
    model.config.pad_token_id = 3
    assert state_of(model) != before
