"""Laws of the statistics: agreement with scipy and with brute force, and coverage by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lit_depth.functional.statistics import (
    Interval,
    _predictable_bets,
    confidence_sequence,
    holm,
    log_evidence,
    macro_intervals,
    mcnemar_exact,
    paired_interval,
    paired_intervals,
    pairwise_sign_flip_tests,
    sign_flip_test,
    spearman,
)

p_values = st.lists(st.floats(0, 1), max_size=12)
scores = st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=1, max_size=12)


def clustered(generator: np.random.Generator, num_samples: int, num_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of mean 0 with an image effect, and the image of each; cluster sizes differ."""
    clusters = np.concatenate([np.arange(num_clusters), generator.integers(num_clusters, size=num_samples)])[
        :num_samples
    ]
    return generator.normal(size=num_clusters)[clusters] + generator.normal(size=num_samples), clusters


# --- intervals


@pytest.mark.parametrize("kind", ["normal", "skewed", "ternary"])
def test_interval_equals_scipy_bca(kind: str) -> None:
    """Same limits as scipy.stats.bootstrap once the level is expanded alike, up to the noise of the resamples."""
    generator = np.random.default_rng(3)
    values = {
        "normal": generator.normal(0.3, 1, 120),
        "skewed": generator.exponential(1.0, 120),
        "ternary": generator.choice([-1.0, 0.0, 0.0, 1.0], 120),
    }[kind]
    n = len(values)
    expanded = 2 * stats.norm.cdf(stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))) - 1
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, confidence_level=expanded, rng=np.random.default_rng(0), batch=1000
    )
    interval = paired_interval(values, num_resamples=40_000, seed=1)
    assert interval.estimate == pytest.approx(values.mean())
    tolerance = 0.06 * reference.standard_error
    assert interval.low == pytest.approx(reference.confidence_interval.low, abs=tolerance)
    assert interval.high == pytest.approx(reference.confidence_interval.high, abs=tolerance)


def test_interval_with_clusters_equals_scipy_on_the_ratio() -> None:
    values, clusters = clustered(np.random.default_rng(5), 150, 40)
    sums = np.bincount(clusters, weights=values)
    sizes = np.bincount(clusters).astype(float)
    expanded = 2 * stats.norm.cdf(stats.t.ppf(0.975, 39) * np.sqrt(40 / 39)) - 1
    reference = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        n_resamples=40_000,
        confidence_level=expanded,
        rng=np.random.default_rng(0),
        batch=1000,
    )
    interval = paired_interval(values, clusters, num_resamples=40_000, seed=1)
    assert interval.estimate == pytest.approx(values.mean())
    tolerance = 0.06 * reference.standard_error
    assert interval[1:] == pytest.approx(tuple(reference.confidence_interval), abs=tolerance)


def test_rows_together_equal_rows_alone_and_do_not_depend_on_names() -> None:
    values, clusters = clustered(np.random.default_rng(7), 60, 20)
    rows = np.stack([values, values**2, -values])
    names = [f"image{cluster:02d}" for cluster in clusters]
    together = paired_intervals(rows, clusters)
    # to rounding: BLAS sums one row in another order than three
    np.testing.assert_allclose(together, [paired_interval(row, names) for row in rows], rtol=1e-12)
    assert together[2] != together[0]


def test_memory_is_bounded_without_changing_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=500)
    whole = paired_interval(values)
    monkeypatch.setattr("lit_depth.functional.statistics._MAX_WEIGHTS_PER_BLOCK", 10_000)
    blocks = paired_interval(values)
    assert blocks.estimate == whole.estimate
    assert blocks[1:] == pytest.approx(whole[1:], abs=0.01)


