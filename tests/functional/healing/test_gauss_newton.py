"""A step is ridge least squares on autograd's own gradients, computed by numpy; only what helps others is kept."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_depth.functional.healing.gauss_newton import (
    answer_logprobs,
    fits,
    gauss_newton_step,
    gradient_rows,
    linear_maps,
    refit,
)
from lit_depth.functional.healing.outputs import swapped

WIDTH, PLACE = 8, 4


def small_model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "hidden_size": WIDTH, "intermediate_size": 12, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, initializer_range=0.3)).double().eval()
    return model.requires_grad_(False)


def questions(rows=6, seed=0):
    ids = torch.randint(1, 12, (rows, 7), generator=torch.Generator().manual_seed(seed))
    labels = torch.full_like(ids, -100)
    labels[:, PLACE] = ids[:, PLACE]
    return ids, labels


def runs(model, ids, labels):
    return lambda: answer_logprobs(model(ids, use_cache=False).logits, labels)


def found(seed=0):
    model = small_model()
    ids, labels = questions(seed=seed)
    run = runs(model, ids, labels)
    return model, ids, run, linear_maps([model.model.layers[1]], run, ids.numel())


def test_log_probabilities_are_torchs_cross_entropy_of_the_labels():
    logits, labels = (
        torch.randn(3, 5, 9),
        torch.tensor([[-100, 1, 2, -100, -100], [-100] * 5, [3, -100, -100, -100, 8]]),
    )
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    torch.testing.assert_close(answer_logprobs(logits, labels), -losses.sum(1))


def test_all_linear_layers_of_the_blocks_are_found():
    model, _, _, maps = found()
    expected = {module for module in model.model.layers[1].modules() if isinstance(module, nn.Linear)}
    assert {each.module for each in maps} == expected and len(maps) == 7
    weights = sum(module.weight.numel() for module in expected)
    assert fits(maps, 2**30 // weights) and not fits(maps, 2**30 // weights + 1)


def test_rows_are_autograds_gradients_of_the_weights():
    model, ids, run, maps = found()
    values, rows = gradient_rows(maps, run)
    weights = [each.module.weight.requires_grad_() for each in maps]
    for row, value in enumerate(run()):
        expected = torch.autograd.grad(value, weights, retain_graph=True)
        torch.testing.assert_close(values[row], value.detach())
        for each, gradient in zip(rows, expected):
            torch.testing.assert_close(each[row].double(), gradient.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-3, 3.0])
def test_a_step_is_numpys_least_squares_with_rows_that_pull_to_zero(ridge):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(10, 4, 3, generator=generator), torch.randn(10, 2, 5, generator=generator)]
    rest = torch.randn(10, generator=generator, dtype=torch.float64)
    jacobian = torch.cat([each.flatten(1) for each in rows], dim=1).double().numpy()
    strength = math.sqrt(ridge * np.mean(np.square(jacobian).sum(1)))
    stacked = np.concatenate([jacobian, strength * np.eye(22)])
    expected, *_ = np.linalg.lstsq(stacked, np.concatenate([rest, np.zeros(22)]), rcond=None)
    change = torch.cat([each.flatten() for each in gauss_newton_step(rows, rest, ridge)])
    np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_what_differs_to_first_order_is_made_up_for():
    """The whole model is this one with other weights nearby: one step with hardly a ridge finds what they answer."""
    model, ids, run, maps = found()
    weight = maps[0].module.weight
    nearby = weight + 1e-4 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
    with swapped({weight: nearby}):
        target = run()
    before = (target - run()).abs().max()
    result = refit(maps, [run, run, run, run], [target] * 4, steps=1, ridge=1e-6)
    with swapped(result.weights):
        assert (target - run()).abs().max() < 1e-2 * before
    assert result.unexplained < 1e-4


def test_the_last_quarter_decides_how_many_steps_are_taken():
    """Its targets are met already: any step is one away from them."""
    _, _, run, maps = found()
    target = run()
    away = [target + 1, target + 1, target + 1, target + 1e-9]
    result = refit(maps, [run] * 4, away, steps=3, ridge=1.0)
    assert result.weights == {} and result.unexplained == 1


def test_fewer_rows_than_can_be_held_out_are_refused():
    _, _, run, maps = found()
    with pytest.raises(ValueError, match="rows held out, at least 4, got 3"):
        refit(maps, [lambda: run()[:3]], [run()[:3]], steps=1, ridge=1.0)
