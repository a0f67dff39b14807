"""A picture says the same whatever pictures stand beside it."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from lit_depth.models.vision_tower import attend_both_ways
from tests.helpers.families import FAMILIES


def features(tower, pixels, mask):
    with torch.no_grad():
        return tower(pixels, patch_attention_mask=mask, output_hidden_states=True).hidden_states[-2]


def test_a_picture_without_padding_says_the_same_beside_one_with(tmp_path):
    FAMILIES["Phi-4-multimodal"].write(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tower = model.model.embed_tokens_extend.image_embed.img_processor
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 32, 32, dtype=torch.bool)
    mask[0, :, 20:] = False
    tower.set_attn_implementation("eager")
    expected = features(tower, pixels, mask)
    tower.set_attn_implementation("sdpa")
    # as transformers has it; once this fails, the module has nothing left to do
    assert (features(tower, pixels[1:], mask[1:]) - expected[1:]).abs().max() > 0.1
    attend_both_ways(model)
    torch.testing.assert_close(features(tower, pixels[1:], mask[1:]), expected[1:])
    together = features(tower, pixels, mask)
    torch.testing.assert_close(together[1:], expected[1:])
    torch.testing.assert_close(together[0].view(32, 32, -1)[:, :20], expected[0].view(32, 32, -1)[:, :20])


def test_a_decoder_stays_causal(tmp_path):
    FAMILIES["Phi-4-multimodal"].write(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    attend_both_ways(model)
    assert all(block.self_attn.is_causal for block in model.model.layers)