def test_clusters_of_copies_are_as_wide_as_the_clusters_alone() -> None:
    """Repeating every sample five times adds no information; ignoring the clusters would shrink the interval."""
    values = np.random.default_rng(2).normal(size=50)
    copied, clusters = np.repeat(values, 5), np.repeat(np.arange(50), 5)
    assert paired_interval(copied, clusters) == pytest.approx(paired_interval(values))
    naive = paired_interval(copied)
    assert naive.high - naive.low < 0.5 * (paired_interval(values).high - paired_interval(values).low)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_equal_values_give_the_estimate(value: float) -> None:
    assert paired_interval([value] * 30) == pytest.approx(Interval(value, value, value))
    assert paired_interval([value] * 30, np.arange(30) // 4) == pytest.approx(Interval(value, value, value))


def test_single_difference_is_not_significant() -> None:
    interval = paired_interval([0.0] * 255 + [1.0])
    assert 0 <= interval.low <= interval.estimate < interval.high < 0.05


@given(st.lists(st.sampled_from([-1.0, -0.3, 0.0, 0.3, 1.0]), min_size=2, max_size=40))
@settings(max_examples=30, deadline=None)
def test_interval_stays_in_the_range_of_the_values(values: list[float]) -> None:
    interval = paired_interval(values, num_resamples=200)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([1.0, float("nan")], None, "finite"),
        ([1.0, 2.0], ["a", "a"], "at least 2 clusters"),
        ([1.0], None, "at least 2 clusters"),
        ([1.0, 2.0], ["a"], "one cluster per sample"),
        ([[1.0, 2.0]], None, r"\[num_samples\]"),
        ([], None, "num_samples > 0"),
    ],
)
def test_interval_refuses(values: list, clusters: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_interval(values, clusters)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["samples", "skewed", "images"])
def test_coverage(kind: str) -> None:
    """The nominal 95 % interval covers the true mean in at least 94 % of 2,000 runs of 200 samples."""
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(2000):
        truth, clusters = 0.0, None
        if kind == "samples":
            values = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=200)
        elif kind == "skewed":
            values, truth = generator.exponential(1.0, size=200), 1.0
        else:
            values, clusters = clustered(generator, 200, 80)
        interval = paired_interval(values, clusters)
        covered += interval.low <= truth <= interval.high
    assert 0.94 <= covered / 2000 <= 0.97


# --- tests


@pytest.mark.parametrize("clusters", [None, [0, 0, 1, 2, 2, 3, 4, 5, 6, 6]])
def test_sign_flip_equals_all_patterns(clusters: list[int] | None) -> None:
    values = np.array([0.3, 0.0, -1.0, 0.6, 0.3, 1.0, 0.9, -0.3, 0.0, 1.0])
    sums = values if clusters is None else np.bincount(clusters, weights=values)
    patterns = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    expected = np.mean(np.abs(patterns @ sums) >= abs(sums.sum()) - 1e-9)
    assert sign_flip_test(values, clusters) == pytest.approx(expected)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(deadline=None)
