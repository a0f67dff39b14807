"""Runs at equal cost: the mean over costs against a plain loop, and a choice that gains nothing from being made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lit_depth.studies.overview.analysis import RunScores
from lit_depth.studies.overview.equal_cost import (
    ANY_POLICY,
    CostCurve,
    CostPoint,
    compare_at_equal_cost,
    halves,
    quality_at_cost,
)

FULL = "1111"


def curve(label: str, costs: dict[str, float], cost: str = "flops") -> CostCurve:
    points = [
        CostPoint("prefix", mask.count("1"), [mask], share, [share, share], 0.0, [0.0, 0.0])
        for mask, share in costs.items()
    ]
    points.append(CostPoint("all blocks", 4, [FULL], 1.0, [1.0, 1.0], 0.0, [0.0, 0.0]))
    return CostCurve(label, "shapes", cost, "accuracy", 0.95, points)


def run(label: str, scores: dict[str, np.ndarray], skip_tokens: str) -> RunScores:
    rows: list[dict[str, Any]] = [
        {"mask": mask, "sample": f"s{n}", "image": f"i{n // 2}", "score": score, "role": "validation"}
        for mask, own in scores.items()
        for n, score in enumerate(own)
    ]
    frames = {"shapes": pd.DataFrame(rows)}
    return RunScores(label, "tiny", {"shapes": "accuracy"}, {}, frames, {}, skip_tokens)


def test_the_mean_over_costs_is_that_of_a_fine_grid():
    generator = np.random.default_rng(0)
    costs, scores = np.sort(generator.uniform(0.1, 1.1, 6)), generator.normal(size=(6, 40))
    half, low = generator.uniform(size=40) < 0.5, costs[0] + 0.05
    grid = np.linspace(low, 1.0, 20_001)[:-1]
    expected = np.zeros(40)
    for cost in grid:
        known = [index for index in range(6) if costs[index] <= cost]
        for side in (True, False):
            best = max(known, key=lambda index: scores[index, half != side].mean())
            expected[half == side] += scores[best, half == side]
    assert quality_at_cost(costs, scores, half, low) == pytest.approx(expected / len(grid), abs=2e-3)


def test_the_best_of_many_equal_masks_gains_nothing():
    generator = np.random.default_rng(1)
    costs, half = np.full(30, 0.5), np.arange(100) % 2 == 0
    draws = [generator.normal(size=(30, 100)) for _ in range(20)]
    naive = [scores.mean(axis=1).max() for scores in draws]
    honest = [quality_at_cost(costs, scores, half, 0.5).mean() for scores in draws]
    assert np.mean(naive) > 0.15 and abs(np.mean(honest)) < 0.07


def test_images_are_cut_in_halves_and_not_their_questions():
    images = [f"i{n // 3}" for n in range(30)]
    half = halves(images)
    assert {tuple(half[3 * n : 3 * n + 3]) for n in range(10)} == {(True,) * 3, (False,) * 3}
    assert half.sum() == 15 and halves(images[::-1]).tolist() == half[::-1].tolist()


def pairs(second: dict[str, float], scores: dict[str, np.ndarray] | None = None, **changes: Any):
    good, poor = np.ones(40), np.zeros(40)
    first = run("blocks", {FULL: good, "1100": poor, "1000": poor}, "all")
    other = run("images", scores or {FULL: good, "1100": good, "1000": poor}, "image")._replace(**changes)
    curves = [[curve("blocks", {"1100": 0.5, "1000": 0.25})], [curve("images", second)]]
    return compare_at_equal_cost([first, other], curves, 0.95)


def test_what_is_as_good_for_less_is_better_at_equal_cost():
    (pair,) = pairs({"1100": 0.7, "1000": 0.4})
    # from 0.7 on one of the two has a mask as good as all blocks
    assert (pair.what, pair.low, pair.num_samples) == (ANY_POLICY, 0.4, 40)
    assert pair.found is not None and pair.found.interval.estimate == pytest.approx(-0.3 / 0.6)
    assert pair.found.simultaneous.high < 0


def test_without_a_cheaper_mask_nothing_is_tested():
    (pair,) = pairs({"1100": 1.2, "1000": 1.1})
    assert pair.found is None and pair.low == 1.0


def test_only_runs_of_one_model_and_other_tokens_are_compared():
    costs = {"1100": 0.7, "1000": 0.4}
    assert pairs(costs, skip_tokens="all") == [] and pairs(costs, model="other") == []
    assert pairs(costs, metrics={"shapes": "another"}) == [] and pairs(costs, frames={}) == []
