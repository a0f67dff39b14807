"""Chunks of masks: planned, answered, checked against the model, and decoded together."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from lit_depth.functional.engine import decode as decode_module
from lit_depth.functional.engine.api import answer_masks, sweep_generate
from lit_depth.functional.engine.row_cache import RowLayer
from tests.helpers.sweep_laws import FULL, NEW_TOKENS, SETS, get_to_know, plain, rows_run
from tests.helpers.tiny_models import FAMILIES, tiny_batch, tiny_model


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


def test_no_keys_and_values_outlive_their_chunk(models, monkeypatch):
    model, masks = models["llama"], SETS["leave one out"]
    inputs = tiny_batch(model)
    states: list[weakref.ref] = []
    others_alive = []
    update = RowLayer.update

    class Watched(decode_module.RowCache):
        def __init__(self, *arguments):
            others_alive.append(sum(each() is not None for each in states))
            super().__init__(*arguments)

    def watched_update(layer, *arguments, **kwargs):
        found = update(layer, *arguments, **kwargs)
        states.extend(weakref.ref(each) for each in (*found, layer.keys, layer.values) if each is not None)
        return found

    monkeypatch.setattr(decode_module, "RowCache", Watched)
    monkeypatch.setattr(RowLayer, "update", watched_update)
    was_enabled = gc.isenabled()
    gc.disable()  # what only the search for cycles would free is not free
    try:
        sweep_generate(model, inputs, masks, NEW_TOKENS, max_rows=2 * len(inputs["input_ids"]))
        left = sum(each() is not None for each in states)
    finally:
        if was_enabled:
            gc.enable()
    assert states and others_alive == [0, 0, 0] and left == 0


@pytest.mark.parametrize("family", ["llama", "olmoe", "gemma2"])
def test_rows_that_end_stop_and_are_padded(models, family):
    model, inputs = models[family], tiny_batch(models[family])
    masks = torch.cat(list(SETS.values()))
    free = sweep_generate(model, inputs, masks, NEW_TOKENS)
    values, counts = free[:, :, :3].flatten().unique(return_counts=True)
    eos = int(values[counts.argmax()])  # ends many rows, at different steps
    tokens = sweep_generate(model, inputs, masks, NEW_TOKENS, eos_token_id=eos)
    assert (tokens == eos).any() and not torch.equal(tokens, free)
    for mask, answer in zip(masks, tokens):
        assert torch.equal(answer, plain(model, inputs, mask, eos=eos))


def test_right_answers_need_no_decoding(models):
    model, inputs = models["olmoe"], tiny_batch(models["olmoe"])
    passes = []
    right = plain(model, inputs, FULL)
    get_to_know(model, inputs, right)
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: passes.append(1))
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    tokens, _ = answer_masks(model, inputs, FULL[None], answer_ids=right, **options)
    assert torch.equal(tokens[0], right) and len(passes) == 1
    right[2, 0] += 1  # one wrong answer is decoded alone
    counted, hooks = rows_run(model)
    answer_masks(model, inputs, FULL[None], answer_ids=right, **options)
    for each in [hook, *hooks]:
        each.remove()
    assert len(passes) == 1 + NEW_TOKENS and sum(counted) == 4 * (len(right) + NEW_TOKENS - 1)


def test_out_of_memory_halves_the_chunk_and_goes_on(models, monkeypatch):
    model = tiny_model("llama")
    inputs, masks = tiny_batch(model), torch.cat(list(SETS.values()))
    expected = sweep_generate(model, inputs, masks, NEW_TOKENS)
    real, sizes, done = decode_module._answer_chunk, [], []

    def limited(model, inputs, masks, *rest):
        sizes.append(len(masks))
        if len(masks) > 3:
            raise torch.OutOfMemoryError("injected")
        return real(model, inputs, masks, *rest)

    monkeypatch.setattr(decode_module, "_answer_chunk", limited)
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    tokens, _ = answer_masks(model, inputs, masks, **options, on_mask=lambda: done.append(1))
    assert torch.equal(tokens, expected) and len(done) == len(masks)
    assert sizes[:3] == [13, 6, 3]
    sizes.clear()
    answer_masks(model, inputs, masks, **options)
    assert max(sizes) == 3  # what worked is remembered
    monkeypatch.setattr(decode_module, "_answer_chunk", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("x")))
    with pytest.raises(torch.OutOfMemoryError):
        answer_masks(model, inputs, masks[:1], **options)
