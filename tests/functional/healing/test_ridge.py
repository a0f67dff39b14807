"""Ridge least squares from sums equals least squares on the rows themselves, computed by numpy."""

import math

import numpy as np
import pytest
import torch

from lit_depth.functional.healing.ridge import RidgeSums


def rows(count=60, features=5, outputs=3, noise=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator, dtype=torch.float64)
    truth = torch.randn(features, outputs, generator=generator, dtype=torch.float64)
    y = x @ truth + noise * torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    return x, y, weights, torch.arange(count) % 4 == 3


def test_without_a_ridge_it_is_numpys_weighted_least_squares():
    x, y, weights, held_out = rows()
    sums = RidgeSums(5, 3)
    for part in torch.arange(60).split(7):  # cut into batches as it may be
        sums.add(x[part], y[part], weights[part], held_out[part])
    root = weights.sqrt()[:, None].numpy()
    expected, *_ = np.linalg.lstsq(root * x.numpy(), root * y.numpy(), rcond=None)
    np.testing.assert_allclose(sums.solve((0.0,)).coefficients, expected, rtol=1e-9, atol=1e-12)


def test_a_ridge_is_least_squares_with_rows_that_pull_to_zero():
    x, y, weights, held_out = rows()
    sums = RidgeSums(5, 3)
    sums.add(x, y, weights, held_out)
    root = weights.sqrt()[:, None].numpy()
    weighted = root * x.numpy()
    strength = 0.5 * np.mean((weighted**2).sum(0))
    stacked = np.concatenate([weighted, math.sqrt(strength) * np.eye(5)])
    expected, *_ = np.linalg.lstsq(stacked, np.concatenate([root * y.numpy(), np.zeros((5, 3))]), rcond=None)
    np.testing.assert_allclose(sums.solve((0.5,)).coefficients, expected, rtol=1e-9, atol=1e-12)


def test_the_ridge_is_the_best_one_on_the_held_out_rows():
    x, y, weights, held_out = rows(count=12, features=8, noise=2.0)
    candidates = (1e-6, 1e-2, 1.0, 100.0)

    def left(ridge):
        weighted = x[~held_out] * weights[~held_out, None]
        gram = weighted.T @ x[~held_out]
        matrix = gram + ridge * gram.diagonal().mean() * torch.eye(8, dtype=torch.float64)
        found = torch.linalg.solve(matrix, weighted.T @ y[~held_out])
        error = (weights[held_out, None] * (y[held_out] - x[held_out] @ found).square()).sum()
        return float(error / (weights[held_out, None] * y[held_out].square()).sum())

    expected = {ridge: left(ridge) for ridge in candidates}
    sums = RidgeSums(8, 3)
    sums.add(x, y, weights, held_out)
    fit = sums.solve(candidates)
    best = min(expected, key=expected.get)
    assert 1e-6 < best < 100.0 and expected[best] < 1
    assert fit.ridge == best and fit.unexplained == pytest.approx(expected[best])


def test_where_every_map_is_worse_than_none_there_is_none():
    x, y, weights, held_out = rows()
    y[held_out] *= -1
    sums = RidgeSums(5, 3)
    sums.add(x, y, weights, held_out)
    fit = sums.solve()
    assert fit.ridge == math.inf and fit.unexplained == 1.0 and not fit.coefficients.any()


def test_channel_by_channel_it_is_one_regression_each():
    x, _, weights, held_out = rows(features=3)
    y = x * torch.tensor([2.0, -1.0, 0.5]) + 0.1 * x.roll(1, 0)
    sums = RidgeSums(3, 3, by_channel=True)
    sums.add(x, y, weights, held_out)
    root = weights.sqrt().numpy()
    expected = [
        np.linalg.lstsq((root * x[:, c].numpy())[:, None], root * y[:, c].numpy(), rcond=None)[0][0] for c in range(3)
    ]
    np.testing.assert_allclose(sums.solve((0.0,)).coefficients, expected, rtol=1e-9)


def test_both_kinds_of_rows_are_needed():
    x, y, weights, _ = rows()
    sums = RidgeSums(5, 3)
    sums.add(x, y, weights, torch.zeros(60, dtype=torch.bool))
    with pytest.raises(ValueError, match="rows held out"):
        sums.solve()
