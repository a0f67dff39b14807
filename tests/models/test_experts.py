"""The number of experts of a token, chosen on loading: equal to a configuration that was edited by hand."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from lit_depth import DepthModule
from lit_depth.models.experts import set_experts_per_token
from lit_depth.models.loading import BUNDLED, load_checkpoint, new_model, outline_model
from tests.helpers.families import FAMILIES

MIXTURES = ("Mixtral", "Qwen3-MoE", "OLMoE", "gpt-oss")
IDS = torch.tensor([[5, 9, 2, 30, 7]])


@pytest.fixture(scope="module", params=MIXTURES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("mixture")
    FAMILIES[request.param].write(path)
    return path


@torch.no_grad()
def logits(path, **options):
    return load_checkpoint(str(path), **options)[0](IDS).logits


def test_it_equals_a_configuration_edited_by_hand(folder, tmp_path):
    own = logits(folder)
    assert torch.equal(logits(folder, experts_per_token=2), own)  # what these checkpoints have
    config = json.loads((folder / "config.json").read_text())
    assert config["num_experts_per_tok"] == 2
    edited = shutil.copytree(folder, tmp_path / "edited")
    (edited / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 1}))
    one = logits(folder, experts_per_token=1)
    assert torch.equal(one, logits(edited)) and not torch.equal(one, own)


def test_every_way_to_make_a_model_takes_it():
    source = str(BUNDLED)
    before = AutoConfig.from_pretrained(source).text_config.num_experts_per_tok
    models = [make(source, experts_per_token=1)[0] for make in (load_checkpoint, new_model, outline_model)]
    models.append(DepthModule(experts_per_token=1).model)
    assert [model.config.text_config.num_experts_per_tok for model in models] == [1] * 4
    assert AutoConfig.from_pretrained(source).text_config.num_experts_per_tok == before > 1


def test_what_a_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match="expected experts_per_token from 1 to 8, the experts of a block, got 9"):
        load_checkpoint("bundled", experts_per_token=9)
    with pytest.raises(ValueError, match="from 1 to 8"):
        load_checkpoint("bundled", experts_per_token=0)
    message = "no --model.experts_per_token for a llama model, whose blocks have no experts to choose from, got 2"
    with pytest.raises(ValueError, match=re.escape(message)):
        set_experts_per_token(LlamaConfig(), 2)
    set_experts_per_token(LlamaConfig(), None)
