"""Acceptance of drafts: counted token by token by forwards of the masked model alone."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional import find_blocks, leave_one_out, masked, prefix
from lit_depth.functional.engine.acceptance import draft_acceptance
from tests.helpers.sweep_laws import plain
from tests.helpers.tiny_models import tiny_batch, tiny_model

NEW = 8


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmoe"])
@pytest.mark.parametrize("ends", [[], [5, 9, 30, 31, 32, 33]])
@torch.no_grad()
def test_it_is_the_share_of_tokens_that_a_mask_says_too(family, ends):
    model = tiny_model(family)
    inputs, full = tiny_batch(model), torch.ones(len(find_blocks(model)), dtype=torch.bool)
    masks = torch.stack([full, *leave_one_out(4)[:3], prefix(4, 3)])
    found = draft_acceptance(model, inputs, masks, NEW, eos_token_id=ends, pad_token_id=0)
    answers = plain(model, inputs, full, eos=ends or None, new_tokens=NEW)
    for row, answer in enumerate(answers.tolist()):
        length = next((place + 1 for place, token in enumerate(answer) if token in ends), NEW)
        assert int(found.num_tokens[row]) == length - 1
        real = inputs["attention_mask"][row].bool()
        ids = torch.cat([inputs["input_ids"][row, real], torch.tensor(answer[:length])])[None]
        for mask, agreed in zip(masks, found.num_agreed[:, row].tolist()):
            with masked(model, mask):
                best = model(ids, use_cache=False).logits[0].argmax(-1)
            start = int(real.sum())
            assert agreed == int((best[start : start + length - 1] == ids[0, start + 1 :]).sum())
    assert torch.equal(found.num_agreed[0], found.num_tokens)


@torch.no_grad()
def test_in_the_decode_phase_the_prompt_is_the_full_models():
    model = tiny_model("llama")
    inputs, mask = {name: value[:1] for name, value in tiny_batch(model).items()}, leave_one_out(4)[2]
    named = {"eos_token_id": None, "pad_token_id": 0}
    found = draft_acceptance(model, inputs, mask, NEW, phase="decode", **named)
    answer = plain(model, inputs, torch.ones(4, dtype=torch.bool), new_tokens=NEW)
    with masked(model, mask, phase="decode"):
        cache = model(**inputs, use_cache=True).cache
        best = model(answer[:, :-1], cache=cache).logits[0].argmax(-1)
    assert int(found.num_agreed) == int((best == answer[0, 1:]).sum())


def test_one_end_token_may_be_given_as_a_number():
    model = tiny_model("llama")
    answer = plain(model, tiny_batch(model), torch.ones(4, dtype=torch.bool), new_tokens=NEW)[0].tolist()
    found = draft_acceptance(model, tiny_batch(model), prefix(4, 3), NEW, eos_token_id=answer[2], pad_token_id=0)
    assert int(found.num_tokens[0]) <= 2
