"""``--model lit_depth`` of lmms-eval; that its answers are those of a run is tested beside the tasks."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest
import torch
from PIL import Image

from lit_depth import DepthModule
from lit_depth.data import get_task
from lit_depth.integrations import lmms_eval_model
from lit_depth.integrations.lmms_eval_model import greedy_answer
from tests.helpers.tiny_checkpoints import write_llava


def test_an_answer_is_that_of_generate_under_the_mask(tmp_path):
    module = DepthModule(checkpoint=str(write_llava(tmp_path)))
    picture, masks = Image.new("RGB", (24, 16), "red"), [[True] * 4, [False, True, True, False]]
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it red?"}]}
    prompt = module.processor.apply_chat_template([turn], add_generation_prompt=True)
    inputs = module.processor(images=[picture], text=[prompt], return_tensors="pt", add_special_tokens=False)
    found = []
    for mask in map(torch.tensor, masks):
        with module.masked(mask):
            tokens = module.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        (expected,) = module.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append(greedy_answer(module, mask, "Is it red?", [picture], {"max_new_tokens": 8}))
        assert found[-1] == expected
    assert found[0] != found[1]


def test_an_answer_ends_before_the_models_end_token_and_begins_behind_the_reasoning(tmp_path):
    module, mask = DepthModule(checkpoint=str(write_llava(tmp_path))), torch.ones(4).bool()
    inputs = module.prompter.encode_prompt("Is it red?")
    start = inputs["input_ids"].shape[1]
    whole = module.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, start:].tolist()
    place = next(place for place in range(2, 8) if whole[place] not in whole[:place])
    module.model.generation_config.eos_token_id = whole[place]  # a piece like any other, and no special token

    def answer():
        return greedy_answer(module, mask, "Is it red?", [], {"max_new_tokens": 8})

    said, first = module.tokenizer.decode(whole[:place]), module.tokenizer.decode(whole[:1])
    assert answer() == said
    module.hparams["answer_after"] = first
    assert answer() == said.rpartition(first)[2] != said


def test_lmms_eval_finds_the_model_by_its_entry_point():
    pytest.importorskip("lmms_eval", reason="make parity installs lmms-eval")
    from lmms_eval.api.model import lmms

    known = lmms_eval_model.manifest()
    module, _, name = known.simple_class_path.rpartition(".")
    assert known.model_id == "lit_depth" and issubclass(getattr(sys.modules[module], name), lmms)
    points = [point.value for point in metadata.entry_points(group="lmms_eval.models") if point.name == "lit_depth"]
    assert points in ([], ["lit_depth.integrations.lmms_eval_model:manifest"])  # none in a checkout not installed anew


def test_lmms_eval_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ValueError, match="needs lmms-eval, which is not installed .*pip install"):
        get_task("lmms_eval:not_looked_up")
    with pytest.raises(AttributeError):
        _ = lmms_eval_model.nothing
