"""What a recorder of blocks notes during a forward."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from lit_depth.functional import ProxyScores, find_blocks
from lit_depth.functional.importance.recorder import BlockRecorder, attention_entropy, compare_states
from tests.helpers.tiny_models import tiny_batch, tiny_model


def test_states_of_zeros_have_stated_values():
    zero, x, y = torch.zeros(3), torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.0, 2.0, 0.0])
    values = compare_states(torch.stack([zero, zero, x, x, x]), torch.stack([zero, y, zero, x, -x]))
    expected = {
        "activation_magnitude": [0, 2, 0, 5, 5],
        "relative_magnitude": [0, 1, 1, 0, 2],
        "block_influence": [0, 1, 1, 0, 2],
        "angular_distance": [0, 0.5, 0.5, 0, 1],
    }
    for method, value in values.items():
        torch.testing.assert_close(value, torch.tensor(expected[method], dtype=torch.float64), rtol=0, atol=1e-7)


def test_entropy_of_known_distributions():
    weights = torch.zeros(2, 7)
    weights[0], weights[1, 3] = 1 / 7, 1.0
    torch.testing.assert_close(attention_entropy(weights), torch.tensor([math.log(7), 0.0], dtype=torch.float64))
    assert attention_entropy(torch.zeros(3, 7)).tolist() == [0.0] * 3  # queries that see no key
    random = torch.rand(50, 7).softmax(-1)
    expected = torch.distributions.Categorical(probs=random.double()).entropy()
    torch.testing.assert_close(attention_entropy(random), expected, rtol=1e-6, atol=0)


def test_blocks_that_do_not_run_are_named():
    model = tiny_model("llama")
    other = copy.deepcopy(find_blocks(model))
    with pytest.raises(ValueError, match=r"blocks \[0, 1, 2, 3\] fired none"):
        ProxyScores(model, ["block_influence"], other).update(tiny_batch(model))


def test_sums_are_over_the_tokens_that_are_not_padding():
    """Against the hidden states that the model itself returns."""
    model, methods = tiny_model("llama"), ["activation_magnitude", "block_influence"]
    batch = tiny_batch(model)
    with BlockRecorder(find_blocks(model), batch["attention_mask"], methods) as recorder, torch.no_grad():
        model.model(**batch, use_cache=False)
    # the last hidden state that the model returns is normed; so is no other one
    states = model.model(**batch, use_cache=False, output_hidden_states=True).hidden_states[:-1]
    real = batch["attention_mask"].bool()
    totals = recorder.totals()
    assert all(totals[method][1].eq(real.sum()).all() for method in methods)
    for block_idx, (before, after) in enumerate(zip(states, states[1:])):
        expected = compare_states(before[real], after[real])
        for method in methods:
            torch.testing.assert_close(totals[method][0, block_idx], expected[method].sum(), rtol=1e-5, atol=1e-6)


def test_hooks_are_removed():
    model = tiny_model("llama")
    with pytest.raises(ZeroDivisionError), BlockRecorder(find_blocks(model), torch.ones(1, 2), ["block_influence"]):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())
