"""Molmo against the released implementations (golden data), and its checkpoint conversion against itself."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

from lit_depth.functional import find_blocks, masked
from lit_depth.models.loading import load_bundled
from lit_depth.models.molmo import MolmoForConditionalGeneration

CASES = ("text", "image", "batch_right", "batch_left")
MASKS = ("all", "skip_first", "skip_middle", "skip_last_two", "first_two_only")
INPUTS = ("input_ids", "attention_mask", "images", "image_masks", "image_input_idx")


def inputs_of(cases: dict[str, torch.Tensor], case: str) -> dict[str, torch.Tensor]:
    return {name: cases[f"{case}.{name}"] for name in INPUTS if f"{case}.{name}" in cases}


@pytest.mark.parametrize("mask_name", MASKS)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_and_hidden_states_match_the_release(family, case, mask_name):
    _, model, cases, _ = family
    if f"{case}.{mask_name}.logits" not in cases:
        pytest.skip(f"golden set has no {mask_name} for {case}")
    mask = cases[f"mask.{mask_name}"].bool()
    inputs = inputs_of(cases, case)
    real = inputs["attention_mask"].bool()
    seen: list[torch.Tensor] = []
    blocks = find_blocks(model)
    hooks = [block.register_forward_hook(lambda _m, _a, out: seen.append(out)) for block in blocks]
    hooks.append(blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0])))
    with masked(model, mask):
        logits = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    expected = cases[f"{case}.{mask_name}.logits"]
    torch.testing.assert_close(logits[real], expected[real], atol=5e-5, rtol=1e-5)
    assert torch.equal(logits.argmax(-1)[real], expected.argmax(-1)[real])
    if f"{case}.{mask_name}.hidden_states" in cases:
        states = cases[f"{case}.{mask_name}.hidden_states"]
        assert len(seen) == len(states) == len(blocks) + 1
        for index, (ours, theirs) in enumerate(zip(seen, states)):
            torch.testing.assert_close(ours[real], theirs[real], atol=5e-5, rtol=1e-5)
            if index and not mask[index - 1]:
                assert torch.equal(ours, seen[index - 1])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_image_features_match_the_release(family, case):
    _, model, cases, _ = family
    if f"{case}.image_features" not in cases:
        pytest.skip(f"golden set has no image features for {case}")
    features = model.get_image_features(cases[f"{case}.images"], cases[f"{case}.image_masks"]).pooler_output
    used = cases[f"{case}.image_input_idx"] >= 0
    features = features.view(*used.shape, -1)
    torch.testing.assert_close(features[used], cases[f"{case}.image_features"][used], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("mask_name", MASKS)
@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_match_the_release(family, case, mask_name, cache):
    _, model, cases, _ = family
    key = f"{case}.{mask_name}.greedy"
    if key not in cases:
        pytest.skip(f"golden set has no {key}")
    inputs = inputs_of(cases, case)
    if case == "batch_right":  # generation needs left padding: move each row's padding to the front
        inputs = left_padded(inputs)
    with masked(model, cases[f"mask.{mask_name}"].bool()):
        tokens = model.generate(
            **inputs, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=1, cache_implementation=cache
        )
    assert torch.equal(tokens[:, inputs["input_ids"].shape[1] :], cases[key])


def left_padded(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    lengths = inputs["attention_mask"].sum(1)
    shift = inputs["attention_mask"].shape[1] - lengths
    moved = dict(inputs)
    for name in ("input_ids", "attention_mask"):
        moved[name] = torch.stack([row.roll(int(n)) for row, n in zip(inputs[name], shift)])
    index = inputs["image_input_idx"]
    moved["image_input_idx"] = torch.where(index >= 0, index + shift[:, None, None], index)
    return moved


@torch.no_grad()
def test_a_crop_is_missing_only_if_every_value_is_minus_one(golden_dir):
    model = MolmoForConditionalGeneration.from_pretrained(golden_dir / "molmoe_tiny").eval()
    cases = load_file(golden_dir / "molmoe_tiny" / "cases.safetensors")
    quirk = load_file(golden_dir / "molmoe_tiny" / "quirk_pixel_minus_one.safetensors")
    inputs = inputs_of(cases, "image")
    inputs["images"] = inputs["images"].clone()
    inputs["images"][tuple(quirk["pixel_index"].tolist())] = -1.0
    torch.testing.assert_close(model(**inputs).logits, quirk["logits_upstream"], atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_features_of_one_row_never_reach_another(golden_dir):
    """Negative positions (discarded margins, missing crops) of row 1 must not wrap around into row 0."""
    model = MolmoForConditionalGeneration.from_pretrained(golden_dir / "molmoe_tiny").eval()
    cases = load_file(golden_dir / "molmoe_tiny" / "cases.safetensors")
    inputs = inputs_of(cases, "batch_right")
    before = model(**inputs).logits[0]
    changed = {**inputs, "images": inputs["images"].clone()}
    changed["images"][1] = torch.randn_like(changed["images"][1])
    after = model(**changed).logits[0]
    real = inputs["attention_mask"][0].bool()
    torch.testing.assert_close(before[real], after[real], atol=2e-6, rtol=0)


def test_eager_attention_returns_weights(golden_dir):
    model = MolmoForConditionalGeneration.from_pretrained(golden_dir / "molmo_dense_tiny", attn_implementation="eager")
    cases = load_file(golden_dir / "molmo_dense_tiny" / "cases.safetensors")
    inputs = inputs_of(cases, "image")
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert len(outputs.attentions) == 5 and len(outputs.hidden_states) == 6
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones_like(outputs.attentions[0][..., 0]))
    torch.testing.assert_close(outputs.logits, cases["image.all.logits"], atol=5e-5, rtol=1e-5)


def test_wrong_geometry_is_named(golden_dir):
    model = MolmoForConditionalGeneration.from_pretrained(golden_dir / "molmoe_tiny").eval()
    with pytest.raises(ValueError, match=r"expected|must have shape \[batch, crops, 64, 147\]"):
        model.get_image_features(torch.zeros(1, 2, 36, 147))


def test_a_cache_goes_by_either_name_and_outputs_have_the_usual_order():
    model, _ = load_bundled()
    ids = torch.arange(10, 22).view(2, 6)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with torch.no_grad():
        expected, whole = model.generate(**inputs, **options), model(**inputs)
        for name in ("cache", "past_key_values", None):
            cache = DynamicCache(config=model.config.text_config)
            if name is None:
                model(ids[:, :4], None, None, cache)
            else:
                model(ids[:, :4], **{name: cache})
            assert cache.get_seq_length() == 4, name
            assert torch.equal(model.generate(**inputs, **options, cache=cache), expected), name
        with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
            model(ids, past_key_values=DynamicCache())
        assert torch.equal(whole[0], whole.logits) and torch.equal(model.model(**inputs)[0], whole.last_hidden_state)
        labelled = model(**inputs, labels=ids)
        assert labelled[0] is labelled.loss and labelled[1] is labelled.logits
