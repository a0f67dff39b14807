"""Both spellings of a configuration say the same; released fields that mean another architecture are refused."""

from __future__ import annotations

import json

import pytest
import torch

from lit_depth.models.molmo import MolmoConfig, MolmoForConditionalGeneration


def test_configuration_round_trips_in_both_spellings(family, tmp_path):
    folder, model, _, _ = family
    config = model.config
    config.save_pretrained(tmp_path)
    flat = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" not in flat and flat["vision_backbone"]["image_patch_size"] == 7
    for again in (MolmoConfig.from_pretrained(tmp_path), MolmoConfig(**config.to_dict())):
        for part in ("text_config", "vision_config"):  # the loaded model also noted its dtype there
            ours, theirs = (getattr(c, part).to_dict() | {"dtype": None} for c in (again, config))
            assert ours == theirs
        assert again.vit_layers == config.vit_layers


@pytest.mark.parametrize(
    ("field", "value"), [("alibi", True), ("block_type", "other"), ("weight_tying", True), ("image_pooling_2d", "none")]
)
def test_unsupported_released_fields_are_refused(golden_dir, field, value):
    flat = json.loads((golden_dir / "molmoe_tiny" / "config.json").read_text())
    with pytest.raises(ValueError, match=f"{field}.*got {value!r}"):
        MolmoConfig(**{**flat, field: value})


def test_full_size_parameter_counts(golden_dir):
    flat = json.loads((golden_dir / "molmoe_tokenizer" / "model_config_full_size.json").read_text())
    with torch.device("meta"):
        model = MolmoForConditionalGeneration(MolmoConfig(**flat))
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_221_875_712
