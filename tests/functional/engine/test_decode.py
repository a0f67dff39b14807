"""Chunks of masks: planned, answered, and halved where memory runs out."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from lit_depth.functional import MaskSet, leave_one_out
from lit_depth.functional.engine import decode as decode_module
from lit_depth.functional.engine.api import answer_masks, sweep_generate
from lit_depth.functional.engine.comparison import Request
from lit_depth.functional.engine.memory import bytes_per_row
from lit_depth.functional.engine.row_cache import RowLayer
from tests.helpers.sweep_laws import NEW_TOKENS, SETS
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


@pytest.mark.parametrize(
    ("affordable", "max_rows", "sizes"),
    [(16, None, [17]), (15, None, [15, 2]), (8, None, [8, 9]), (7, None, [7, 7, 3]), (1, 64, [16, 1])],
)
def test_a_few_masks_need_no_chunk_of_their_own(monkeypatch, affordable, max_rows, sizes):
    """The last chunk may take an eighth more than what is affordable; what a caller bounds stays bounded."""
    model = tiny_model("llama", num_blocks=17)
    inputs, masks = tiny_batch(model), MaskSet(leave_one_out(17), "block")  # of equal cost
    request = Request(inputs, NEW_TOKENS, (), 0)
    one = len(inputs["input_ids"]) * bytes_per_row(model, inputs, NEW_TOKENS, None, 16)
    monkeypatch.setattr(decode_module, "affordable_bytes", lambda *_: affordable * one)
    chunks = decode_module.plan_chunks(model, request, masks, max_rows)
    assert [len(chunk) for chunk in chunks] == sizes
    assert sorted(sum(chunks, [])) == list(range(17))


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
