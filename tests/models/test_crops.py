"""The largest number of crops, chosen on loading: as many image tokens as the family's own arithmetic says."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from PIL import Image

from lit_depth import DepthModule
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.molmo.tiling_molmo import select_tiling
from lit_depth.models.prompting import prompter_for
from tests.helpers.families import FAMILIES

PICTURE = (640, 480)
# by the processors' own classes
CUTTERS = {"Molmo (MolmoE-1B)": "max_crops", "InternVL": "max_patches", "Aya Vision": "max_patches"}


def asked(model, processor, size=PICTURE):
    """Inputs of a question about a picture, and how many image tokens they have."""
    prompter = prompter_for(model, processor)
    words = dict(question="What?", options=(), task="", answer_kind="short", continuations=(), prompt=None, tokens=None)
    inputs = prompter.encode([SimpleNamespace(images=(Image.new("RGB", size, "white"),), **words)])
    return inputs, int(prompter.num_vision_tokens(inputs)[0])


@pytest.fixture(scope="module", params=CUTTERS)
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("cutter")
    FAMILIES[request.param].write(path)
    return str(path), CUTTERS[request.param]


def test_it_is_the_familys_own_setting(checkpoint):
    folder, name = checkpoint
    counts = []
    for crops in (1, 4, 9):
        processor = load_checkpoint(folder, max_crops=crops)[1]
        assert getattr(processor.image_processor, name) == crops
        found = asked(*load_checkpoint(folder, max_crops=crops))
        expected = asked(*load_checkpoint(folder, processor_kwargs={name: crops}))
        assert found[1] == expected[1] and found[0]["input_ids"].equal(expected[0]["input_ids"])
        counts.append(found[1])
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("crops", [1, 2, 3, 6, 12])
def test_image_tokens_are_those_of_the_released_arithmetic(crops, tmp_path):
    """Molmo: overview and tiles of 2 x 2 tokens here; a tile without an overlap with another one keeps all of its."""
    FAMILIES["Molmo (MolmoE-1B)"].write(tmp_path)
    model, processor = load_checkpoint(str(tmp_path), max_crops=crops)
    images = processor.image_processor
    patch, side = images.image_patch_size, images.base_image_input_size[0]
    margin = sum(images.overlap_margins) * patch
    rows, columns = select_tiling(PICTURE[1] - margin, PICTURE[0] - margin, side - margin, crops)
    assert rows * columns <= crops
    # patches of the whole tiling, pooled by 2 x 2
    high, wide = (((each * (side - margin) + margin) // patch + 1) // 2 for each in (rows, columns))
    assert asked(model, processor)[1] == images.image_token_length_h * images.image_token_length_w + high * wide


def test_none_leaves_the_checkpoints_own(checkpoint):
    folder, name = checkpoint
    own = load_checkpoint(folder)[1].image_processor
    again = load_checkpoint(folder, max_crops=getattr(own, name))[1].image_processor
    assert again.to_dict() == own.to_dict()


def test_the_module_takes_it():
    module = DepthModule(max_crops=2)
    assert module.processor.image_processor.max_crops == 2 and module.hparams["max_crops"] == 2


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("Llama", "a model that takes text alone"),
        ("LLaVA-NeXT", "which cuts a picture by a list of sizes (image_grid_pinpoints) that its model shares"),
        ("Qwen2.5-VL", "which reads a picture whole (processor_kwargs.max_pixels makes it smaller)"),
        ("LLaVA 1.5", "which has no largest number of crops among its settings"),
    ],
)
def test_families_without_are_refused_with_the_reason(family, reason, tmp_path):
    FAMILIES[family].write(tmp_path)
    with pytest.raises(ValueError, match=r"expected no --model\.max_crops for .*" + re.escape(reason)):
        load_checkpoint(str(tmp_path), max_crops=2)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="expected max_crops of at least 1, got 0"):
        load_checkpoint("bundled", max_crops=0)
    with pytest.raises(ValueError, match=r"expected --model\.max_crops or max_crops of --model\.processor_kwargs"):
        load_checkpoint("bundled", max_crops=2, processor_kwargs={"max_crops": 3})