def test_sign_flip_on_binary_scores_is_mcnemar(pairs: list[tuple[bool, bool]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    assert sign_flip_test(a - b) == pytest.approx(mcnemar_exact(a, b))


@given(scores, st.randoms())
@settings(deadline=None)
def test_sign_flip_is_symmetric(values: list[float], random) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert sign_flip_test(shuffled) == pytest.approx(sign_flip_test(values))
    assert sign_flip_test([-3 * value for value in values]) == pytest.approx(sign_flip_test(values))
    assert 0 < sign_flip_test(values) <= 1


def test_sampled_sign_flip_agrees_with_the_exact_one_and_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(0.4, 1, 13)
    exact = sign_flip_test(values)
    monkeypatch.setattr("lit_depth.functional.statistics._MAX_EXACT_SUMS", 1)
    assert sign_flip_test(values, num_permutations=20_000) == pytest.approx(exact, abs=0.01)
    assert sign_flip_test(np.linspace(1, 2, 100), num_permutations=99) == pytest.approx(1 / 100)


def test_no_difference_is_p_one() -> None:
    assert sign_flip_test(np.zeros(20)) == 1.0
    assert mcnemar_exact([1, 0, 1], [1, 0, 1]) == 1.0


@pytest.mark.slow
def test_sign_flip_p_is_uniform_under_the_null() -> None:
    generator = np.random.default_rng(13)
    p = [sign_flip_test(*clustered(generator, 60, 25), num_permutations=999, seed=run) for run in range(2000)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.015)


def test_mcnemar_refuses_graded_scores() -> None:
    with pytest.raises(ValueError, match="binary"):
        mcnemar_exact([0.3, 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="one length"):
        mcnemar_exact([1.0], [0.0, 1.0])


@given(p_values)
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float]) -> None:
    """Independent reference: walk through the sorted p-values and stop at the first that fails."""
    adjusted = holm(values)
    assert np.all(adjusted >= np.array(values)) and np.all(adjusted <= 1)
    for alpha in (0.01, 0.05, 0.2):
        order = sorted(range(len(values)), key=lambda i: values[i])
        rejected: set[int] = set()
        for step, i in enumerate(order):
            if (len(values) - step) * values[i] > alpha:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


@given(p_values, st.randoms())
def test_holm_keeps_order_of_arguments(values: list[float], random) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    assert holm([values[i] for i in order]) == pytest.approx(holm(values)[order])


@pytest.mark.parametrize("values", [[1.2], [-0.1], [float("nan")]])
def test_holm_refuses(values: list[float]) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm(values)


# --- rank correlation


@pytest.mark.parametrize("n", [4, 6, 16, 40])
def test_spearman_estimate_and_p_equal_scipy(n: int) -> None:
    generator = np.random.default_rng(n)
    x = generator.integers(0, n, n)  # with ties
    y = x + generator.integers(0, n, n)
    interval, p_value = spearman(x, y)
    expected = stats.spearmanr(x, y)
    assert interval.estimate == pytest.approx(expected.statistic)
    assert interval.low <= interval.estimate <= interval.high
    if n > 8:
        assert p_value == pytest.approx(expected.pvalue)
    else:
        exact = stats.permutation_test(
            (x,), lambda x: stats.spearmanr(x, y).statistic, permutation_type="pairings", n_resamples=np.inf
        )
        assert p_value == pytest.approx(exact.pvalue)


@given(st.lists(st.integers(-5, 5), min_size=4, max_size=7).filter(lambda x: len(set(x)) > 1))
@settings(max_examples=30, deadline=None)
def test_spearman_knows_only_ranks(x: list[int]) -> None:
    y = list(range(len(x)))
    interval, p_value = spearman(x, y)
    grown, p_grown = spearman(np.exp(x), y)
    falling, p_falling = spearman([-value for value in x], y)
    assert grown == pytest.approx(interval) and p_grown == pytest.approx(p_value)
    assert falling == pytest.approx((-interval.estimate, -interval.high, -interval.low))
    assert p_falling == pytest.approx(p_value)


def test_spearman_at_the_ends() -> None:
    interval, p_value = spearman(range(8), range(8))
    assert interval == (1.0, 1.0, 1.0)
    assert p_value == pytest.approx(2 / 40320)
    assert spearman([1, 2, 3], [1, 2, 3])[0] == (1.0, -1.0, 1.0)


@pytest.mark.parametrize(("x", "y"), [([1, 1, 1], [1, 2, 3]), ([1, 2], [1, 2, 3]), ([1], [1])])
def test_spearman_refuses(x: list[int], y: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        spearman(x, y)


@pytest.mark.slow
def test_spearman_coverage() -> None:
    """95 % interval of 16 blocks covers the population rank correlation of a bivariate normal."""
    generator = np.random.default_rng(17)
    rho = 0.6
    truth = 6 / np.pi * np.arcsin(rho / 2)
    pairs = generator.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=(2000, 16))
    covered = [i.low <= truth <= i.high for i in (spearman(pair[:, 0], pair[:, 1])[0] for pair in pairs)]
    assert np.mean(covered) >= 0.94


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


def test_macro_interval_of_one_task_is_the_paired_interval() -> None:
    values = np.random.default_rng(0).normal(size=(2, 30))
    clusters = [str(i // 2) for i in range(30)]
    for macro, paired in zip(macro_intervals([(values, clusters)]), paired_intervals(values, clusters)):
        np.testing.assert_allclose(macro, paired, atol=0.02)


@pytest.mark.slow
def test_macro_interval_covers_the_mean_over_tasks_of_unequal_size() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(2000):
        tasks = [(generator.normal(mean, 1, size=(1, size)), None) for mean, size in ((0.0, 40), (2.0, 120))]
        (interval,) = macro_intervals(tasks, seed=int(generator.integers(1 << 30)))
        covered += interval.low <= 1.0 <= interval.high
    assert 0.94 <= covered / 2000 <= 0.97


def test_sign_flip_of_many_different_sizes_agrees_with_all_patterns() -> None:
    """40 clusters of sizes 1 to 40, one sign each: the exact distribution of the total, by convolution."""
    sizes = np.arange(1, 41)
    signs = np.where(np.random.default_rng(2).random(40) < 0.62, 1, -1)
    distribution = np.ones(1)
    for size in sizes:  # every step adds -size or +size with probability 1/2
        distribution = (np.pad(distribution, (0, 2 * size)) + np.pad(distribution, (2 * size, 0))) / 2
    totals = np.arange(len(distribution)) - sizes.sum()
    exact = distribution[np.abs(totals) >= abs((sizes * signs).sum())].sum()
    assert 0.001 < exact < 0.5
    assert sign_flip_test(sizes * signs / 7, num_permutations=200_000) == pytest.approx(exact, rel=0.05)


def test_pairs_are_tested_together() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(4, 60)) + np.array([[1.5], [0.0], [0.0], [-1.5]])
    p_values = pairwise_sign_flip_tests(values)
    assert set(p_values) == set(itertools.combinations(range(4), 2))
    separate = {pair: sign_flip_test(values[pair[0]] - values[pair[1]]) for pair in p_values}
    # corrected: never below the separate test by more than its sampling error, nor above Holm's correction
    for pair, bound in zip(separate, holm(list(separate.values()))):
        assert separate[pair] * 0.8 - 0.001 <= p_values[pair] <= bound * 1.2 + 0.01
    assert max(p for pair, p in p_values.items() if pair != (1, 2)) < 0.05 < p_values[1, 2]
    # a row against its copy is no evidence; clusters are flipped whole
    copies = pairwise_sign_flip_tests(np.stack([values[0], values[0]]))
    assert copies == {(0, 1): 1.0}
    repeated = pairwise_sign_flip_tests(np.repeat(values, 3, axis=1), [f"{i // 3:02d}" for i in range(180)])
    assert repeated == pytest.approx(p_values, abs=1e-9)


def test_pairs_of_many_rows_keep_their_resolution() -> None:
    """40 rows, 780 pairs: Holm on p-values of 1/10001 could not pass 0.05 here."""
    values = np.random.default_rng(1).normal(size=(40, 50)) + np.arange(40)[:, None]
    assert max(pairwise_sign_flip_tests(values, num_permutations=2000).values()) < 0.05


@pytest.mark.slow
def test_pairs_without_difference_are_rarely_told_apart() -> None:
    """300 runs of 5 equal rows: some pair of ten is significant in at most 5%."""
    generator = np.random.default_rng(6)
    wrong = sum(
        min(pairwise_sign_flip_tests(generator.normal(size=(5, 40)), num_permutations=500).values()) < 0.05
        for _ in range(300)
    )
    assert wrong <= stats.binom.ppf(0.995, 300, 0.05)


@pytest.mark.slow
def test_the_p_value_of_a_rank_correlation_is_never_zero_where_ties_or_order_leave_little_to_see():
    """One block stands out on both sides: one of sixteen orders in sixteen looks as strong."""
    values = np.zeros(16)
    values[3] = 1.0
    assert spearman(values, values)[1] == pytest.approx(1 / 16, abs=0.01)
    assert spearman(np.arange(12), np.arange(12))[1] == pytest.approx(1e-4)
    rng = np.random.default_rng(0)
    rounded = rng.integers(0, 4, size=(2, 30)).astype(float)
    expected = stats.permutation_test(
        (rounded[0],), lambda x: stats.spearmanr(x, rounded[1]).statistic, permutation_type="pairings", n_resamples=9999
    )
    assert spearman(*rounded)[1] == pytest.approx(expected.pvalue, abs=0.02)
