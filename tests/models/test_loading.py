"""Options of loading reach the model."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from lit_depth import DepthModule
from lit_depth.models.loading import BUNDLED, load_checkpoint, new_model


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_attention_asked_for_is_the_one_that_runs(name):
    for model, _ in (
        load_checkpoint("bundled", attn_implementation=name),
        new_model(str(BUNDLED), attn_implementation=name),
    ):
        parts = (model, model.model.language_model, model.model.vision_tower)
        assert [part.config._attn_implementation for part in parts] == [name] * 3
    module = DepthModule(str(BUNDLED), from_scratch=True, attn_implementation=name)
    assert module.model.model.language_model.config._attn_implementation == name


def test_attention_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="nonsense"):
        load_checkpoint("bundled", attn_implementation="nonsense")
    if find_spec("flash_attn") is None:
        with pytest.raises(ValueError, match="'flash_attention_2' is not available"):
            load_checkpoint("bundled", attn_implementation="flash_attention_2")
