"""A choice among rows of unequal samples: the complete case, fresh samples, and coverage, on models of known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from lit_depth.functional.statistics.raced import raced_stability, raced_winner
from lit_depth.functional.statistics.stability import best_of, decision_stability
from lit_depth.functional.statistics.winner import winner_interval

SINGLES = np.eye(6, dtype=bool)


def raced(losses, generator, num_samples=256, first=64, per_image=1):
    """Values of a made-up race: after the ``first`` samples whoever is a tenth behind the best is dropped."""
    luck = generator.random((len(losses), num_samples // per_image)).repeat(per_image, axis=1)
    values = -(luck < losses[:, None]).astype(float)
    early = values[:, :first].mean(axis=1)
    values[early < early.max() - 0.1, first:] = np.nan
    is_whole = np.isfinite(values).all(axis=1)
    return values, int(np.where(is_whole, np.where(is_whole[:, None], values, 0).mean(axis=1), -np.inf).argmax())


def test_complete_rows_are_judged_as_any_others():
    generator = np.random.default_rng(0)
    values = -(generator.random((6, 120)) < np.linspace(0.05, 0.2, 6)[:, None]).astype(float)
    images = np.arange(120) // 2
    row = int(values.mean(axis=1).argmax())
    found, expected = (
        raced_stability(values, SINGLES, row, images),
        decision_stability(values, best_of(SINGLES), images),
    )
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(np.array(ours, float), np.array(theirs, float))
    np.testing.assert_allclose(
        np.hstack(raced_winner(values, row, images)), np.hstack(winner_interval(values, images)), atol=1e-12
    )


@pytest.mark.parametrize("per_image", [1, 4])
def test_inclusion_is_that_of_fresh_samples_in_full(per_image):
    """Predicted from races, by model; the truth is how often each row is best of 400 fresh samples, all evaluated."""
    generator = np.random.default_rng(1)
    predicted, truth, dropped = [], [], []
    for _ in range(50):
        losses = generator.choice([0.05, 0.08, 0.1, 0.3], 6) + generator.uniform(0, 0.02, 6)
        values, row = raced(losses, generator, per_image=per_image)
        dropped.append(np.isnan(values).any(axis=1))
        predicted.append(raced_stability(values, SINGLES, row, np.arange(256) // per_image).inclusion)
        fresh = generator.binomial(256 // per_image, losses, (400, 6))
        truth.append(np.eye(6)[fresh.argmin(axis=1)].mean(axis=0))
    found, true, early = (np.concatenate(each) for each in (predicted, truth, dropped))
    for chosen in (found > 1 / 3, found <= 1 / 3, early):
        assert chosen.sum() > 20
        assert abs(np.mean(found[chosen]) - np.mean(true[chosen])) < 0.1


def test_what_orders_equal_rows_orders_them_in_fresh_samples_too():
    """Rows that rarely err are mostly tied; the truth is how often each is best of 200 fresh samples."""
    generator = np.random.default_rng(3)

    def sample(losses, offsets):
        luck = generator.random((6, 200))
        right = -(luck < losses[:, None]).astype(float)
        return right, np.clip(offsets[:, None] + 0.05 * generator.standard_normal((6, 200)) + 0.3 * right, -1, 1)

    def best(right, second):
        return int(np.lexsort((-second.mean(axis=1), -right.mean(axis=1).round(9)))[0])

    distances = []
    for _ in range(8):
        losses, offsets = generator.uniform(0, 0.005, 6), -generator.uniform(0, 0.03, 6)
        right, second = sample(losses, offsets)
        row = best(right, second)
        truth = np.bincount([best(*sample(losses, offsets)) for _ in range(200)], minlength=6) / 200
        found = [raced_stability(right, SINGLES, row, second=each).inclusion for each in (second, None)]
        distances.append([np.abs(each - truth).mean() for each in found])
    with_second, without = np.mean(distances, axis=0)
    assert with_second < 0.15 and with_second < 0.95 * without, (with_second, without)


def test_a_second_score_only_orders_what_is_equal():
    right = np.zeros((3, 100))
    right[0, :40] = -1.0  # far worse, whatever the second score says
    second = np.repeat([[0.9], [0.1], [0.5]], 100, axis=1)
    found = [raced_stability(right, SINGLES[:3], 2, second=each) for each in (second, None)]
    assert found[0].inclusion[0] < 0.05 and found[0].inclusion[2] > 0.6 > found[1].inclusion[2]
    graded = right - np.random.default_rng(0).random((3, 100)) / 10  # means have no common unit: nothing is equal
    same = [raced_stability(graded, SINGLES[:3], 2, second=each).inclusion for each in (second, None)]
    np.testing.assert_array_equal(*same)
    with pytest.raises(ValueError, match="where the first one is"):
        raced_stability(right, SINGLES[:3], 2, second=np.where(right < 0, np.nan, second))


def test_the_winner_of_a_race_is_covered():
    generator, hits, rivals = np.random.default_rng(2), 0, []
    losses = np.full(6, 0.12)  # whoever falls behind does so by luck
    for _ in range(50):
        values, row = raced(losses, generator)
        found = raced_winner(values, row)
        hits += found.corrected.low <= -0.12 <= found.corrected.high
        rivals.append(found.num_rivals)
    assert binomtest(hits, 50).proportion_ci(0.99).high >= 0.94 and hits >= 45
    assert np.mean(rivals) > 3


def test_rows_on_samples_of_their_own_may_each_be_the_best():
    values = np.full((2, 40), np.nan)
    values[0, :20] = -(np.arange(20) < 4).astype(float)
    values[1, 20:] = -(np.arange(20) < 4).astype(float)
    assert raced_winner(values, 0).num_rivals == 1
    assert abs(raced_stability(values, SINGLES[:2], 0).inclusion[0] - 0.5) < 0.15


def test_wrong_values_are_refused():
    for wrong, message in (
        (np.full((2, 4), np.nan), "at least 2 clusters"),
        (np.full((2, 4), np.inf), "expected finite values"),
        (np.zeros(4), "expected values of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            raced_stability(wrong, SINGLES[:2], 0)
