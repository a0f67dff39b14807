"""What an answer depends on beside the weights: every change of it shows, and nothing else does."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
from PIL import Image
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_depth.models.loading import BUNDLED, load_bundled, load_checkpoint
from lit_depth.models.settings import checkpoint_files, model_settings, processor_settings


@pytest.fixture(scope="module")
def bundled():
    return load_bundled()


def test_they_are_json_and_the_same_wherever_the_checkpoint_lies(bundled, tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "copy")
    model, processor = load_checkpoint(str(tmp_path / "copy"))
    for settings, one, other in ((model_settings, bundled[0], model), (processor_settings, bundled[1], processor)):
        assert json.loads(json.dumps(settings(one))) == settings(other)
        assert str(tmp_path) not in json.dumps(settings(other))


def test_use_changes_nothing(bundled):
    model, processor = bundled
    before = model_settings(model), processor_settings(processor)
    images = [Image.new("RGB", (30, 30)), Image.new("RGB", (90, 30))]
    inputs = processor(images=images, text=["a", "bb c"], padding_side="left", max_length=500)
    model.generate(**inputs, max_new_tokens=2, do_sample=False)
    processor.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=4)
    assert (model_settings(model), processor_settings(processor)) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.config.text_config, "num_experts_per_tok", 1),
        lambda model: model.config.text_config.rope_parameters.update(rope_theta=5e5),
        lambda model: setattr(model.generation_config, "repetition_penalty", 1.5),
        lambda model: setattr(model.generation_config, "use_cache", False),
        lambda model: model.set_attn_implementation("eager"),
        lambda model: setattr(model.model.language_model.layers[3].mlp.experts, "act_fn", nn.ReLU()),
        lambda model: setattr(model, "lm_head", nn.Sequential(model.lm_head)),
    ],
)
def test_a_change_of_a_model_shows(change):
    model, _ = load_bundled()
    before = model_settings(model)
    change(model)
    assert model_settings(model) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda processor: setattr(processor.image_processor, "max_crops", 3),
        lambda processor: setattr(processor.image_processor, "image_mean", [0.5, 0.5, 0.5]),
        lambda processor: setattr(processor.tokenizer, "chat_template", "{{ messages }}"),
        lambda processor: setattr(processor.tokenizer, "padding_side", "right"),
        lambda processor: setattr(processor.tokenizer, "pad_token", "<|endoftext|>"),
        lambda processor: processor.tokenizer.add_tokens(["quark"]),
    ],
)
def test_a_change_of_a_processor_shows(bundled, change):
    processor = copy.deepcopy(bundled[1])
    before = processor_settings(processor)
    change(processor)
    assert processor_settings(processor) != before


def test_a_place_in_memory_is_no_setting():
    class WithFunction(nn.Module):
        def __init__(self):
            super().__init__()
            self.function = lambda x: x

        def extra_repr(self):
            return repr(self.function)

    assert model_settings(WithFunction()) == model_settings(WithFunction())
    assert model_settings(WithFunction())["configuration"] == {}


def test_a_tokenizer_alone_is_a_processor(bundled):
    tokenizer = bundled[1].tokenizer
    assert processor_settings(tokenizer)["tokenizer"] == processor_settings(bundled[1])["tokenizer"]


def test_files_that_decide_and_no_others(tmp_path):
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, head_dim=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="1KB")
    decide = ["merges.txt", "vocab.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja"]
    decide += ["preprocessor_config.json", "modeling_mine.py", "additional_chat_templates/tools.jinja"]
    others = [
        "README.md",
        "LICENSE.txt",
        "trainer_state.json",
        "training_curve.json",
        "pytorch_model.bin",
        ".gitattributes",
    ]
    (tmp_path / "additional_chat_templates").mkdir()
    for name in decide + others:
        (tmp_path / name).write_text("{}")
    found = checkpoint_files(str(tmp_path))
    shards = [path.name for path in tmp_path.glob("model-*.safetensors")]
    assert len(shards) > 1
    own = ["config.json", "generation_config.json", "model.safetensors.index.json"]
    assert sorted(found) == sorted([*decide, *own, *shards])
    assert all(found[name] == tmp_path / name for name in found)


def test_an_id_on_the_hub_is_its_snapshot_in_the_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--own--model" / "snapshots" / ("ab" * 20)
    shutil.copytree(BUNDLED, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("ab" * 20)
    from transformers.utils import hub

    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = checkpoint_files("own/model")
    assert (
        found["model.safetensors"] == snapshot / "model.safetensors"
        and found.keys() == checkpoint_files("bundled").keys()
    )
