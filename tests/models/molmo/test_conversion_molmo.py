"""Checkpoints under the released names: loaded and saved bit for bit."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from lit_depth.models.molmo import MolmoConfig, MolmoForConditionalGeneration
from lit_depth.models.molmo.conversion_molmo import (
    JoinVocabulary,
    LinearToPatchConvolution,
    PatchConvolutionToLinear,
    SplitVocabulary,
)


def test_saving_writes_the_released_names_bit_for_bit(family, tmp_path):
    folder, model, _, _ = family
    model.save_pretrained(tmp_path)
    released, saved = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert released.keys() == saved.keys()
    assert all(torch.equal(released[name], saved[name]) for name in released)


def test_model_built_from_scratch_saves_released_names_and_auto_classes_load_it(family, tmp_path):
    folder, _, _, _ = family
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, MolmoConfig)
    torch.manual_seed(0)
    model = MolmoForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_operations_are_undone_by_their_inverse():
    """Shapes by hand: a patch of 2 x 2 pixels, row by row, three channels each; 5 + 2 rows of vocabulary."""
    linear = torch.arange(2 * 12.0).view(2, 12)
    convolution = LinearToPatchConvolution().convert({"a": linear}, ["a"], ["b"])["b"]
    assert convolution.shape == (2, 3, 2, 2)
    assert convolution[1, 2, 0, 1] == linear[1, (0 * 2 + 1) * 3 + 2]
    back = LinearToPatchConvolution().reverse_op.convert({"b": [convolution]}, ["b"], ["a"])["a"]
    assert torch.equal(back, linear) and isinstance(PatchConvolutionToLinear().reverse_op, LinearToPatchConvolution)
    parts = {"base": torch.arange(10.0).view(5, 2), "added": torch.full((2, 2), -1.0)}
    table = JoinVocabulary().convert(parts, ["base", "added"], ["table"])["table"]
    assert table.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [-1, -1], [-1, -1]]
    config = SimpleNamespace(text_config=SimpleNamespace(vocab_size=5))
    split = JoinVocabulary().reverse_op.convert({"table": table}, ["table"], ["base", "added"], config=config)
    assert all(torch.equal(split[name], parts[name]) for name in parts)
    assert isinstance(SplitVocabulary().reverse_op, JoinVocabulary)
