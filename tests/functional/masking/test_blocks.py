from __future__ import annotations

import pytest
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, OPTConfig, OPTForCausalLM

from lit_depth.functional import find_blocks, find_decoder
from tests.helpers.tiny_models import FAMILIES, tiny_model


class Holder(nn.Module):
    """A module that is no Hugging Face model but holds some, as a LightningModule does."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def vision_tower() -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=8, patch_size=4
        )
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_decoder_blocks_themselves(family):
    model = tiny_model(family)
    blocks = find_blocks(model)
    decoder = model.get_decoder()
    assert blocks is (decoder.h if family == "falcon" else decoder.layers)
    assert find_decoder(model, blocks) is decoder
    assert find_blocks(decoder) is blocks
    path = next(name for name, module in model.named_modules() if module is blocks)
    assert find_blocks(model, path) is blocks


def test_decoder_below_the_decoder():
    model = OPTForCausalLM(
        OPTConfig(vocab_size=16, hidden_size=16, ffn_dim=16, num_hidden_layers=3, num_attention_heads=2)
    )
    assert find_blocks(model) is model.model.decoder.layers


def test_as_many_experts_as_blocks_do_not_confuse():
    model = tiny_model("llama")
    model.model.layers[1].experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    assert find_blocks(model) is model.model.layers


def test_module_that_holds_one_language_model():
    model = tiny_model("llava")
    assert find_blocks(Holder(model=model)) is model.get_decoder().layers
    assert find_blocks(Holder(inner=Holder(net=model))) is model.get_decoder().layers
    assert find_blocks(Holder(tower=vision_tower(), language=model)) is model.get_decoder().layers


def test_several_candidates_are_named():
    holder = Holder(teacher=tiny_model("llama"), student=tiny_model("qwen3"))
    with pytest.raises(ValueError, match=r"found 2 .*teacher\.model\.layers, student\.model\.layers.*blocks="):
        find_blocks(holder)
    assert find_blocks(holder, "student.model.layers") is holder.student.model.layers


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]), vision_tower()])
def test_no_decoder_blocks(module):
    with pytest.raises(ValueError, match="found none in"):
        find_blocks(module)


def test_wrong_number_of_blocks_lists_what_there_is():
    model = tiny_model("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match=r"model\.layers \(4 entries\)"):
        find_blocks(model)
    assert len(find_blocks(model, "model.layers")) == 4


@pytest.mark.parametrize(
    "path,message",
    [
        ("model.layer", r"did you mean 'model\.layers'\?.*module lists are: model\.layers \(4 entries\)"),
        ("nowhere.layers", "LlamaForCausalLM has no child 'nowhere'"),
        ("model.norm", "ModuleList of blocks at 'model.norm', got LlamaRMSNorm"),
        ("model.layers.0.mlp.up.x", "model.layers.0.mlp has no child 'up'"),
        ("", "has no child ''"),
    ],
)
def test_bad_paths(path, message):
    with pytest.raises(ValueError, match=message):
        find_blocks(tiny_model("llama"), path)


def test_custom_model_by_path():
    holder = Holder(net=nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])))
    assert find_blocks(holder, "net.0") is holder.net[0]
    assert find_decoder(holder, holder.net[0]) is None
