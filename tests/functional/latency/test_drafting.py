"""What drafts are expected to save: against simulated rounds, and the published formula for answers without an end."""

from __future__ import annotations

import random

import pytest
import torch

from lit_depth.functional import leave_one_out, mask_id
from lit_depth.functional.latency.drafting import (
    DraftCosts,
    best_draft,
    decoding_speedup,
    expected_ms,
    time_steps,
    tokens_per_round,
)
from tests.helpers.tiny_models import tiny_batch, tiny_model

VERIFY = [10.0, 10.5, 11.0, 12.0, 12.5, 13.0]


def simulated_ms(num_tokens, acceptance, num_draft, draft_ms, verify_ms, rng):
    """One answer, round by round, with drafts that are right by chance."""
    spent, left = 0.0, num_tokens
    while left > 0:
        drafted, agreed = min(num_draft, left), 0
        while agreed < drafted and rng.random() < acceptance:
            agreed += 1
        spent += drafted * draft_ms + verify_ms[drafted]
        left -= min(agreed + 1, left)
    return spent


@pytest.mark.parametrize(("acceptance", "num_draft", "tokens"), [(0.8, 3, 12), (0.3, 5, 7), (0.95, 2, 1), (0.6, 1, 4)])
def test_expected_time_is_the_mean_of_simulated_rounds(acceptance, num_draft, tokens):
    rng = random.Random(0)
    draws = [simulated_ms(tokens, acceptance, num_draft, 3.0, VERIFY, rng) for _ in range(8000)]
    assert expected_ms(tokens, acceptance, num_draft, 3.0, VERIFY) == pytest.approx(sum(draws) / 8000, rel=0.01)


@pytest.mark.parametrize("acceptance", [0.0, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("num_draft", [1, 3, 5])
def test_of_long_answers_it_is_the_published_formula(acceptance, num_draft):
    cost = 0.25  # of a draft step, as a share of one of the full model
    same = [8.0] * (num_draft + 1)
    published = (num_draft + 1) if acceptance == 1 else (1 - acceptance ** (num_draft + 1)) / (1 - acceptance)
    assert tokens_per_round(acceptance, num_draft) == pytest.approx(published)
    published /= num_draft * cost + 1  # theorem 3.8
    assert decoding_speedup(acceptance, num_draft, cost * 8.0, same) == pytest.approx(published)
    long = 3000
    assert long * 8.0 / expected_ms(long, acceptance, num_draft, cost * 8.0, same) == pytest.approx(published, rel=2e-3)


def test_without_drafts_it_is_plain_decoding():
    assert expected_ms(7, 0.9, 0, 3.0, VERIFY) == 7 * VERIFY[0]
    assert expected_ms(0, 0.9, 3, 3.0, VERIFY) == 0


def test_the_best_length_is_that_of_least_time():
    costs = DraftCosts(50.0, {"1100": 60.0}, {"1100": 4.0}, VERIFY)
    lengths = [9, 3, 9, 1]
    found = best_draft("1100", 0.85, costs, lengths, 5)

    def total(num_draft):
        return sum(60.0 + expected_ms(each, 0.85, num_draft, 4.0, VERIFY) for each in lengths)

    assert total(found.num_draft) == min(map(total, range(1, 6)))
    plain = sum(50.0 + each * VERIFY[0] for each in lengths)
    assert found.speedup == pytest.approx(plain / total(found.num_draft))
    assert best_draft("1100", 0.0, costs, lengths, 5).num_draft == 1  # what is never right had better be short


def test_every_step_of_a_request_is_timed():
    model = tiny_model("llama")
    inputs = {name: value[:1] for name, value in tiny_batch(model).items()}
    masks = leave_one_out(4)[:2]
    costs = time_steps(model, inputs, masks, 3, max_new_tokens=8)
    assert set(costs.both) == set(costs.draft) == set(map(mask_id, masks)) and len(costs.verify) == 4
    assert all(each > 0 for each in (costs.prompt, *costs.both.values(), *costs.draft.values(), *costs.verify))


def test_mistakes_are_named():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="expected one request with room for more than 4 new tokens, got 4 and 8"):
        time_steps(model, tiny_batch(model), leave_one_out(4), 3, max_new_tokens=8)
    with pytest.raises(ValueError, match="acceptance"):
        expected_ms(3, 1.5, 2, 1.0, VERIFY)
    assert torch.is_grad_enabled()
