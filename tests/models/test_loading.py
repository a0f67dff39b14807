"""Options of loading reach the model; code that comes with a checkpoint runs only where that was asked for."""

from __future__ import annotations

import io
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import dynamic_module_utils

from lit_depth import DepthModule
from lit_depth.models.loading import BUNDLED, load_checkpoint, new_model
from lit_depth.models.prompting import prompter_for
from tests.helpers.families import FAMILIES


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


CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast, PreTrainedConfig, LlamaConfig, LlamaForCausalLM
Path({marker!r}).write_text("ran")
class Config(LlamaConfig):
    model_type = "of_its_own"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
class Processor:
    pass
"""
LLAMA = dict(vocab_size=406, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=2)
AUTO_MAP = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoProcessor": "code.Processor"}


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """Makes checkpoints that come with code; the user answers yes to whatever is asked."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    marker = tmp_path / "ran"

    def make(where: str) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(BUNDLED, folder)
        (folder / "code.py").write_text(CODE.format(marker=str(marker)))
        if where == "config.json":
            config = {"model_type": "of_its_own", "auto_map": AUTO_MAP, **LLAMA}
            (folder / where).write_text(json.dumps(config))
        else:
            path = folder / where
            content = json.loads(path.read_text())
            names = {"AutoTokenizer": [None, "code.Tokenizer"], "AutoProcessor": "code.Processor"}
            kind = {"tokenizer_class": "Tokenizer"} if "tokenizer" in where else {"processor_class": "Processor"}
            path.write_text(json.dumps({**content, **kind, "auto_map": names}))
        return folder

    make.marker = marker
    return make


FILES = ["config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"]


@pytest.mark.parametrize("load", [load_checkpoint, new_model], ids=lambda function: function.__name__)
@pytest.mark.parametrize("where", FILES)
def test_code_of_a_checkpoint_is_neither_run_nor_asked_for(with_code, load, where, capfd):
    """Refused in one line, or loaded by code that is here; the y that waits on standard input is not read."""
    folder = with_code(where)
    try:
        load(str(folder))
    except ValueError as error:
        assert "trust_remote_code true runs such code" in str(error) and "\n" not in str(error)
    else:
        assert where != "config.json"
    assert not with_code.marker.exists()
    assert sys.stdin.tell() == 0 and "[y/N]" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("from_scratch", [True, False])
def test_the_module_passes_its_trust_on(with_code, from_scratch):
    folder = str(with_code("config.json"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        DepthModule(folder, from_scratch=from_scratch)
    assert not with_code.marker.exists()


def test_code_runs_where_it_was_asked_for(with_code):
    model, _ = new_model(str(with_code("config.json")), trust_remote_code=True)
    assert type(model).__name__ == "Model" and with_code.marker.exists()


DAMAGE = {
    "config.json": ["", "null", "[]", "{", '{"model_type": "molmo", "n_layers": -1}', '{"model_type": 5}', "\xff"],
    "processor_config.json": ["null", "[]", "{", '{"image_processor": null}', '{"image_processor": 3}'],
    "preprocessor_config.json": ["null", "[]", "{", '{"image_patch_size": "x"}'],
    "tokenizer.json": ["", "null", "[]", "{", "{}"],
    "tokenizer_config.json": ["null", "[]", "{", '{"tokenizer_class": 3}'],
    "generation_config.json": ["null", "[]", "{", '{"max_length": "x"}'],
    "model.safetensors": ["", "null", "x" * 100],
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_damaged_files_are_an_error_of_one_line_or_none(tmp_path, name, content):
    folder = tmp_path / "damaged"
    shutil.copytree(BUNDLED, folder)
    (folder / name).write_bytes(content.encode("latin-1"))
    try:
        load_checkpoint(str(folder))
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)


# settings of the part for images, each of which some families have; all of them act on a picture of 60 x 30 pixels
PANS = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 8,
    "pan_and_scan_max_num_crops": 2,
    "pan_and_scan_min_ratio_to_activate": 1.1,
}
OF_IMAGES = [
    *({"size": {"shortest_edge": 128, "longest_edge": 512}}, {"size": {"height": 8, "width": 8}}),
    *({"size": {"shortest_edge": 8}}, {"size": {"longest_edge": 16}}, {"max_image_size": {"longest_edge": 8}}),
    *({"max_pixels": 256}, {"max_crops": 1}, {"max_patches": 1}, {"crop_to_patches": False}, PANS),
    *({"do_image_splitting": False}, {"image_mean": [0.1, 0.2, 0.3]}, {"do_rescale": False}, {"resample": 0}),
]
WIDE = Image.effect_mandelbrot((60, 30), (-2, -1, 1, 1), 50).convert("RGB")


class AtTheCall:
    """A processor that is given settings of images at every call, where they come before all others."""

    def __init__(self, processor, settings):
        self.processor, self.settings = processor, settings

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, **given):
        return self.processor(**given, images_kwargs=dict(self.settings))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


