"""The best constant answer: found by trying everything, and held against the full model sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_depth.data import DepthDataModule, Sample
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.functional.statistics import paired_comparisons
from lit_depth.metrics import (
    ANLS,
    CIDErD,
    ExactMatch,
    MMMUAccuracy,
    MultipleChoiceAccuracy,
    VQAAccuracy,
    cider_d,
    vqa_accuracy,
)
from lit_depth.results.verdicts import mark, refusal
from lit_depth.studies.shared.constant_answer import (
    ConstantAnswer,
    FoundAnswer,
    best_constant,
    constant_scores,
    describe_baseline,
    find_constant,
    score_constant,
)
from lit_depth.studies.shared.scores import Scores


def samples(references: Sequence[Sequence[str]], options: Sequence[Sequence[str]] | None = None) -> list[Sample]:
    options = options or [()] * len(references)
    return [
        Sample(f"s{n}", f"i{n}", None, "?", tuple(answers), tuple(texts))
        for n, (answers, texts) in enumerate(zip(references, options))
    ]


def test_the_best_constant_is_not_always_the_most_frequent() -> None:
    """Ten people: "2" is said most often, but always by the same few of each ten; "no" by all of some tens."""
    tens = [["2"] * 2 + list("abcdefgh")] * 6 + [["no"] * 10]
    expected = {text: np.mean([vqa_accuracy(text, each) for each in tens]) for text in {t for ten in tens for t in ten}}
    found, num_candidates = best_constant(samples(tens), VQAAccuracy)
    assert expected[found] == max(expected.values()) and num_candidates == len(expected)
    assert best_constant(samples([["2"], ["2"], ["no"]]), ExactMatch) == ("2", 2)


def test_of_equally_good_answers_the_first_in_the_alphabet_wins() -> None:
    for order in (["yes", "no", "2"], ["2", "yes", "no"]):
        assert best_constant(samples([[text] for text in order]), ExactMatch) == ("2", 3)


def test_candidates_are_bounded_by_frequency() -> None:
    answers = [["often"]] * 3 + [[f"once {n:02d}"] for n in range(80)]
    assert best_constant(samples(answers), ExactMatch) == ("often", 50)
    assert best_constant(samples(answers), ExactMatch, most=2) == ("often", 2)


@pytest.mark.parametrize("metric", [MultipleChoiceAccuracy, MMMUAccuracy])
def test_letters_are_candidates_where_there_are_options(metric: Any) -> None:
    found, num_candidates = best_constant(samples([["B"], ["B"], ["A"]], [("x", "y", "z")] * 3), metric)
    assert (found, num_candidates) == ("B", 3)  # A, B and C


def test_answers_are_read_as_a_model_s_would_be() -> None:
    """A reference that the cleaning of predictions would change can only be given in its clean form."""
    found, _ = best_constant(samples([["two  dogs"], ["two  dogs"]]), ExactMatch)
    assert found == "two dogs"


def test_an_empty_answer_can_be_the_best() -> None:
    found, _ = best_constant(samples([["", "x"], ["", "y"]]), ANLS)
    assert found == "" and score_constant(found, samples([["", "x"]]), ANLS).tolist() == [ANLS.score("", ["", "x"])]


def test_a_corpus_metric_scores_the_constant_within_the_corpus() -> None:
    captions = [["a cat sleeps", "the cat"], ["a dog runs"], ["a dog runs", "a bird"], ["one red bus stands here"]]
    found, _ = best_constant(samples(captions), CIDErD)
    means = {text: cider_d([text] * 4, captions)[0] for image in captions for text in image}
    assert means[found] == max(means.values())
    assert score_constant(found, samples(captions), CIDErD).tolist() == cider_d([found] * 4, captions)[1]


# the data


class OneAnswer(ShapesVQA):
    """Every question has the same answer; there may be no calibration split."""

    name = "one_answer"

    def __init__(self, has_calibration: bool = True, answer: str = "yes") -> None:
        super().__init__(num_images=20)
        self.has_calibration, self.answer = has_calibration, answer

    def load(self, split: str, path: str | None = None) -> Any:
        if split == "calibration" and not self.has_calibration:
            raise ValueError("one_answer has no calibration split")
        return super().load(split, path)

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        sample = super().sample(row, split, index)
        return Sample(sample.id, sample.image_id, row["image"], sample.question, (self.answer,))


def test_the_answer_is_found_on_the_calibration_split_alone() -> None:
    datamodule = DepthDataModule(task="shapes_vqa", num_samples=40, calibration_samples=60)
    found = find_constant(datamodule, "validation")
    rows = datamodule.eval_dataset("calibration").without_images()
    means = {text: np.mean([text in row.references for row in rows]) for row in rows for text in row.references}
    assert means[found.text] == max(means.values())
    assert (found.split, found.num_samples, found.reason) == ("calibration", 60, None)
    # the reported questions do not take part
    other = DepthDataModule(task="shapes_vqa", num_samples=3, calibration_samples=60)
    assert find_constant(other, "validation") == found


def test_no_image_is_decoded(monkeypatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("an image was decoded")

    datamodule = DepthDataModule(num_samples=8, calibration_samples=8)
    names = [name for name, _ in datamodule.eval_dataset("validation").ids()]
    monkeypatch.setattr("lit_depth.data.eval_dataset.load_image", refuse)
    assert constant_scores(datamodule, "validation", names).scores.shape == (8,)


def test_scores_stand_in_the_order_of_the_evaluated_samples() -> None:
    datamodule = DepthDataModule(num_samples=12, calibration_samples=60)
    rows = {row.id: row for row in datamodule.eval_dataset("validation").without_images()}
    names = sorted(rows, reverse=True)[:9]  # three could not be evaluated
    constant = constant_scores(datamodule, "validation", names)
    (found,) = constant.found
    assert constant.scores.tolist() == [float(found.text in rows[name].references) for name in names]


@pytest.mark.parametrize("split", ["validation", "calibration"])
def test_what_favours_the_constant_is_said(split: str) -> None:
    missing = DepthDataModule(task=OneAnswer(has_calibration=False), num_samples=8)
    names = [name for name, _ in missing.eval_dataset("validation").ids()]
    (found,) = constant_scores(missing, "validation", names).found
    assert found.split == "validation" and "no calibration split" in str(found.reason)
    there = DepthDataModule(task=OneAnswer(), num_samples=8, calibration_samples=8)
    names = [name for name, _ in there.eval_dataset(split).ids()]
    (found,) = constant_scores(there, split, names).found
    assert (found.split, found.reason is None) == ("calibration", split == "validation")


# against the full model


def scored(full: Sequence[float], constant: Sequence[float], per_image: int = 1, answers: int = 5) -> Scores:
    rows = np.array([np.zeros(len(full)), full], dtype=float)
    images = [str(index // per_image) for index in range(len(full))]
    found = FoundAnswer("yes", "calibration", 100, 50)
    return Scores(
        ["10", "11"],
        rows,
        -np.ones_like(rows),
        images,
        num_distinct_answers=(1, answers),
        constant=ConstantAnswer((found,), np.asarray(constant, dtype=float)),
    )


@pytest.mark.parametrize("seed", range(8))
def test_beaten_means_that_the_interval_lies_above_zero(seed: int) -> None:
    generator = np.random.default_rng(seed)
    full, constant = (generator.random((2, 60)) < [[0.3 + 0.08 * seed], [0.4]]).astype(float)
    baseline = describe_baseline(scored(full, constant, per_image=2), 0.95)
    assert baseline is not None
    (row,) = paired_comparisons((full - constant)[None], [str(index // 2) for index in range(60)])
    assert baseline["difference"] == pytest.approx((full - constant).mean())
    assert baseline["quality"] == pytest.approx(constant.mean())
    assert baseline["difference_ci"] == [row.interval.low, row.interval.high] and baseline["p_value"] == row.p_value
    assert baseline["beaten"] == (row.p_value < 0.05 and (full - constant).mean() > 0)
    reason = refusal({"full": {"quality": full.mean()}, "baseline": baseline}, "task")
    assert (reason is None) == baseline["beaten"]


def test_a_model_that_is_itself_the_constant_is_refused() -> None:
    """All references equal: the full model is right throughout, and so is the constant."""
    baseline = describe_baseline(scored([1.0] * 30, [1.0] * 30, answers=1), 0.95)
    assert baseline is not None and not baseline["beaten"] and baseline["difference"] == 0


def test_two_samples_beat_nothing() -> None:
    baseline = describe_baseline(scored([1.0, 1.0], [0.0, 0.0]), 0.95)
    assert baseline is not None and baseline["difference"] == 1 and not baseline["beaten"]


def test_several_tasks_are_pooled_with_equal_weight() -> None:
    generator = np.random.default_rng(0)
    tasks = [scored(generator.random(size) < 0.9, generator.random(size) < 0.2) for size in (20, 200)]
    baseline = describe_baseline(Scores.pooled(tasks), 0.95)
    assert baseline is not None and baseline["answer"] is None and baseline["num_candidates"] == 100
    each = [describe_baseline(task, 0.95) for task in tasks]
    for key in ("quality", "difference"):
        assert baseline[key] == pytest.approx(np.mean([one[key] for one in each if one]))
    assert baseline["beaten"]
    # a task without a constant answer leaves the mean without one
    assert describe_baseline(Scores.pooled([tasks[0], tasks[1]._replace(constant=None)]), 0.95) is None


def test_distinct_answers_are_counted_by_mask() -> None:
    import pandas as pd

    rows = [
        ("01", "a", "yes"),
        ("01", "b", "yes"),
        ("11", "a", "no"),
        ("11", "b", ""),
        ("00", "a", ""),
        ("00", "b", ""),
    ]
    frame = pd.DataFrame(
        [
            {
                "mask": mask,
                "sample": sample,
                "image": sample,
                "prediction": text,
                "score": 0.0,
                "reference_logprob": 0.0,
            }
            for mask, sample, text in rows
        ]
    )
    scores = Scores.from_records(frame)
    assert {mask: scores.distinct_answers(mask) for mask in ("00", "01", "11")} == {"00": 1, "01": 1, "11": 2}
    assert scores.samples == ("a", "b")
    assert mark(0.9, 1, None) == "**"  # an empty answer to everything is a constant too


def test_a_metric_that_knows_options_is_given_them() -> None:
    asked: list[Any] = []
    metric = SimpleNamespace(score=lambda *arguments: asked.append(arguments) or 1.0)
    assert score_constant("A", samples([["A"], ["A"], ["B"]], [("x", "y")] * 3), metric).tolist() == [1.0] * 3
    assert sorted(asked) == [("A", ("A",), ("x", "y")), ("A", ("B",), ("x", "y"))]  # equal questions are scored once
