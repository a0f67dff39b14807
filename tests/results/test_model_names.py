"""How a run's model is called."""

from __future__ import annotations

import pytest

from lit_depth.results.model_names import KNOBS, model_changes, model_name, without_skipping


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"model.checkpoint": "org/model"}, "org/model"),
        ({"model.checkpoint": "bundled", "model.revision": None}, "bundled"),
        ({"checkpoint": "/some/where/mine"}, "mine"),
        ({"model.checkpoint": "org/model", "model.revision": "v1"}, "org/model @ v1"),
    ],
)
def test_a_model_is_named_by_its_checkpoint(arguments, name):
    assert model_name(arguments) == name


def test_only_what_was_asked_for_is_told():
    assert model_changes({}) == model_changes(dict.fromkeys(KNOBS)) == []
    assert model_changes({"model.experts_per_token": 2}) == ["2 experts per token"]
    assert model_changes({"model.max_crops": 1}) == ["at most 1 crop"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model.phase": "both", "model.skip_tokens": "all"}, []),
        ({"model.phase": "prefill"}, []),  # as both: nothing to decode on
        ({"model.phase": "decode"}, ["all tokens skip blocks, in decode steps alone"]),
        (
            {"model.phase": "prefill", "model.decode_without_prompt": True},
            ["all tokens skip blocks, in prompts alone"],
        ),
        ({"model.skip_tokens": "image"}, ["image tokens alone skip blocks"]),
    ],
)
def test_who_skips_is_told_unless_all_tokens_always_do(arguments, words):
    assert model_changes(arguments) == words
    assert without_skipping(", ".join(["mine", *words])) == "mine"
