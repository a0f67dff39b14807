"""Laws of the intervals: published formulas, agreement with the test, equivariance, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lit_depth.functional.statistics import (
    Interval,
    holm,
    mean_intervals,
    paired_comparisons,
    paired_intervals,
    separate_comparisons,
    sign_flip_tests,
)
from tests.helpers.simulated import clustered, paired_interval, score_table, sign_flip_test

Z = stats.norm.ppf(0.975)
GRADED = [-1.0, -0.6, -0.3, 0.0, 0.0, 0.0, 0.3, 1.0]


def excludes_zero(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


def from_units(units: list[float], shares: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """The limits of `paired_intervals` before the test is looked at, step by step from unit means and shares."""
    k = 1 / sum(share**2 for share in shares)
    mean = sum(share * x for share, x in zip(shares, units))
    estimated = k**2 * sum((share * (x - mean)) ** 2 for share, x in zip(shares, units))
    moved = [share * x for share, x in zip(shares, units)]
    prevailing = k * sum(x**3 for x in moved) / sum(x**2 for x in moved)
    # half a loss and half a gain, the prevailing difference, and the two further units' distance from the mean
    squares = estimated + 2 * 0.5 * 1.0**2 + prevailing**2 + 2 * k * mean**2 / (k + 2)
    degrees = (k - 1) * (squares / estimated) ** 2
    margin = stats.t.ppf((1 + confidence) / 2, degrees) * math.sqrt(squares) / (k + 2)
    return k * mean / (k + 2) - margin, k * mean / (k + 2) + margin


# --- differences


@pytest.mark.parametrize("n", [2, 16, 256, 5000])
def test_ties_only_follow_the_rule_of_three(n: int) -> None:
    """Where as many are lost as the interval holds, a sample has no loss in 5% of cases: nearly 3 / n."""
    interval = paired_interval(np.zeros(n))
    share = stats.binomtest(0, n, alternative="less").proportion_ci(0.95).high
    assert interval == pytest.approx((0.0, -share, share)) and (1 - interval.high) ** n == pytest.approx(0.05)


def test_as_many_losses_as_gains_are_agresti_and_min() -> None:
    losses = gains = 5
    n = 100
    p12, p21 = (losses + 0.5) / (n + 2), (gains + 0.5) / (n + 2)
    error = math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    interval = paired_interval([1.0] * losses + [-1.0] * gains + [0.0] * (n - losses - gains))
    # one part of eleven of the variance is not estimated: 99 (11 / 10)^2 degrees of freedom
    assert interval.high == pytest.approx(stats.t.ppf(0.975, 99 * 1.21) * error)
    assert interval.high == pytest.approx(Z * error, rel=0.015)
    assert interval.low == -interval.high


def test_losses_only_are_bonett_and_price() -> None:
    losses, n = 20, 400
    p12, p21 = (losses + 1) / (n + 2), 1 / (n + 2)
    error = math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    interval = paired_interval([1.0] * losses + [0.0] * (n - losses))
    assert interval.estimate == losses / n
    exact = stats.binomtest(losses, n, alternative="less").proportion_ci(0.96).high
    assert interval.low == pytest.approx(p12 - p21 - Z * error, abs=0.005 * error)
    assert interval.high == pytest.approx(exact) and exact > p12 - p21 + Z * error


def exact_coverage(n: int, losses: float, gains: float) -> float:
    """Of independent binary differences: over all numbers of losses and gains that are at all likely."""
    most = [int(stats.binom.isf(1e-7, n, share)) for share in (losses, gains)]
    counts = np.array([(a, b) for a in range(most[0] + 1) for b in range(most[1] + 1)])
    places = np.arange(n)
    rows = (places < counts[:, :1]).astype(float) - (places >= n - counts[:, 1:])
    others = n - counts.sum(axis=1)
    chances = stats.multinomial.pmf(np.column_stack([counts, others]), n, [losses, gains, 1 - losses - gains])
    held = [each.low <= losses - gains <= each.high for each in paired_intervals(rows)]
    return float(chances @ held)


@pytest.mark.parametrize("gains", [0, 1 / 9, 1 / 3])
@pytest.mark.parametrize(("n", "percent"), [(64, 3.5), (100, 2), (256, 0.9), (256, 1), (1024, 0.2), (1024, 0.25)])
def test_rare_losses_are_covered(n: int, percent: float, gains: float) -> None:
    """Two or three losses expected, of which a sample often has none; with few gains or none."""
    losses = percent / 100 / (1 + gains)
    assert exact_coverage(n, losses, gains * losses) >= 0.945


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (3, 0), (4, 0), (6, 1), (5, 0), (6, 0)])
def test_rare_losses_exclude_zero_only_where_the_test_does(losses: int, gains: int) -> None:
    differences = np.zeros(256)
    differences[: losses + gains] = [1.0] * losses + [-1.0] * gains
    interval = paired_interval(differences)
    expected = 1.0 if losses == gains else stats.binomtest(gains, losses + gains).pvalue
    assert excludes_zero(interval) == (expected < 0.05)
    assert interval.high - interval.low >= 1.999 * Z / 258


def test_unequal_clusters_follow_the_formula() -> None:
    values = [1.0, 0.0, -1.0, 1.0, 1.0, 0.0, 0.3, 0.0, 0.0, 0.0, -0.3, 0.6]
    clusters = ["a", "b", "c", "c", "c", "b", "d", "e", "f", "f", "f", "f"]
    units = [1.0, 0.0, 1 / 3, 0.3, 0.0, 0.3 / 4]
    low, high = from_units(units, [size / 12 for size in (1, 2, 3, 1, 1, 4)])
    interval = paired_interval(values, clusters)
    assert low < 0 < high and interval == pytest.approx((np.mean(values), low, high))


def test_rows_of_graded_scores_follow_the_formula() -> None:
    rows = np.random.default_rng(0).choice(GRADED, size=(20, 40))
    for row, interval in zip(rows, paired_intervals(rows, confidence=0.9)):
        low, high = from_units(row.tolist(), [1 / 40] * 40, 0.9)
        rejected = sign_flip_test(row) < 0.1
        assert interval.estimate == pytest.approx(row.mean())
        assert interval.low == pytest.approx(low if rejected else min(low, 0.0), abs=1e-12)
        assert interval.high == pytest.approx(high if rejected else max(high, 0.0), abs=1e-12)


def test_rows_together_equal_rows_alone_and_do_not_depend_on_names() -> None:
    values, clusters = clustered(np.random.default_rng(7), 60, 20)
    rows = np.stack([values, values**2, -values])
    names = [f"image{cluster:02d}" for cluster in clusters]
    together = paired_intervals(rows, clusters, score_range=None)
    alone = [paired_interval(row, names, score_range=None) for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert together[2] != together[0]


@pytest.mark.parametrize("score_range", [4.0, None])
def test_clusters_of_copies_are_as_wide_as_the_clusters_alone(score_range: float | None) -> None:
    """Repeating every sample five times adds no information; ignoring the clusters would shrink the interval."""
    values = np.random.default_rng(2).normal(size=50)
    copied, clusters = np.repeat(values, 5), np.repeat(np.arange(50), 5)
    alone = paired_interval(values, score_range=score_range)
    assert paired_interval(copied, clusters, score_range=score_range) == pytest.approx(alone)
    naive = paired_interval(copied, score_range=score_range)
    assert naive.high - naive.low < 0.5 * (alone.high - alone.low)


@given(st.lists(st.sampled_from(GRADED), min_size=2, max_size=40), st.randoms())
@settings(max_examples=60, deadline=None)
def test_intervals_are_equivariant_and_stay_in_the_range(values: list[float], random) -> None:
    interval = paired_interval(values)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1 and interval.low < interval.high
    mirrored = paired_interval([-value for value in values])
    assert mirrored == pytest.approx((-interval.estimate, -interval.high, -interval.low), abs=1e-12)
    scaled = paired_interval([10 * value for value in values], score_range=10)
    assert scaled == pytest.approx(tuple(10 * limit for limit in interval), abs=1e-11)
    random.shuffle(values)
    assert paired_interval(values) == pytest.approx(interval, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1.0])
@pytest.mark.parametrize("clusters", [None, np.arange(30) // 4, np.arange(30) // 15])
@pytest.mark.parametrize("score_range", [1.0, None])
def test_equal_values_have_width(value: float, clusters: np.ndarray | None, score_range: float | None) -> None:
    interval = paired_interval([value] * 30, clusters, score_range=score_range)
    assert interval.estimate == pytest.approx(value)
    assert interval.low <= interval.estimate <= interval.high and interval.high - interval.low > 0.01


# --- of unknown range


def test_values_of_unknown_range_get_student_limits() -> None:
    """Symmetric about their mean, so that no kind of deviation prevails."""
    noise = np.random.default_rng(3).normal(size=30)
    values = 5 + np.concatenate([noise, -noise])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert paired_interval(values, confidence=0.9, score_range=None) == pytest.approx((5, low, high))
    assert mean_intervals([values], confidence=0.9, score_range=None)[0] == pytest.approx((5, low, high))


def test_what_prevails_widens_student_limits() -> None:
    values = np.array([3.0, *[0.0] * 11])
    deviations = values - 0.25
    squares = (deviations**2).sum() / (12 * 11) + ((deviations**3).sum() / (deviations**2).sum() / 12) ** 2
    margin = stats.t.ppf(0.975, 11) * math.sqrt(squares)
    (interval,) = mean_intervals([values], score_range=None)
    assert interval == pytest.approx((0.25, 0.25 - margin, 0.25 + margin))


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_equal_values_of_unknown_range_are_as_wide_as_ties_of_that_scale(scale: float) -> None:
    ties = paired_interval(np.zeros(40), score_range=scale)
    equal = paired_interval(np.full(40, 0.0), score_range=None, scale=scale)
    assert equal == pytest.approx(ties)
    (shifted,) = mean_intervals([[7.3] * 40], score_range=None, scale=scale)
    assert shifted == pytest.approx((7.3, 7.3 + ties.low, 7.3 + ties.high))


# --- tests and families


@pytest.mark.slow
def test_intervals_and_tests_never_disagree() -> None:
    """10,000 random tables: ties, equal rows, graded and continuous scores, unequal clusters, exact and sampled p."""
    generator = np.random.default_rng(0)
    seen: dict[tuple[bool, bool], int] = {}
    for number in range(10_000):
        differences, clusters = score_table(generator)
        confidence = (0.95, 0.9, 0.99)[number % 3]
        # with 499 patterns, p-values of exactly 0.05, 0.1 and 0.01 occur
        options = {"num_permutations": 499, "seed": number}
        p_values = sign_flip_tests(differences, clusters, **options)
        alpha = 1 - confidence
        singles = paired_intervals(differences, clusters, confidence, **options)
        family = paired_comparisons(differences, clusters, confidence, **options)
        for p, interval, row in zip(p_values, singles, family):
            assert excludes_zero(interval) == (p < alpha)
            assert excludes_zero(row.interval) == (row.p_value < alpha)
            assert excludes_zero(row.simultaneous) == (row.p_holm < alpha)
            for each in (interval, row.interval, row.simultaneous):
                assert each.low <= each.estimate <= each.high and each.low < each.high
            assert row.simultaneous.low <= row.interval.low and row.interval.high <= row.simultaneous.high
            decided = excludes_zero(interval), excludes_zero(row.simultaneous)
            seen[decided] = seen.get(decided, 0) + 1
    # the tables are neither all tied nor all decided, and corrections decide something
    assert seen[True, True] > 1000 and seen[True, False] > 100 and seen[False, False] > 1000


def test_a_family_of_one_is_an_interval_alone() -> None:
    row = np.random.default_rng(1).choice(GRADED, size=60)
    (found,) = paired_comparisons(row[None])
    assert found.interval == found.simultaneous == paired_interval(row)
    assert found.p_value == found.p_holm == sign_flip_test(row)


def test_a_family_is_cut_at_zero_by_holm_and_has_bonferroni_limits() -> None:
    rows = np.zeros((3, 64))
    rows[0, :12], rows[1, :10], rows[2, :6] = 1.0, 1.0, -1.0
    for last, p_last in ((6, 2 / 2**6), (2, 0.5)):
        rows[2, last:] = 0.0
        family = paired_comparisons(rows)
        assert [each.p_value for each in family] == pytest.approx([2 / 2**12, 2 / 2**10, p_last])
        assert [each.p_holm for each in family] == pytest.approx([6 / 2**12, 4 / 2**10, p_last])
        bonferroni = [paired_interval(row, confidence=1 - 0.05 / 3) for row in rows]
        np.testing.assert_allclose([each.simultaneous for each in family[:2]], bonferroni[:2])
        # the far limit knows whether Holm's test rejects: four fifths of the tail if it does
        rejects = stats.binomtest(last, 64, alternative="less").proportion_ci(1 - (0.8 if last == 6 else 1) * 0.05 / 3)
        assert family[2].simultaneous.low == pytest.approx(-rejects.high)
        if last == 6:  # rejected at the last step, with 0 inside Bonferroni's limits: the interval ends beside 0
            assert bonferroni[2].high >= 0 > family[2].simultaneous.high > -1e-300
        else:
            assert family[2].simultaneous.high == pytest.approx(bonferroni[2].high) and bonferroni[2].high > 0


def test_rows_with_samples_of_their_own_are_one_family() -> None:
    generator = np.random.default_rng(3)
    rows = [generator.integers(-1, 2, size=n).astype(float) for n in (40, 40, 90)]
    rows[2] -= 0.5
    clusters = [[str(i // 2) for i in range(40)], None, None]
    found = separate_comparisons(rows, clusters, score_ranges=[1.0, 1.0, None])
    alone = [
        paired_comparisons([row], labels, 0.95, score_range=score_range)[0]
        for row, labels, score_range in zip(rows, clusters, [1.0, 1.0, None])
    ]
    # each row by itself is what it is alone; together they have Holm's p-values and Bonferroni's level
    assert [(row.interval, row.p_value) for row in found] == [(row.interval, row.p_value) for row in alone]
    assert [row.p_holm for row in found] == holm([row.p_value for row in alone]).tolist()
    wide = paired_comparisons([rows[2]], None, 1 - 0.05 / 3, score_range=None)[0]
    assert (found[2].simultaneous.low, found[2].simultaneous.high) == (wide.interval.low, wide.interval.high)
    # of the same samples they are the family of one table
    together = paired_comparisons(rows[:2])
    assert separate_comparisons(rows[:2], [None, None], score_ranges=[1.0, 1.0]) == together
    assert separate_comparisons([], [], score_ranges=[]) == []


def test_a_large_family_of_sampled_tests_can_reject() -> None:
    """1,000 rows: 10,000 sign patterns alone would give corrected p-values of 0.1 at least."""
    rows = 0.5 + 0.4 * np.random.default_rng(0).random(size=(1000, 40))
    assert max(each.p_holm for each in paired_comparisons(rows)) < 0.05


def test_an_empty_family_is_empty() -> None:
    assert paired_comparisons(np.zeros((0, 5))) == [] == paired_intervals(np.zeros((0, 5)))


# --- mean scores


@pytest.mark.parametrize("hits", [0, 1, 7, 19, 20])
@pytest.mark.parametrize("score_range", [1.0, 10.0])
def test_independent_binary_scores_are_clopper_and_pearson(hits: int, score_range: float) -> None:
    exact = stats.binomtest(hits, 20).proportion_ci()
    scores = score_range * np.array([1.0] * hits + [0.0] * (20 - hits))
    (interval,) = mean_intervals([scores], score_range=score_range)
    expected = (hits / 20, exact.low, exact.high)
    assert interval == pytest.approx(tuple(score_range * limit for limit in expected), abs=1e-9)


def test_images_that_are_wholly_right_or_wrong_are_one_score_each() -> None:
    images = np.repeat(np.arange(9), 4)
    (interval,) = mean_intervals([np.repeat([1.0] * 7 + [0.0] * 2, 4)], images)
    exact = stats.binomtest(7, 9).proportion_ci()
    assert interval == pytest.approx((7 / 9, exact.low, exact.high))
    (all_right,) = mean_intervals([np.ones(36)], images)
    assert all_right == pytest.approx((1, 0.025 ** (1 / 9), 1))


def test_graded_scores_count_as_many_binary_ones_as_have_their_variance() -> None:
    scores = np.array([0.3, 0.6, 0.9, 1.0, 0.0, 0.6] * 5)
    mean, n = scores.mean(), len(scores)
    with_one_more = np.append(np.append(scores, 0.0), 1.0)
    weights = np.append(np.ones(n), [0.5, 0.5])
    centre = np.average(with_one_more, weights=weights)
    squares = (weights * (with_one_more - centre) ** 2).sum()
    estimated = ((scores - mean) ** 2).sum()
    degrees = (n - 1) * (squares / estimated) ** 2
    effective = (centre * (1 - centre) * (n + 1) ** 2 / squares - 1) * (Z / stats.t.ppf(0.975, degrees)) ** 2
    assert effective > n  # graded scores tell more than binary ones
    hits = effective * mean
    low = stats.beta.ppf(0.025, hits, effective - hits + 1)
    high = stats.beta.ppf(0.975, hits + 1, effective - hits)
    assert mean_intervals([scores])[0] == pytest.approx((mean, low, high))


@given(st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=4, max_size=40), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_mean_scores_mirror_and_stay_in_the_range(values: list[float], per_image: int) -> None:
    images = np.arange(len(values)) // per_image if len(values) > per_image else None
    (interval,) = mean_intervals([values], images)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1 and interval.low < interval.high
    (mirrored,) = mean_intervals([[1 - value for value in values]], images)
    assert mirrored == pytest.approx((1 - interval.estimate, 1 - interval.high, 1 - interval.low), abs=1e-9)


# --- means over tasks


@pytest.mark.parametrize("score_range", [5.0, None])
def test_the_mean_over_one_task_is_the_paired_interval(score_range: float | None) -> None:
    values = np.random.default_rng(0).normal(size=(2, 30))
    clusters = [str(i // 2) for i in range(30)]
    macro = paired_intervals(values, clusters, score_range=score_range, tasks=["one"] * 30)
    np.testing.assert_allclose(macro, paired_intervals(values, clusters, score_range=score_range), rtol=1e-12)


def test_tasks_weigh_the_same_and_their_differences_are_no_noise() -> None:
    """Each of two tasks hardly varies, though they differ: the interval of their mean is that of the noise within."""
    rng = np.random.default_rng(4)
    first, second = 1.0 + 0.01 * rng.normal(size=(1, 200)), 3.0 + 0.01 * rng.normal(size=(1, 50))
    values, tasks = np.concatenate([first, second], axis=1), [0] * 200 + [1] * 50
    (interval,) = paired_intervals(values, score_range=None, tasks=tasks)
    assert interval.estimate == pytest.approx((first.mean() + second.mean()) / 2)
    error = math.sqrt(first.var(ddof=1) / 200 + second.var(ddof=1) / 50) / 2
    assert interval.high - interval.low == pytest.approx(2 * Z * error, rel=0.05)
    (of_scores,) = mean_intervals(values / 4, tasks=tasks)
    assert of_scores.estimate == pytest.approx(interval.estimate / 4)
    alone = [mean_intervals(scores / 4)[0] for scores in (first, second)]
    below, above = (math.hypot(*(each[side] - each.estimate for each in alone)) / 2 for side in (1, 2))
    assert of_scores[1:] == pytest.approx((of_scores.estimate - below, of_scores.estimate + above))


def test_images_of_one_name_in_two_tasks_are_two_clusters() -> None:
    values = np.random.default_rng(5).choice(GRADED, size=(1, 40))
    images, tasks = [str(i // 2) for i in range(20)] * 2, [0] * 20 + [1] * 20
    apart = [f"{task}-{image}" for task, image in zip(tasks, images)]
    (found,), (expected,) = paired_intervals(values, images, tasks=tasks), paired_intervals(values, apart, tasks=tasks)
    assert found == pytest.approx(expected)


def test_every_task_has_its_own_range() -> None:
    """The rare loss that was not seen is as large as the scores of its task allow."""
    ranges = np.repeat([1.0, 10.0], 50)
    (interval,) = paired_intervals(np.zeros((1, 100)), tasks=[0] * 50 + [1] * 50, score_range=ranges)
    one, ten = paired_interval(np.zeros(50)).high, paired_interval(np.zeros(50), score_range=10.0).high
    assert ten == pytest.approx(10 * one) and interval.high == pytest.approx(math.hypot(one, ten) / 2)


def test_a_small_task_leaves_its_mean_as_open_as_it_is_alone() -> None:
    """No hit of 10 is anything up to 31%, however many samples the other task has (Zou & Donner 2008)."""
    hits = np.array([0.0] * 10 + [1.0] * 100 + [0.0] * 900)
    (interval,) = mean_intervals([hits], tasks=[0] * 10 + [1] * 1000)
    few, many = stats.binomtest(0, 10).proportion_ci(), stats.binomtest(100, 1000).proportion_ci()
    assert interval.low == pytest.approx(0.05 - math.hypot(0.0 - few.low, 0.1 - many.low) / 2)
    assert interval.high == pytest.approx(0.05 + math.hypot(0.0 - few.high, 0.1 - many.high) / 2) and few.high > 0.3


def test_tasks_of_unknown_range_have_the_degrees_of_freedom_of_each() -> None:
    small, large = np.array([1.0, -1.0] * 3), np.array([2.0, 0.0] * 500)
    (interval,) = mean_intervals([np.concatenate([small, large])], score_range=None, tasks=[0] * 6 + [1] * 1000)
    margins = [stats.t.ppf(0.975, n - 1) / math.sqrt(n - 1) for n in (6, 1000)]
    assert interval == pytest.approx((0.5, 0.5 - math.hypot(*margins) / 2, 0.5 + math.hypot(*margins) / 2))


# --- refusals


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([1.0, float("nan")], None, "finite"),
        ([1.0, 0.0], ["a", "a"], "at least 2 clusters"),
        ([1.0], None, "at least 2 clusters"),
        ([1.0, 0.0], ["a"], "one cluster per sample"),
        ([[1.0, 0.0]], None, r"\[num_rows, num_samples > 0\]"),
        ([], None, "num_samples > 0"),
        ([0.0, 2.0], None, "score_range of 1, got one of size 2"),
    ],
)
def test_interval_refuses(values: list, clusters: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_interval(values, clusters)


def test_options_are_checked() -> None:
    for call in (paired_intervals, paired_comparisons, mean_intervals):
        with pytest.raises(ValueError, match="confidence between"):
            call([[0.0, 1.0]], confidence=1.0)
        with pytest.raises(ValueError, match="one task per sample"):
            call([[0.0, 1.0]], tasks=[0])
        with pytest.raises(ValueError, match="at least 2 clusters"):
            call([[0.0, 1.0, 1.0]], tasks=[0, 0, 1])
        with pytest.raises(ValueError, match="score_range above 0"):
            call([[0.0, 0.0]], score_range=0.0)
    with pytest.raises(ValueError, match="at least 0, got -0.5"):
        mean_intervals([[-0.5, 1.0]])


# --- coverage; `benchmarks/coverage.py` has the whole table


def covers(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([each.low <= truth <= each.high for each in intervals]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "losses", "gains", "per_image"),
    [
        (256, 0.012, 0.004, 1),
        (512, 0.006, 0.002, 1),
        (128, 0.03, 0.01, 1),
        (256, 0.25, 0.05, 1),
        (512, 0.012, 0.004, 4),
    ],
)
def test_coverage_of_differences(n: int, losses: float, gains: float, per_image: int) -> None:
    """The nominal 95% interval covers the true mean in at least 94.5% of 2,000 runs, as far as these can tell."""
    generator = np.random.default_rng(11)
    shape = 2000, n // per_image
    rows = generator.choice([1.0, -1.0, 0.0], size=shape, p=[losses, gains, 1 - losses - gains])
    intervals = paired_intervals(np.repeat(rows, per_image, axis=1), np.arange(n) // per_image)
    share = covers(intervals, losses - gains)
    assert stats.beta.ppf(0.99, 2000 * share + 1, max(2000 * (1 - share), 1e-9)) >= 0.945


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(10, 1000), (20, 1000), (10, 100, 400)])
@pytest.mark.parametrize(("losses", "gains"), [(0.1, None), (0.3, None), (0.3, 0.1)])
def test_coverage_over_tasks_of_different_size(sizes: tuple[int, ...], losses: float, gains: float | None) -> None:
    """Of mean scores, and of differences; as far as 1,000 runs can tell."""
    generator = np.random.default_rng(11)
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    draws = generator.random((1000, len(tasks)))
    hits = (draws < losses).astype(float)
    if gains is None:
        share = covers(mean_intervals(hits, tasks=tasks), losses)
    else:
        share = covers(paired_intervals(hits - (draws > 1 - gains), tasks=tasks), losses - gains)
    assert stats.beta.ppf(0.99, 1000 * share + 1, max(1000 * (1 - share), 1e-9)) >= 0.945


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["skewed", "images", "tasks"])
def test_coverage_of_unknown_range(kind: str) -> None:
    generator = np.random.default_rng(11)
    intervals = []
    for _ in range(2000):
        if kind == "skewed":
            intervals += mean_intervals(generator.exponential(1.0, size=(1, 200)) - 1, score_range=None)
        elif kind == "images":
            values, clusters = clustered(generator, 200, 80)
            intervals += mean_intervals(values[None], clusters, score_range=None)
        else:
            values = np.concatenate([generator.normal(-1, 1, size=40), generator.normal(1, 1, size=120)])
            intervals += mean_intervals([values], score_range=None, tasks=[0] * 40 + [1] * 120)
    assert 0.94 <= covers(intervals, 0.0) <= 0.97


@pytest.mark.slow
def test_simultaneous_intervals_hold_together() -> None:
    """Eight rows, half of them without a difference: all intervals cover in at least 95% of 400 runs."""
    generator = np.random.default_rng(12)
    losses = np.array([0.02, 0.02, 0.1, 0.3, 0.05, 0.1, 0.2, 0.4])
    gains = np.array([0.02, 0.02, 0.1, 0.3, 0.01, 0.02, 0.1, 0.1])
    held = 0
    for _ in range(400):
        draws = generator.random((8, 150))
        rows = (draws < losses[:, None]).astype(float) - (draws > 1 - gains[:, None])
        intervals = [each.simultaneous for each in paired_comparisons(rows)]
        held += all(low <= truth <= high for (_, low, high), truth in zip(intervals, losses - gains))
    assert held >= stats.binom.ppf(0.01, 400, 0.95)
