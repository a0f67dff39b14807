"""Options of loading reach the model."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from lit_depth.models.loading import load_checkpoint


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_attention_asked_for_is_the_one_that_runs(name):
    model, _ = load_checkpoint("bundled", attn_implementation=name)
    parts = (model, model.model.language_model, model.model.vision_tower)
    assert [part.config._attn_implementation for part in parts] == [name] * 3


def test_attention_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="nonsense"):
        load_checkpoint("bundled", attn_implementation="nonsense")
    if find_spec("flash_attn") is None:
        with pytest.raises(ValueError, match="'flash_attention_2' is not available"):
            load_checkpoint("bundled", attn_implementation="flash_attention_2")
