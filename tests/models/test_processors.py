"""A processor is made of the parts that the machine has, or refused by the name of the package that is missing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

from lit_depth.models import processors
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.prompting import prompter_for
from tests.helpers.families import FAMILIES

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
WITHOUT_VIDEO = ("Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "LLaVA-OneVision", "InternVL", "GLM-4V")
# imports nothing of a package, as on a machine that lacks it
ABSENT = """
import importlib.metadata, importlib.util, sys
absent, find = {"torchvision", "num2words"}, importlib.util.find_spec
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocked())
importlib.util.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)
"""
LOAD = """
import json
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.prompting import prompter_for
found = {}
for folder in sys.argv[1:]:
    try:
        model, processor = load_checkpoint(folder)
        found[folder] = [type(processor).__name__, type(getattr(processor, "image_processor", None)).__name__]
    except ValueError as error:
        found[folder] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def absent(tmp_path_factory) -> dict[str, object]:
    """What loading gives without torchvision and num2words, whatever this machine has: (class, image processor)."""
    root = tmp_path_factory.mktemp("families")
    folders = {name: root / str(place) for place, name in enumerate(FAMILIES) if FAMILIES[name].sees}
    for name, folder in folders.items():
        folder.mkdir()
        FAMILIES[name].write(folder)
    command = [sys.executable, "-c", ABSENT + LOAD, *map(str, folders.values())]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout
    found = json.loads(out.splitlines()[-1])
    return {name: found[str(folder)] for name, folder in folders.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.sees])
def test_without_the_packages_a_processor_shows_images_or_is_refused_in_a_line(absent, name):
    needs = FAMILIES[name].needs
    if needs:
        (package,) = needs
        expected = f"its processor needs {package}, which is not installed: pip install 'lit_depth[vision]'"
        assert isinstance(absent[name], str) and absent[name].endswith(expected), absent[name]
        assert "\n" not in absent[name]
    else:
        kind, image = absent[name]
        assert kind.endswith("Processor") and image.endswith(("Pil", "MolmoImageProcessor"))


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_VIDEO)
def test_a_processor_without_its_video_part_shows_the_picture_as_the_image_processor_does(name, tmp_path, monkeypatch):
    FAMILIES[name].write(tmp_path)
    model, _ = load_checkpoint(str(tmp_path))
    kind = processors._without_video(processors.PROCESSOR_MAPPING[type(model.config)])
    processor = kind.from_pretrained(tmp_path)
    assert kind.__name__ == type(processor).__name__ == processors.PROCESSOR_MAPPING[type(model.config)].__name__
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=[PICTURE], text=[text], return_tensors="pt")
    alone = AutoImageProcessor.from_pretrained(tmp_path)(images=[PICTURE], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], alone["pixel_values"])
    image_token = getattr(model.config, "image_token_id", None)
    assert (inputs["input_ids"] == image_token).sum() > 1
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "LLaVA-OneVision"])
def test_a_processor_without_its_video_part_is_saved_and_loaded_again(name, tmp_path):
    FAMILIES[name].write(tmp_path)
    model, processor = load_checkpoint(str(tmp_path))
    made = processors._without_video(processors.PROCESSOR_MAPPING[type(model.config)]).from_pretrained(tmp_path)
    for part in (model, made):
        part.save_pretrained(tmp_path / "again")
    _, again = load_checkpoint(str(tmp_path / "again"))
    assert type(again).__name__ == type(processor).__name__
    asked = [prompter_for(model, each).encode_prompt("What is it?", PICTURE) for each in (processor, again)]
    assert all(torch.equal(asked[1][key], value) for key, value in asked[0].items())


def test_a_package_that_does_not_fit_torch_is_named_with_its_error(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    missing = processors._missing(ImportError("requires the Torchvision library"))
    assert missing == {"torchvision": "cannot be imported (operator torchvision::nms does not exist)"}
    monkeypatch.undo()
    assert processors._missing(ValueError("a template is missing")) == {}


def test_a_tokenizer_serves_a_text_model(tmp_path):
    FAMILIES["Llama"].write(tmp_path)
    _, words = load_checkpoint(str(tmp_path))
    assert words.decode(words("Is there a red cross?")["input_ids"]) == "<|begin_of_text|>Is there a red cross?"


def test_another_failure_keeps_its_own_words(tmp_path):
    FAMILIES["LLaVA 1.5"].write(tmp_path)
    Path(tmp_path, "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("weights", "other", "expected"),
    [
        ("LLaVA 1.5", "Qwen2-VL", "its files name Qwen2VLProcessor, and a model of type llava has LlavaProcessor"),
        ("Molmo (7B-O)", "Qwen2-VL", "its files name Qwen2VLProcessor, and a model of type molmo has MolmoProcessor"),
        ("Gemma 3", "InternVL", "its files name InternVLProcessor, and a model of type gemma3 has Gemma3Processor"),
    ],
)
def test_the_processor_of_another_family_that_does_not_load_is_named(weights, other, expected, tmp_path, monkeypatch):
    FAMILIES[other].write(tmp_path)
    for file in (tmp_path / "config.json", tmp_path / "model.safetensors"):
        file.unlink()
    (tmp_path / "weights").mkdir()
    FAMILIES[weights].write(tmp_path / "weights")
    config = AutoConfig.from_pretrained(tmp_path / "weights")

    def refuse(*_, **__):
        raise ImportError("Qwen2VLProcessor requires the torchvision library")

    monkeypatch.setattr(processors.AutoProcessor, "from_pretrained", refuse)
    monkeypatch.setattr(processors, "_import_error", lambda package: "is not installed")
    with pytest.raises(ValueError, match=expected):
        processors.load_processor(config, str(tmp_path))
