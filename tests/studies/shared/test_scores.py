"""Per-sample scores, read from records and pooled over tasks, against direct computations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lit_depth.functional.statistics import mean_intervals, paired_comparisons
from lit_depth.studies.shared.constant_answer import ConstantAnswer
from lit_depth.studies.shared.scores import Scores, family_entry

MASKS = ["001", "011", "111"]


def simulate(num_samples: int = 9, per_image: int = 4, seed: int = 0, top: float = 1.0) -> Scores:
    generator = np.random.default_rng(seed)
    quality = top * generator.integers(0, 2, (len(MASKS), num_samples))
    logprob = -generator.random(quality.shape)
    images = [f"image{index // per_image}" for index in range(num_samples)]
    return Scores(MASKS, quality.astype(float), logprob, images, max_scores=(top,))


def test_records_in_any_order_give_the_same_scores() -> None:
    scores = simulate()
    records = pd.DataFrame(
        {"mask": mask, "sample": f"s{n}", "image": image, "score": quality, "reference_logprob": logprob}
        for mask, row, logprobs in zip(scores.mask_ids, scores.quality, scores.reference_logprob)
        for n, (image, quality, logprob) in enumerate(zip(scores.images, row, logprobs))
    )
    for frame in (records, records.sample(frac=1.0, random_state=0)):
        read = Scores.from_records(frame, max_score=1.0)
        assert (read.mask_ids, read.images, read.samples) == (MASKS, scores.images, tuple(f"s{n}" for n in range(9)))
        np.testing.assert_array_equal(read.rows(MASKS), scores.quality)
        asked = ["111", "001", "111"]  # a mask that is drawn twice counts twice
        np.testing.assert_array_equal(read.rows(asked), scores.rows(asked))
        rows = [scores.reference_logprob[MASKS.index(mask)] for mask in asked]
        assert read.mean_logprob(asked) == pytest.approx(np.mean(rows))
        assert read.distinct_answers("111") is None  # the records hold no answers


def test_answers_are_counted_for_each_mask() -> None:
    texts = {"10": ["a", "a", None], "11": ["a", "b", None]}
    rows = [(mask, index, text) for mask, each in texts.items() for index, text in enumerate(each)]
    records = pd.DataFrame(rows, columns=["mask", "sample", "prediction"])
    read = Scores.from_records(records.assign(image="i", score=0.0, reference_logprob=0.0))
    assert [read.distinct_answers(mask) for mask in ("10", "11")] == [2, 3]


def test_the_mean_over_pooled_samples_is_the_mean_over_tasks() -> None:
    tasks = [simulate(9, seed=1), simulate(30, per_image=1, seed=2, top=10.0)]
    tasks = [each._replace(constant=ConstantAnswer((), each.quality[0])) for each in tasks]
    pooled = Scores.pooled(tasks)
    for name in ("quality", "reference_logprob"):
        expected = np.mean([getattr(each, name).mean(axis=1) for each in tasks], axis=0)
        np.testing.assert_allclose(getattr(pooled, name).mean(axis=1), expected)
    assert pooled.sizes == (9, 30) and pooled.max_scores == (1.0, 10.0)
    assert len(set(pooled.images)) == 3 + 30  # images of equal names are of different tasks
    assert pooled.constant is not None
    assert pooled.constant.scores.mean() == pytest.approx(pooled.quality[0].mean())
    estimates = [interval.estimate for interval in pooled.mean_intervals(pooled.quality, 0.95)]
    np.testing.assert_allclose(estimates, pooled.quality.mean(axis=1))
    assert Scores.pooled([tasks[0], tasks[1]._replace(constant=None)]).constant is None
    with pytest.raises(ValueError, match="the same masks on every task"):
        Scores.pooled([tasks[0], tasks[1]._replace(mask_ids=MASKS[::-1])])


@pytest.mark.parametrize("terms", [1, [2, 3]])
def test_statistics_know_images_and_the_range_of_the_scores(terms: int | list[int]) -> None:
    scores = simulate(30, per_image=2, top=10.0)
    values = scores.quality[2] - scores.quality[:2]
    wide = 10.0 * np.reshape(terms, (-1, 1)) * np.ones(30)
    known = {"clusters": scores.images, "confidence": 0.9, "score_range": wide}
    assert scores.compare(values, 0.9, terms=terms) == paired_comparisons(values, **known)
    unbounded = paired_comparisons(values, scores.images, 0.9, score_range=None)
    assert scores.compare(values, 0.9, "reference_logprob") == unbounded
    alone = mean_intervals(scores.quality, scores.images, 0.9, score_range=10.0 * np.ones((1, 30)))
    assert scores.mean_intervals(scores.quality, 0.9) == alone


def test_entries_of_a_family_hold_both_intervals() -> None:
    scores = simulate(30, per_image=2)
    (found, _) = scores.compare(scores.quality[2] - scores.quality[:2], 0.95)
    entry = family_entry(found, "drop")
    assert entry["drop"] == found.interval.estimate
    assert entry["drop_ci"] == list(found.interval[1:3]) and entry["drop_simultaneous_ci"] == list(
        found.simultaneous[1:3]
    )
    assert family_entry(None, "drop") == {"drop": 0.0, "drop_ci": [0.0, 0.0], "drop_simultaneous_ci": None}


def test_weighted_records_have_the_weighted_mean_and_no_range():
    """Texts of different length: the mean counts every token alike, and log-probabilities have no bound."""
    rows = [
        {"mask": mask, "sample": sample, "image": sample, "score": score, "reference_logprob": score, "weight": weight}
        for mask, scores in {"11": (-2.0, -5.0, -1.0), "10": (-4.0, -5.0, -9.0)}.items()
        for sample, score, weight in zip("abc", scores, (10, 30, 20))
    ]
    scores = Scores.from_records(pd.DataFrame(rows), np.inf)
    means = scores.rows(["11", "10"]).mean(axis=1)
    np.testing.assert_allclose(means, [-(20 + 150 + 20) / 60, -(40 + 150 + 180) / 60])
    assert not scores.is_bounded and scores.mean_logprob(["11"]) == pytest.approx(means[0])
    (found,) = scores.compare(scores.rows(["11"]) - scores.rows(["10"]), 0.95)
    assert found.interval.estimate == pytest.approx(means[0] - means[1])
    bounded = Scores.from_records(pd.DataFrame([{**row, "score": 0.5} for row in rows]))
    with pytest.raises(ValueError, match="there is no mean of log-probabilities and other scores"):
        Scores.pooled([scores, bounded])
