"""Predicted choices of fresh samples against fresh samples themselves, on models of known truth."""

from __future__ import annotations

import numpy as np
import pytest

from lit_depth.functional.statistics.clusters import sum_clusters
from lit_depth.functional.statistics.stability import best_of, decision_stability, least, mean_covariance


def draw(losses, num_samples, number, generator, per_image=1):
    """Drops ``[number, rows, num_samples]`` of 0 or 1, whose images are harder or easier."""
    difficulty = generator.gamma(2, 0.5, (number, 1, num_samples // per_image)).repeat(per_image, axis=2)
    return (generator.random((number, len(losses), num_samples)) < losses[:, None] * difficulty).astype(float)


def test_a_clear_choice_is_certain_and_a_coin_toss_is_a_half():
    generator = np.random.default_rng(0)
    clear = decision_stability(draw(np.array([0.02, 0.4, 0.5]), 400, 1, generator)[0], least(1))
    assert clear.chosen.tolist() == [True, False, False]
    assert clear.inclusion.round(2).tolist() == [1.0, 0.0, 0.0]
    assert (clear.repeated, clear.agreement, clear.times) == (1.0, 1.0, 1.0)
    toss = np.zeros((2, 400))
    toss[0, :40] = toss[1, 200:240] = 1.0
    found = decision_stability(toss, least(1))
    assert abs(found.inclusion - 0.5).max() < 0.15 and found.inclusion.sum() == 1
    assert found.times is None or found.times > 8


def test_the_rule_of_the_best_mask_chooses_its_blocks():
    generator = np.random.default_rng(1)
    quality = 1 - draw(np.array([0.3, 0.02, 0.3]), 300, 1, generator)[0]
    members = [[True, True, False], [True, False, True], [False, True, True]]
    found = decision_stability(quality, best_of(members))
    assert found.chosen.tolist() == members[1]
    assert found.inclusion.tolist() == [1.0, 0.0, 1.0]


def test_samples_that_would_settle_it_settle_it():
    """At the size named two fresh samples agree about as often as promised; the model is true at that size."""
    losses, generator = np.array([0.10, 0.14, 0.3]), np.random.default_rng(2)
    found = [decision_stability(each, least(1)).times for each in draw(losses, 400, 60, generator)]
    typical = sorted(np.inf if each is None else each for each in found)[len(found) // 2]
    assert 1 < typical < 64
    means = draw(losses, int(400 * typical), 200, generator).mean(axis=2)
    chosen = means.argmin(axis=1)
    assert 0.75 < np.mean(chosen[::2] == chosen[1::2]) <= 1


def test_inclusion_is_calibrated_where_the_bootstrap_is_not():
    """Fewer models than the benchmark's, in three bins: predictions from one sample, truth from 100 fresh ones."""
    generator = np.random.default_rng(3)
    ours, plain, truth = [], [], []
    for _ in range(60):
        losses, per_image = generator.exponential(0.05, 12), int(generator.choice([1, 2]))
        values = draw(losses, 256, 1, generator, per_image)[0]
        images = np.repeat(np.arange(256 // per_image), per_image)
        ours.append(decision_stability(values, least(3), images).inclusion)
        sums = sum_clusters(values, images)
        number = len(sums.sizes)
        weights = generator.multinomial(number, np.full(number, 1 / number), 200)
        plain.append(least(3)(weights @ sums.values.T).mean(axis=0))
        truth.append(least(3)(draw(losses, 256, 100, generator, per_image).mean(axis=2)).mean(axis=0))

    def errors(predicted):
        flat, true = np.concatenate(predicted), np.concatenate(truth)
        places = np.digitize(flat, [1 / 3, 2 / 3])
        return [flat[places == place].mean() - true[places == place].mean() for place in range(3)]

    assert max(map(abs, errors(ours))) < 0.12
    # what looks nearly sure is nearly sure, of which the bootstrap promises too much
    assert abs(errors(ours)[2]) < 0.06 < errors(plain)[2]


def test_copies_of_samples_on_one_image_add_nothing():
    values = draw(np.full(4, 0.1), 100, 1, np.random.default_rng(4))[0]
    twice = decision_stability(values.repeat(2, axis=1), least(1), np.arange(100).repeat(2))
    np.testing.assert_allclose(twice.inclusion, decision_stability(values, least(1)).inclusion, atol=0.1)


def test_the_covariance_is_that_of_the_textbook_and_half_a_sample():
    values = np.random.default_rng(5).normal(size=(3, 50))
    found = mean_covariance(sum_clusters(values))
    np.testing.assert_allclose(
        found, np.cov(values) / 50 + np.eye(3) * (np.abs(values).max() / 50) ** 2 / 2, atol=1e-15
    )
    # two tasks of one weight: the mean of two independent means
    tasks = np.array(["a"] * 20 + ["b"] * 30)
    several = mean_covariance(sum_clusters(values, None, tasks))
    a, b = (mean_covariance(sum_clusters(values[:, tasks == each])) for each in "ab")
    np.testing.assert_allclose(several, (a + b) / 4, rtol=1e-9)


def test_one_row_is_certain_and_rows_that_have_not_differed_yet_are_a_coin_toss():
    assert decision_stability(np.ones((1, 20)), least(1)).inclusion.tolist() == [1.0]
    found = decision_stability(np.zeros((5, 20)), least(2))
    assert found.chosen.tolist() == [True, True, False, False, False]
    assert found.inclusion.sum() == pytest.approx(2) and found.inclusion.max() < 0.8
    assert found.agreement < 0.5 and found.times is None


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="expected at least 2 clusters"):
        decision_stability(np.ones((2, 3)), least(1), ["a"] * 3)
    with pytest.raises(ValueError, match="expected finite differences"):
        decision_stability([[np.nan, 1.0]], least(1))
