"""What counts as rounding, and what tells kinds of inputs apart."""

from __future__ import annotations

import math

import pytest
import torch
from model_zoo import ZOO
from tiny_models import WINDOW, tiny_batch, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from lit_depth.functional.proof import (
    Steps,
    kind_of,
    plain_steps,
    probe_of,
    same_beyond,
    same_logits,
    same_tokens,
    turning_length,
)

PRECISE = torch.nn.Linear(1, 1)
COARSE = torch.nn.Linear(1, 1, dtype=torch.bfloat16)


def test_logits_are_the_same_up_to_rounding():
    logits = torch.randn(8, 3, 50, generator=torch.Generator().manual_seed(0)) * 5
    assert same_logits(PRECISE, logits + 1e-4, logits) and not same_logits(PRECISE, logits + 0.1, logits)
    one = logits.clone()
    one[0, 0, 0] += 1.0  # a single position
    assert not same_logits(PRECISE, one, logits)
    assert same_logits(COARSE, one, logits) and same_logits(COARSE, logits + 0.2, logits)
    assert not same_logits(COARSE, logits.roll(1, -1), logits)
    with torch.autocast("cpu"):
        assert same_logits(PRECISE, one, logits)
    hidden = logits.index_fill(-1, torch.tensor([3]), -torch.inf)
    assert same_logits(PRECISE, hidden, hidden) and not same_logits(PRECISE, logits, hidden)
    assert not same_logits(PRECISE, torch.full_like(logits, torch.nan), logits)
    # of a model that gives NaN itself nothing can be said
    assert same_logits(PRECISE, logits, torch.full_like(logits, torch.nan))


def test_tokens_are_the_same_but_for_ties():
    scores = torch.zeros(2, 3, 10)
    scores[:, :, 4], scores[:, :, 7] = 10.0, 10.0 - 1e-5
    steps = Steps(torch.full((2, 3), 4), scores, scores)
    assert same_tokens(PRECISE, torch.tensor([[4, 4, 4], [4, 7, 0]]), steps, ())  # once departed, anything may follow
    assert not same_tokens(PRECISE, torch.tensor([[4, 4, 4], [4, 1, 4]]), steps, ())
    assert same_tokens(PRECISE, torch.tensor([[4, 0, 0], [4, 0, 0]]), steps, (4,))  # both have ended


def test_plain_steps_are_what_generate_does():
    model = tiny_model("llama")
    inputs = tiny_batch(model)
    steps = plain_steps(model, inputs, 3, (), 0)
    assert steps.tokens.shape == (4, 3) and steps.logits.shape == (4, 3, 64)
    assert torch.equal(steps.logits.argmax(-1), steps.tokens)
    with torch.no_grad():
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        first = model(**inputs, position_ids=positions).logits[:, -1]
    torch.testing.assert_close(steps.logits[:, 0], first, atol=1e-5, rtol=0)


def test_first_steps_are_those_of_the_whole_request():
    """A token that is forced at the end of four is not forced at the end of two that are looked at."""
    model = tiny_model("llama")
    model.generation_config.forced_eos_token_id = 9
    inputs = tiny_batch(model)
    whole = plain_steps(model, inputs, 4, (), 0)
    steps = plain_steps(model, inputs, 4, (), 0, 2)
    assert steps.logits.shape[1] == 2 and torch.equal(steps.tokens, whole.tokens[:, :2])
    assert whole.tokens[:, -1].eq(9).all() and not steps.tokens.eq(9).any()


def test_inputs_beyond_a_window_are_another_kind():
    model = tiny_model("mistral")
    inputs = tiny_batch(model)
    short = {name: value[:, : WINDOW - 1] for name, value in inputs.items()}
    kinds = [kind_of(model, *given)[1] for given in ((short, 1), (short, 2), (inputs, 0))]
    assert kinds == ["inside", "across", "beyond"]
    assert kind_of(model, inputs, 0) != kind_of(model, {"input_ids": inputs["input_ids"]}, 0)
    assert kind_of(torch.nn.Linear(1, 1), inputs, 0) == (frozenset(inputs), "inside")


def test_a_request_is_measured_behind_the_end_of_its_window():
    """Prompt of 3 in a window of 4: a single new token fits, the fifth is the fourth behind it."""
    model = tiny_model("mistral")
    assert WINDOW == 4
    ids = tiny_batch(model)["input_ids"]
    short = {"input_ids": ids[:, :3]}
    found = [probe_of(model, short, num_new)[1:] for num_new in (0, 1, 2, 4, 9)]
    assert found == [(0, 0, 0), (1, 1, 1), (1, 1, 2), (1, 3, 4), (1, 4, 5)]
    assert probe_of(model, {"input_ids": ids[:, :7]}, 9)[1:] == (-1, 4, 4)
    assert probe_of(tiny_model("llama"), short, 9)[1:] == (4, 4, 4)


def test_differences_behind_a_window_show_among_many_positions_in_front_of_it():
    logits = torch.randn(2, 30, 50, generator=torch.Generator().manual_seed(0)) * 5
    wrong = logits.clone()
    wrong[:, 27:] = -wrong[:, 27:]
    known = torch.ones(2, 30, dtype=torch.bool)
    assert same_logits(COARSE, wrong, logits) and not same_beyond(COARSE, wrong, logits, known, 26)
    known[:, 27:] = False
    assert same_beyond(COARSE, wrong, logits, known, 26)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, math.inf),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, math.inf),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 32),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
def test_lengths_at_which_positions_turn(rope, expected):
    sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
    model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=32, rope_parameters=rope))
    assert turning_length(model) == expected
    assert turning_length(ZOO["phi3, long"]()[0]) == 11 and turning_length(ZOO["gemma3"]()[0]) == math.inf
