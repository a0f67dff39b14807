"""Rank agreement: known correlations are recovered inside the limits, whatever the noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lit_depth.functional.statistics import agreement as agreement
from lit_depth.functional.statistics import cluster_covariance
from lit_depth.functional.statistics.agreement import (
    rank_agreement,
    rank_agreement_on_same_samples,
    rank_agreement_with,
)

NUM_BLOCKS = 16


def simulate(rng, correlation, scale, num_samples, outlier=0.0, sparse=False):
    """True drops of two splits with this correlation between them, and samples of either."""
    first = rng.normal(size=NUM_BLOCKS)
    second = correlation * first + np.sqrt(1 - correlation**2) * rng.normal(size=NUM_BLOCKS)
    truth = scale * np.stack([first, second])
    truth[:, 0] += outlier
    samples = []
    for drops in truth:
        if sparse:  # answers turn from right to wrong, or back
            lost = rng.random((NUM_BLOCKS, num_samples)) < (0.03 + np.maximum(drops, 0))[:, None]
            won = rng.random((NUM_BLOCKS, num_samples)) < (0.03 + np.maximum(-drops, 0))[:, None]
            samples.append(lost.astype(float) - won)
        else:  # the full model's answer is shared by all blocks
            shared = 0.5 * rng.normal(size=num_samples)
            samples.append(drops[:, None] + shared + rng.normal(size=(NUM_BLOCKS, num_samples)))
    return stats.spearmanr(*truth).statistic, samples


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("outlier", [0.0, 0.5])
@pytest.mark.parametrize("num_samples", [100, 1000])
def test_the_true_correlation_lies_between_the_limits(monkeypatch, num_samples, outlier, sparse):
    """400 simulated studies: at least 94% of 95% limits hold the correlation of the true drops."""
    monkeypatch.setattr(agreement, "_needed", lambda *_: None)
    rng = np.random.default_rng(num_samples)
    held, widths = 0, []
    for run in range(400):
        truth, samples = simulate(rng, (0.0, 0.7, 0.95, 0.999)[run % 4], 0.05, num_samples, outlier, sparse)
        found = rank_agreement(*samples, seed=run)
        held += found.low - 1e-9 <= truth <= found.high + 1e-9
        widths.append(found.high - found.low)
    assert held >= 0.94 * 400
    assert num_samples < 1000 or np.mean(widths) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize(("num_blocks", "num_samples"), [(16, 20), (16, 40), (32, 40), (32, 128)])
def test_few_samples_do_not_make_equal_orders_inconsistent(monkeypatch, num_blocks, num_samples):
    """200 simulated studies with the same true order on both sides, nominal 95%."""
    monkeypatch.setattr(agreement, "_needed", lambda *_: None)
    rng = np.random.default_rng([num_blocks, num_samples])
    held = 0
    for run in range(200):
        truth = 0.05 * rng.normal(size=(num_blocks, 1))
        sides = [
            truth + 0.5 * rng.normal(size=num_samples) + rng.normal(size=(num_blocks, num_samples)) for _ in range(2)
        ]
        held += rank_agreement(*sides, seed=run).high >= 1 - 1e-9
    assert held >= 0.93 * 200


def test_noise_alone_does_not_make_two_equal_orders_inconsistent():
    rng = np.random.default_rng(3)
    _, samples = simulate(rng, 1.0, 0.05, 300)
    found = rank_agreement(*samples)
    assert found.spearman < 0.9 < found.high and found.low < 0.9


def test_more_samples_close_the_limits_and_about_as_many_as_said_are_enough():
    rng = np.random.default_rng(1)
    truth = 0.1 * rng.normal(size=(NUM_BLOCKS, 1))
    few = [truth + rng.normal(size=(NUM_BLOCKS, 400)) for _ in range(2)]
    found = rank_agreement(*few)
    assert found.low < 0.9 and found.factor is not None and found.factor > 1
    enough = [truth + rng.normal(size=(NUM_BLOCKS, 400 * 4 * found.factor)) for _ in range(2)]
    later = rank_agreement(*enough)
    assert later.low >= 0.9 and later.factor == 1 and later.high - later.low < found.high - found.low


def test_opposite_and_unrelated_orders():
    rng = np.random.default_rng(2)
    drops = np.arange(NUM_BLOCKS)[:, None] + 0.1 * rng.normal(size=(2, NUM_BLOCKS, 50))
    opposite = rank_agreement(drops[0], -drops[1])
    assert opposite.spearman == -1 and opposite.high < -0.9 and opposite.factor is None
    assert opposite.p_value == 1e-4


@pytest.mark.parametrize("direction", [1, -1])
def test_an_order_without_noise_is_not_beyond_doubt(direction: int):
    """Two neighbours that change places cost 12 / (n (n^2 - 1)) of the correlation, and are never ruled out."""
    noise = 1e-6 * np.random.default_rng(3).normal(size=(2, 8, 50))
    drops = np.arange(8.0)[:, None] + noise[0], direction * np.arange(8.0)[:, None] + noise[1]
    found = rank_agreement(*drops)
    interval, _ = rank_agreement_with(np.arange(8.0), drops[1])
    for low, high in ((found.low, found.high), (interval.low, interval.high)):
        assert high - low == pytest.approx(12 / (8 * 63)) and max(direction * low, direction * high) == 1


def test_sides_and_seeds_do_not_matter_and_images_do():
    rng = np.random.default_rng(5)
    _, (first, second) = simulate(rng, 0.9, 0.1, 200)
    found, mirrored = rank_agreement(first, second), rank_agreement(second, first)
    assert found.spearman == pytest.approx(mirrored.spearman)
    assert found.low == pytest.approx(mirrored.low, abs=0.05)
    assert rank_agreement(first, second, seed=1).low == pytest.approx(found.low, abs=0.05)
    # every question asked four times of the same image says no more than once
    images = [str(index) for index in range(200)] * 4
    repeated = rank_agreement(np.tile(first, 4), np.tile(second, 4), images, images)
    assert repeated.low == pytest.approx(found.low, abs=0.05)
    assert rank_agreement(np.tile(first, 4), np.tile(second, 4)).low > found.low + 0.05


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        (np.zeros((3, 5)), np.zeros((3, 5)), {}, "4 or more blocks"),
        (np.zeros((5, 5)), np.zeros((4, 5)), {}, "same 4 or more blocks"),
        (np.zeros((5, 5)), np.eye(5), {}, "not all equal"),
        (np.eye(5), np.eye(5), {"confidence": 1.0}, "confidence"),
        (np.eye(5), np.eye(5), {"threshold": 1.0}, "threshold"),
        (np.full((5, 5), np.nan), np.eye(5), {}, "finite"),
    ],
)
def test_bad_input_is_named(first, second, options, message):
    with pytest.raises(ValueError, match=message):
        rank_agreement(first, second, **options)


def test_cluster_covariance_is_that_of_independent_samples_and_of_cluster_means():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 40))
    assert cluster_covariance(values) == pytest.approx(np.cov(values) / 40)
    # four equal clusters: as if their means were the samples
    clusters = [str(index % 4) for index in range(40)]
    means = values.reshape(3, 10, 4).mean(axis=1)
    assert cluster_covariance(values, clusters) == pytest.approx(np.cov(means) / 4)
    with pytest.raises(ValueError, match="at least 2 clusters"):
        cluster_covariance(values, ["one"] * 40)


@pytest.mark.slow
@pytest.mark.parametrize("outlier", [0.0, 0.5])
@pytest.mark.parametrize("num_samples", [100, 1000])
def test_limits_hold_the_correlation_of_known_scores_with_the_true_drops(num_samples, outlier):
    """400 simulated studies: at least 94% of 95% limits; the scores have another scale, and few large ones."""
    rng = np.random.default_rng(num_samples)
    held, widths = 0, []
    for run in range(400):
        correlation = (0.0, 0.7, 0.95, 0.999)[run % 4]
        scores = rng.normal(size=NUM_BLOCKS)
        drops = correlation * scores + np.sqrt(1 - correlation**2) * rng.normal(size=NUM_BLOCKS)
        drops[0] += 20 * outlier
        scores[0] += 20 * outlier * (run % 8 < 4)
        noise = 0.5 * rng.normal(size=num_samples) + rng.normal(size=(NUM_BLOCKS, num_samples))
        found, _ = rank_agreement_with(np.exp(2 * scores), 0.05 * drops[:, None] + noise, seed=run)
        held += found.low - 1e-9 <= stats.spearmanr(scores, drops).statistic <= found.high + 1e-9
        widths.append(found.high - found.low)
    assert held >= 0.94 * 400
    assert num_samples < 1000 or np.mean(widths) < 0.8


def test_known_scores_matter_by_their_order_alone_and_images_do():
    rng = np.random.default_rng(7)
    scores, noise = rng.normal(size=NUM_BLOCKS), rng.normal(size=(NUM_BLOCKS, 200))
    drops = 0.3 * scores[:, None] + noise
    found, p_value = rank_agreement_with(scores, drops)
    assert rank_agreement_with(np.exp(3 * scores), drops) == (found, p_value)
    assert found.estimate == pytest.approx(stats.spearmanr(scores, drops.mean(axis=1)).statistic)
    opposite, _ = rank_agreement_with(-scores, drops)
    assert opposite.estimate == pytest.approx(-found.estimate) and opposite.high < -0.5 and found.low > 0.5
    # every question asked four times of the same image says no more than once
    images = [str(index) for index in range(200)] * 4
    repeated, _ = rank_agreement_with(scores, np.tile(drops, 4), images)
    assert repeated.low == pytest.approx(found.low, abs=0.05)
    more, _ = rank_agreement_with(scores, 0.3 * scores[:, None] + rng.normal(size=(NUM_BLOCKS, 20_000)))
    assert found.high - found.low > 3 * (more.high - more.low)


@pytest.mark.parametrize(
    ("scores", "drops", "message"),
    [
        (np.arange(3), np.eye(3), "num_blocks >= 4"),
        (np.arange(5), np.zeros(5), "num_samples"),
        (np.zeros(5), np.eye(5), "not all equal"),
        (np.arange(5), np.zeros((5, 5)), "not all equal"),
        (np.arange(5), np.full((5, 5), np.nan), "finite"),
        (np.arange(5), np.eye(5)[:, :3], "4 clusters"),
    ],
)
def test_bad_known_scores_are_named(scores, drops, message):
    with pytest.raises(ValueError, match=message):
        rank_agreement_with(scores, drops)


def before_and_after(rng, correlation, spread, num_masks=8, num_samples=256):
    """True qualities of masks before and after, and answers to the same questions; half of the noise is shared."""
    first = rng.normal(size=num_masks)
    second = correlation * first + np.sqrt(1 - correlation**2) * rng.normal(size=num_masks)
    truth = np.clip(0.85 + spread * np.stack([first, second]), 0, 1)
    ease, shared = rng.random(num_samples), rng.random(num_samples) < 0.5
    draws = np.where(shared, ease, rng.random((2, num_masks, num_samples)))
    full = np.where(shared, ease, rng.random(num_samples)) < 0.95
    return stats.spearmanr(*truth).statistic, full - (draws < truth[..., None]).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.005, 0.08])
def test_on_the_same_samples_limits_hold_the_correlation_and_percentiles_of_the_bootstrap_do_not(spread):
    rng, held, by_bootstrap, widths = np.random.default_rng(0), 0, 0, []
    for run in range(100):
        truth, (first, second) = before_and_after(rng, (0.6, 0.95)[run % 2], spread)
        interval, _ = rank_agreement_on_same_samples(first, second, seed=run)
        assert interval.estimate == pytest.approx(stats.spearmanr(first.mean(axis=1), second.mean(axis=1)).statistic)
        held += interval.low - 1e-9 <= truth <= interval.high + 1e-9
        widths.append(interval.high - interval.low)
        counts = rng.multinomial(256, np.full(256, 1 / 256), size=200)
        ranks = [stats.rankdata(counts @ side.T, axis=1) for side in (first, second)]
        resampled = [np.corrcoef(*pair)[0, 1] for pair in zip(*ranks)]
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        by_bootstrap += low - 1e-9 <= truth <= high + 1e-9
    assert held >= 0.95 * 100
    # masks that lie apart by more than the noise are told apart
    assert by_bootstrap < 0.6 * 100 if spread == 0.005 else np.mean(widths) < 0.9


def test_noise_that_two_measurements_share_is_not_agreement():
    """The true qualities of all masks are equal; a question that one mask misses, the healed one misses too."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8, 300))
    interval, _ = rank_agreement_on_same_samples(noise, noise + 0.1 * rng.normal(size=(8, 300)))
    assert interval.estimate > 0.8 and interval.low < 0


def test_on_the_same_samples_images_count_and_sides_do_not():
    rng = np.random.default_rng(5)
    _, (first, second) = before_and_after(rng, 0.9, 0.08)
    interval, p_value = rank_agreement_on_same_samples(first, second)
    mirrored, same = rank_agreement_on_same_samples(second, first)
    assert interval == pytest.approx(mirrored, abs=0.07) and p_value == same
    images = [str(index) for index in range(256)] * 4
    repeated, _ = rank_agreement_on_same_samples(np.tile(first, 4), np.tile(second, 4), images)
    assert repeated == pytest.approx(interval, abs=0.07)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.eye(3), np.eye(3), "num_masks >= 4"),
        (np.eye(5), np.eye(5)[:, :4], r"twice, got \[5, 5\] and \[5, 4\]"),
        (np.zeros((5, 5)), np.eye(5), "not all equal"),
        (np.full((5, 5), np.nan), np.eye(5), "finite"),
    ],
)
def test_bad_input_on_the_same_samples_is_named(first, second, message):
    with pytest.raises(ValueError, match=message):
        rank_agreement_on_same_samples(first, second)