SEEN = [each.name for each in FAMILIES.values() if each.sees and all(map(find_spec, each.needs))]


@pytest.mark.parametrize("family", SEEN)
def test_a_setting_of_images_acts_as_it_does_at_the_call_or_is_refused(family, tmp_path):
    FAMILIES[family].write(tmp_path)
    model, processor = load_checkpoint(str(tmp_path))
    prompter = prompter_for(model, processor)
    own, taken = prompter.encode_prompt("Is it?", WIDE), 0
    for settings in OF_IMAGES:
        form = set(getattr(processor.image_processor, "size", None) or ())
        if "size" in settings and set(settings["size"]) != form:
            continue
        try:
            model, changed = load_checkpoint(str(tmp_path), processor_kwargs=settings)
        except ValueError as error:
            assert "as processor_kwargs, got " in str(error)
            continue
        found = prompter_for(model, changed).encode_prompt("Is it?", WIDE)
        expected = type(prompter)(AtTheCall(processor, settings), model.config).encode_prompt("Is it?", WIDE)
        assert same(found, expected) and not same(found, own), settings
        taken += 1
    assert taken >= 2


@pytest.mark.parametrize("family", SEEN)
def test_a_setting_leaves_all_others_as_they_were(family, tmp_path):
    FAMILIES[family].write(tmp_path)
    processor = load_checkpoint(str(tmp_path))[1]
    mean = processor.image_processor.image_mean
    changed = load_checkpoint(str(tmp_path), processor_kwargs={"image_mean": mean})[1]
    images = changed.image_processor.to_dict()
    assert images == processor.image_processor.to_dict() | {"image_mean": images["image_mean"]}
    plain = {name: value for name, value in vars(processor).items() if isinstance(value, (str, int, list, dict))}
    assert plain == {name: getattr(changed, name) for name in plain}
    assert changed.chat_template == processor.chat_template


@pytest.mark.parametrize(("family", "name"), [("Gemma 3", "image_seq_length"), ("PaliGemma", "image_seq_length")])
def test_a_setting_that_is_read_when_a_processor_is_made_acts(family, name, tmp_path):
    FAMILIES[family].write(tmp_path)
    model, processor = load_checkpoint(str(tmp_path), processor_kwargs={name: 9})
    prompter = prompter_for(model, processor)
    assert prompter.num_vision_tokens(prompter.encode_prompt("Is it?", WIDE)).tolist() == [9]


def test_a_device_map_places_the_model(tmp_path):
    """Some blocks on the disk, as where memory is short: answers are those of the model in memory, to the last bit."""
    FAMILIES["Llama"].write(tmp_path)
    whole, _ = load_checkpoint(str(tmp_path))
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    blocks = {f"model.layers.{index}": "disk" if index in (1, 2) else "cpu" for index in range(4)}
    model, _ = load_checkpoint(str(tmp_path), device_map=parts | blocks)
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    ids = torch.arange(8, 14)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole(ids).logits)
