"""The engine is compared with the model itself, once for each kind of request, as far as that shows what it does."""

from __future__ import annotations

import warnings

import pytest
import torch

from lit_depth.functional import generate, masked, sweep_generate
from lit_depth.functional.engine import comparison as comparison_module
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.inputs import reference_logprob
from tests.helpers.model_zoo import ZOO, forced_logprob, plain_answers
from tests.helpers.sweep_laws import masks_for
from tests.helpers.zoo_text import moshi


@pytest.mark.parametrize(
    ("window", "length", "new_tokens", "answer_length"), [(8, 3, 14, 2), (8, 3, 3, 12), (6, 4, 2, 6), (8, 3, 0, 12)]
)
def test_a_window_that_ends_far_behind_the_prompt_is_noticed(window, length, new_tokens, answer_length):
    """The first four tokens, or the generated ones, stay inside; Moshi's cache forgets only then."""
    answers = torch.randint(3, 60, (1, answer_length), generator=torch.Generator().manual_seed(5))
    options = {"eos_token_id": None, "pad_token_id": 0, "answer_ids": answers}
    model, inputs = moshi(window)
    inputs = {name: value[:, :length] for name, value in inputs.items()}
    answer_masks(model, inputs, masks_for(model), max_new_tokens=1, **options | {"answer_ids": answers[:, :1]})
    found, scored = answer_masks(model, inputs, masks_for(model), max_new_tokens=new_tokens, **options)
    model, _ = moshi(window)  # not known yet
    per_row = generate(model, inputs, masks_for(model)[1:2], max(1, new_tokens))
    for index, mask in enumerate(masks_for(model)):
        with masked(model, mask):
            expected = plain_answers(model, inputs, max(1, new_tokens))
            scores = forced_logprob(model, inputs, answers)
            alone = reference_logprob(model, inputs, answers, pad_token_id=0)
        assert torch.equal(found[index], expected[:, :new_tokens])
        torch.testing.assert_close(scored[index], scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(alone, scores, atol=1e-5, rtol=0)
        if index == 1:
            assert torch.equal(per_row, expected)


@pytest.mark.parametrize(("family", "length"), [("mistral", 2), ("gemma2", 2), ("gpt_oss", 3)])
def test_a_family_that_keeps_its_window_itself_is_driven_across_it(family, length):
    model, inputs = ZOO[family]()
    inputs = {name: value[:1, :length] for name, value in inputs.items()}
    expected = []
    for mask in masks_for(model):
        with masked(model, mask):
            expected.append(plain_answers(model, inputs, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sweep_generate(model, inputs, masks_for(model), 12), torch.stack(expected))
        assert torch.equal(generate(model, inputs, masks_for(model)[:1], 12), expected[0])


def test_a_proof_that_ended_inside_of_the_window_is_none():
    """All rows end with their first token; the next request goes on."""
    model, inputs = moshi(8)
    inputs = {name: value[:, :3] for name, value in inputs.items()}
    masks = masks_for(model)[1:]
    with masked(model, masks[0]):
        expected = plain_answers(model, inputs, 14)
    sweep_generate(model, inputs, masks[:1], 14, eos_token_id=int(expected[0, 0]))
    assert torch.equal(sweep_generate(model, inputs, masks[:1], 14)[0], expected)


def test_a_window_too_far_to_be_measured_is_left_to_the_model():
    model, inputs = moshi(2**10)
    request = comparison_module.Request(inputs, 2**10, (), 0)
    assert "its window ends within the answers" in request.check_length(model)
    assert request._replace(max_new_tokens=2**9).check_length(model) is None


def test_the_engine_is_compared_once_and_again_for_inputs_of_another_kind(monkeypatch):
    model, inputs = ZOO["gpt_oss"]()  # its window is 4 tokens wide
    compared = []
    real = comparison_module.plain_steps
    monkeypatch.setattr(comparison_module, "plain_steps", lambda *given: compared.append(1) or real(*given))
    short = {name: value[:1, :2] for name, value in inputs.items()}
    for given, times in ((short, 1), (short, 1), (inputs, 2), (inputs, 2)):
        sweep_generate(model, given, masks_for(model), 2)
        assert len(compared) == times
