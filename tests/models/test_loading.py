"""Options of loading reach the model; code that comes with a checkpoint runs only where that was asked for."""

from __future__ import annotations

import io
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import dynamic_module_utils

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
