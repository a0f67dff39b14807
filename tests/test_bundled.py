"""The bundled checkpoint: good at its task, a useful subject for skipping, and the KV law on every block."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import lit_depth
from lit_depth.data import DepthDataModule
from lit_depth.functional import leave_one_out, mask_id, masked, random
from lit_depth.metrics import exact_match
from lit_depth.models.loading import BUNDLED
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from tests.helpers.pruning import pruned_copy

if not (BUNDLED / "model.safetensors").exists():
    pytest.skip("no bundled checkpoint", allow_module_level=True)

NEW_TOKENS = 4
MASKS = [*leave_one_out(16), *(random(16, k, seed=k) for k in range(4, 14))]


@pytest.fixture(scope="module")
def bundled():
    return lit_depth.load_bundled()


@pytest.fixture(scope="module")
def batch(bundled):
    """Four left-padded questions about images of different numbers of crops."""
    data = DepthDataModule(prompter_for(*bundled), num_samples=64, batch_size=64)
    prepared = next(iter(data.eval_dataloader("validation")))
    lengths = prepared["attention_mask"].sum(1)
    rows = [int(lengths.argmin()), int(lengths.argmax()), 0, 1]
    inputs = {name: value[rows] for name, value in model_inputs(prepared).items()}
    assert len(set(lengths[rows].tolist())) > 1
    return inputs


def without_cache(model, inputs) -> torch.Tensor:
    inputs = dict(inputs)
    for _ in range(NEW_TOKENS):
        token = model(**inputs, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
    return inputs["input_ids"][:, -NEW_TOKENS:]


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS, ids=mask_id)
@torch.no_grad()
def test_masked_generate_equals_pruned_copy_equals_recomputation(bundled, batch, mask):
    model = bundled[0]
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    pruned = pruned_copy(model, mask)
    start = batch["input_ids"].shape[1]
    with masked(model, mask):
        expected = without_cache(model, batch)
        logits = model(**batch).logits
        tokens = {
            cache: model.generate(**batch, **options, cache_implementation=cache) for cache in ("dynamic", "static")
        }
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], pruned(**batch).logits[real], atol=1e-5, rtol=0)
    for cache, ours in tokens.items():
        assert torch.equal(ours[:, start:], expected), cache
        assert torch.equal(ours, pruned.generate(**batch, **options, cache_implementation=cache)), cache


@pytest.mark.slow
def test_accuracy_is_that_of_the_card(bundled):
    """All 2,000 validation questions, answered by transformers' own generate."""
    model, processor = bundled
    data = DepthDataModule(prompter_for(model, processor), num_samples=None, batch_size=100)
    scores: dict[str, list[float]] = {}
    for prepared in data.eval_dataloader("validation"):
        tokens = model.generate(
            **model_inputs(prepared), max_new_tokens=4, do_sample=False, eos_token_id=0, pad_token_id=1
        )
        texts = processor.batch_decode(tokens[:, prepared["input_ids"].shape[1] :], skip_special_tokens=True)
        for text, sample in zip(texts, prepared["samples"]):
            scores.setdefault(sample.meta["question_type"], []).append(exact_match(text, sample.references))
    card = {"color": 1.000, "shape": 1.000, "count": 1.000, "relation": 0.963, "existence": 0.997}
    found = {kind: sum(of) / len(of) for kind, of in scores.items()}
    assert sum(map(len, scores.values())) == 2000
    assert found == pytest.approx(card, abs=0.005)  # another order of operations may turn one answer


def test_is_small_and_in_the_released_layout(bundled):
    path = BUNDLED / "model.safetensors"
    assert path.stat().st_size <= 16 * 2**20
    names = load_file(path)
    assert (
        "model.transformer.blocks.15.mlp.experts.7.gate_proj.weight" in names
        and "model.transformer.wte.embedding" in names
    )
    assert not any("language_model" in name for name in names)
    assert (BUNDLED / "README.md").is_file()


def test_auto_classes_load_it_without_remote_code(bundled):
    model = AutoModelForImageTextToText.from_pretrained(BUNDLED)
    assert type(model) is type(bundled[0]) and type(AutoProcessor.from_pretrained(BUNDLED)) is type(bundled[1])
    assert model.dtype == torch.float32
