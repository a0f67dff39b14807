"""Reading an answer and decoding it are one thing, in every family: neither depends on what the other was given."""

from __future__ import annotations

import warnings

import pytest
import torch

from lit_depth.functional import find_blocks, generate, leave_one_out, masked, reference_logprob
from lit_depth.functional import inputs as scoring
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.inputs import scoring_way, with_answers
from tests.helpers.model_zoo import ZOO, forced_logprob, plain_answers
from tests.helpers.zoo_hybrids import bamba, falcon_h1

ANSWERS = (
    torch.tensor([[5, 6, 7, 8], [20, -100, -100, -100], [9, 30, -100, -100]]),
    torch.tensor([[20, 21, 22], [41, 5, 6], [7, 7, 33]]),
)
pytestmark = pytest.mark.filterwarnings("ignore:.*one mask after another")


@pytest.mark.parametrize("name", ["paligemma", "gemma3", "phi3, long"])
def test_scores_in_one_phase_are_those_of_decoding(name):
    model, inputs = ZOO[name]()
    skipped = torch.tensor([True, False, True])
    with masked(model, skipped, phase="decode"):
        expected = forced_logprob(model, inputs, ANSWERS[0])
    _, found = answer_masks(
        model, inputs, skipped[None], max_new_tokens=0, eos_token_id=None, pad_token_id=0, answer_ids=ANSWERS[0],
        phase="decode",
    )  # fmt: skip
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_one_forward_is_shared_where_that_is_the_same_and_only_there():
    """Llama reads prompt and answer at once; so does PaliGemma, as long as the answer is marked as what it is."""
    model, inputs = ZOO["llama"]()
    assert scoring_way(model, inputs, ANSWERS[1], 0) == "whole"
    model, inputs = ZOO["phi3, long"]()
    assert scoring_way(model, inputs, ANSWERS[1], 0) == "steps"
    model, inputs = ZOO["paligemma"]()
    assert scoring_way(model, inputs, ANSWERS[1], 0) == "whole"

    def as_a_prompt(outputs, arguments):
        types = torch.nn.functional.pad(arguments["token_type_ids"], (0, 1))
        return real(outputs, arguments) | {"token_type_ids": types}

    scoring._PROVEN.pop(model)
    real = model._update_model_kwargs_for_generation
    model._update_model_kwargs_for_generation = as_a_prompt
    assert scoring_way(model, inputs, ANSWERS[1], 0) == "chunk"


@pytest.mark.parametrize("build", [falcon_h1, bamba])
def test_a_family_that_counts_logits_itself_is_scored_at_once(build):
    model, inputs = build()
    expected = forced_logprob(model, inputs, ANSWERS[0])
    torch.testing.assert_close(reference_logprob(model, inputs, ANSWERS[0], pad_token_id=0), expected)
    assert scoring_way(model, inputs, ANSWERS[0], 0) == "whole"
    full = torch.ones(1, 3, dtype=torch.bool)
    options = {"max_new_tokens": 2, "eos_token_id": None, "pad_token_id": 0, "answer_ids": ANSWERS[0]}
    found, scores = answer_masks(model, inputs, full, **options)
    torch.testing.assert_close(scores[0], expected)
    assert torch.equal(found[0], plain_answers(model, inputs, 2))


@pytest.mark.parametrize(
    "settings",
    [{"exponential_decay_length_penalty": (1, 1.5)}, {"forced_eos_token_id": 9}],
    ids=lambda given: [*given][0],
)
def test_penalties_neither_change_a_score_nor_stop_the_engine(settings):
    """The first needs end tokens, the second depends on the length that is asked for."""
    model, inputs = ZOO["llama"]()
    masks = leave_one_out(len(find_blocks(model)))
    expected = []
    for mask in masks:
        with masked(model, mask):
            tokens = plain_answers(model, inputs, 6)
            tokens[:, -1] = settings.get("forced_eos_token_id", tokens[:, -1])
            expected.append((tokens, forced_logprob(model, inputs, ANSWERS[0])))
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, "answer_ids": ANSWERS[0]}
        found, scores = answer_masks(model, inputs, masks, **options)
        rows = generate(model, inputs, masks[:1].expand(len(ANSWERS[0]), -1), 6)
    for mask, tokens, scored, (right, logprob) in zip(masks, found, scores, expected):
        assert torch.equal(tokens, right)
        torch.testing.assert_close(scored, logprob, atol=1e-5, rtol=0)
        with masked(model, mask):
            alone = reference_logprob(model, inputs, ANSWERS[0], pad_token_id=0)
        torch.testing.assert_close(alone, logprob, atol=1e-5, rtol=0)
    assert torch.equal(rows, expected[0][0])


def test_a_longer_answer_is_measured_again(monkeypatch):
    model, inputs = ZOO["llama"]()
    measured = []
    real = scoring._is_like_decoding
    monkeypatch.setattr(scoring, "_is_like_decoding", lambda *given: measured.append(given[2].shape[1]) or real(*given))
    for answers in (ANSWERS[1][:, :1], ANSWERS[1], ANSWERS[1], ANSWERS[1][:, :2], ANSWERS[0].clamp(min=1).repeat(1, 3)):
        scoring_way(model, inputs, answers, 0)
    assert measured == [1, 3, 4]


def test_answers_behind_a_prompt_go_on_as_generated_tokens_do():
    model, inputs = ZOO["paligemma"]()
    longer = with_answers(model, inputs, ANSWERS[0], pad=0)
    assert longer["token_type_ids"][:, -4:].eq(1).all() and longer["token_type_ids"][:, :-4].eq(0).all()
    assert longer["attention_mask"][:, -4:].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert longer["input_ids"][:, -4:].tolist() == [[5, 6, 7, 8], [20, 0, 0, 0], [9, 30, 0, 0]]
    assert longer["pixel_values"] is inputs["pixel_values"]
