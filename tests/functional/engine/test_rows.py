"""Rows of many masks, decoded together."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional.engine.api import answer_masks, sweep_generate
from tests.helpers.sweep_laws import FULL, NEW_TOKENS, SETS, get_to_know, plain, rows_run
from tests.helpers.tiny_models import FAMILIES, tiny_batch, tiny_model


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


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
