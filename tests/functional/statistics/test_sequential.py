"""Laws of sequential evidence: it holds however often it is looked at."""

from __future__ import annotations

import numpy as np
import pytest

from lit_depth.functional.statistics import confidence_sequence, log_evidence
from lit_depth.functional.statistics.sequential import _predictable_bets


def draw(kind: str, generator: np.random.Generator, size: int) -> np.ndarray:
    """Paired differences of known mean: rare, frequent, skewed, none."""
    if kind == "rare":
        return generator.choice([-1.0, 0.0, 1.0], p=[0.01, 0.95, 0.04], size=size)
    if kind == "frequent":
        return generator.choice([-1.0, 1.0], p=[0.4, 0.6], size=size)
    if kind == "skewed":
        return generator.beta(0.3, 2.0, size=size)
    return np.zeros(size)


MEANS = {"rare": 0.03, "frequent": 0.2, "skewed": 0.3 / 2.3, "none": 0.0}


@pytest.mark.parametrize("kind", [pytest.param("rare", marks=pytest.mark.slow), "frequent", "skewed", "none"])
def test_confidence_sequence_holds_at_every_sample(kind: str) -> None:
    """2,000 runs, each looked at after every one of 120 samples: the mean leaves in fewer than 5% of them."""
    generator = np.random.default_rng(3)
    left = 0
    for _ in range(2000):
        lows, highs = confidence_sequence(draw(kind, generator, 120), resolution=200)
        left += bool(np.any(lows > MEANS[kind]) or np.any(highs < MEANS[kind]))
    assert left < 0.05 * 2000


def test_confidence_sequence_never_widens_and_closes_in() -> None:
    values = draw("rare", np.random.default_rng(0), 4000)
    lows, highs = confidence_sequence(values)
    assert np.all(np.diff(lows) >= 0) and np.all(np.diff(highs) <= 0) and np.all(lows < highs)
    assert lows[-1] > 0
    # narrower than half of Hoeffding's bound for a single look, which knows nothing of the small variance
    assert highs[-1] - lows[-1] < 2 * np.sqrt(np.log(2 / 0.05) / (2 * 4000))


def test_bets_are_placed_before_the_value_is_seen() -> None:
    values = np.random.default_rng(0).random(30)
    bets = _predictable_bets(values, 0.05)
    for t in (0, 7, 29):
        changed = values.copy()
        changed[t:] = 1 - changed[t:]
        np.testing.assert_array_equal(_predictable_bets(changed, 0.05)[: t + 1], bets[: t + 1])
        assert t == 29 or not np.array_equal(_predictable_bets(changed, 0.05), bets)


def test_confidence_sequence_is_equivariant() -> None:
    values = draw("skewed", np.random.default_rng(1), 60)
    lows, highs = confidence_sequence(values, low=-1, high=1)
    flipped_lows, flipped_highs = confidence_sequence(-values, low=-1, high=1)
    np.testing.assert_allclose(lows, -flipped_highs, atol=1e-12)
    np.testing.assert_allclose(highs, -flipped_lows, atol=1e-12)
    scaled_lows, _ = confidence_sequence(10 * values + 3, low=-7, high=13)
    np.testing.assert_allclose(10 * lows + 3, scaled_lows, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.5, 1.5], {}, r"in \[-1.0, 1.0\]"),
        ([0.5, np.nan], {}, "finite"),
        ([[0.5]], {}, r"shape \[n\]"),
        ([0.5], {"confidence": 1.0}, "confidence"),
    ],
)
def test_confidence_sequence_refuses(values: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confidence_sequence(values, **options)


def gamblers(values: np.ndarray, bounds: np.ndarray) -> list[float]:
    """Log capital after each value, of gamblers who stake what they have, one value after another."""
    shares, capitals = [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.95], [0.1] * 6 + [0.4]
    logs = []
    for value, bound in zip(values, bounds):
        # a gambler who stakes all of it is ruined by a -1
        capitals = [c * (1 + share * (value - bound) / (1 + bound)) for share, c in zip(shares, capitals)]
        logs.append(np.log(sum(capitals)))
    return logs


@pytest.mark.parametrize("kind", ["rare", "frequent", "none"])
def test_evidence_is_the_capital_of_gamblers(kind: str) -> None:
    values = draw(kind, np.random.default_rng(4), 200)
    for bounds in (np.zeros(200), np.full(200, -0.05), np.linspace(0.3, -0.6, 200)):
        np.testing.assert_allclose(log_evidence(values, bounds), gamblers(values, bounds), atol=1e-9)


def test_a_bound_that_no_mean_keeps_is_infinite_evidence() -> None:
    assert log_evidence([0.0, 0.5, -1.0, 0.0], [0.0, 0.0, -1.2, 0.0]).tolist()[2:] == [np.inf, np.inf]
    assert np.isfinite(log_evidence([0.0, 0.5, -1.0, 0.0], -0.99)).all()


def test_evidence_is_rarely_wrong_however_often_it_is_looked_at() -> None:
    generator = np.random.default_rng(5)
    fair = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=(4000, 300))
    wrong = (log_evidence(fair) >= np.log(20)).any(axis=1)
    assert 0.005 < wrong.mean() < 0.05
    # a mean of -0.05 is not above -0.05
    shifted = generator.choice([-1.0, 0.0, 1.0], p=[0.125, 0.8, 0.075], size=(4000, 300))
    assert 0.005 < (log_evidence(shifted, -0.05) >= np.log(20)).any(axis=1).mean() < 0.05


def test_evidence_falls_with_the_bound_and_rows_are_independent() -> None:
    rows = np.stack([draw(kind, np.random.default_rng(6), 200) for kind in ("rare", "frequent", "none")])
    evidence = [log_evidence(rows, bound) for bound in (0.0, -0.01, -0.5)]
    assert np.all(np.diff(evidence, axis=0) >= 0)
    for row, expected in zip(rows, evidence[1]):
        np.testing.assert_array_equal(log_evidence(row, np.full(200, -0.01)), expected)


@pytest.mark.parametrize("values", [[1.5], [np.nan]])
def test_evidence_refuses(values: list) -> None:
    with pytest.raises(ValueError, match=r"finite values in \[-1.0, 1.0\]"):
        log_evidence(values)
