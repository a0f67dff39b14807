"""The shells: one score per sample whatever the batches, options handed on, unreadable choices counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_depth import metrics
from lit_depth.metrics.base import SampleMetric, new_metric, resolve
from tests.helpers import own_metrics

TEN = ["cat"] * 3 + ["dog"] * 7
# score all samples together, or no answers but log-probabilities
OTHERS = {"CIDErD", "ReferenceCorpus", "TokenLogProbability"}
SHELLS = [name for name in metrics.__all__ if isinstance(getattr(metrics, name), type) and name not in OTHERS]
# metric, then (prediction, references, options, score) by hand
SAMPLES = [
    ("ExactMatch", [("3.", ["3"], (), 1.0), ("4", ["3"], (), 0.0)]),
    ("VQAAccuracy", [("cat", TEN, (), 0.9), ("bird", TEN, (), 0.0)]),
    ("MolmoVQAAccuracy", [("cat", TEN, (), 1.0), ("bird", TEN, (), 0.0)]),
    ("ANLS", [("abcd", ["abcx"], (), 0.75), ("x", ["abc"], (), 0.0)]),
    ("RelaxedAccuracy", [("105", ["100"], (), 1.0), ("106", ["100"], (), 0.0)]),
    ("MultipleChoiceAccuracy", [("B", ["B"], ("dog", "cat"), 1.0), ("cat", ["A"], ("dog", "cat"), 0.0)]),
    (
        "ChatChoiceAccuracy",
        [("**B**", ["B"], ("dog", "cat"), 1.0), ("Option A", ["B"], ("dog", "cat"), 0.0)],
    ),
    ("Contains", [("I see a cat.", ["Cat"], (), 1.0), ("scatter", ["cat"], (), 0.0)]),
    ("MMMUAccuracy", [("B", ["B"], ("dog", "cat"), 1.0), ("42", ["42"], (), 1.0), ("b", ["B"], ("x", "y"), 0.0)]),
]


@pytest.mark.parametrize(("name", "samples"), SAMPLES)
def test_scores_are_kept_per_sample_whatever_the_batches(name: str, samples: list[tuple]) -> None:
    predictions, references, options, expected = zip(*samples)
    for size in range(1, len(samples) + 1):
        metric = getattr(metrics, name)()
        for start in range(0, len(samples), size):
            part = slice(start, start + size)
            metric.update(predictions[part], references[part], options[part])
        assert torch.cat(metric.scores).tolist() == pytest.approx(expected)
        assert metric.compute().item() == pytest.approx(sum(expected) / len(expected))
    assert [metric.score(*sample[:3]) for sample in samples] == pytest.approx(expected)
    assert metric.max_score == 1.0


@pytest.mark.parametrize("name", SHELLS)
def test_every_sample_metric_keeps_the_score_of_each_sample_and_checks_its_references(name: str) -> None:
    metric = getattr(metrics, name)()
    assert isinstance(metric, SampleMetric)
    predictions, references, options = ["B", "3", "dog"], ["B"] * 10, ["dog", "cat"]
    for prediction in predictions:
        metric.update([prediction], [references], [options])
    expected = [metric.score(each, references, options) for each in predictions]
    assert torch.cat(metric.scores).tolist() == pytest.approx(expected)  # kept in float32
    for wrong in ([], (), "cat"):
        with pytest.raises(ValueError, match="expected references"):
            metric.score("B", wrong, options)


def test_unpaired_batches_are_refused() -> None:
    metric = metrics.MultipleChoiceAccuracy()
    with pytest.raises(ValueError, match="got 2 predictions and 1 lists of references"):
        metric.update(["a", "b"], [["A"]])
    with pytest.raises(ValueError, match="got 1 predictions and 2 lists of options"):
        metric.update(["a"], [["A"]], [["x"], ["y"]])
    assert metric.scores == [] and metric.parse_failed == 0


@pytest.mark.parametrize("name", ["MultipleChoiceAccuracy", "MMMUAccuracy"])
@given(st.lists(st.sampled_from(["A", "B", "(B)", "", "garbage", "A B"]), min_size=1, max_size=8))
def test_unreadable_choices_are_wrong_and_counted(name: str, predictions: list[str]) -> None:
    metric = getattr(metrics, name)()
    options = ["dog", "cat"]
    metric.update(predictions, [["A", "B"]] * len(predictions), [options] * len(predictions))
    # every readable choice is right here, so that what is left was not readable
    assert metric.parse_failed.item() == len(predictions) - int(torch.cat(metric.scores).sum())
    assert metric.parse_failed.item() == sum(not metric.parses(prediction, options) for prediction in predictions)
    metric.reset()
    assert metric.parse_failed == 0 and metric.scores == []


def test_a_choice_metric_survives_forward_and_clone() -> None:
    metric = metrics.MultipleChoiceAccuracy()
    assert metric(["?"], [["A"]], [["dog", "cat"]]) == 0.0
    assert metric(["A"], [["A"]], [["dog", "cat"]]) == 1.0
    assert metric.clone().compute() == 0.5 and metric.clone().parse_failed == 1


def test_a_metric_is_found_by_its_name_or_class_path() -> None:
    for name in SHELLS:
        assert resolve(name) is resolve(f"lit_depth.metrics.{name}") is getattr(metrics, name)
    assert resolve("CIDErD") is metrics.CIDErD
    assert resolve("tests.helpers.own_metrics.Remainder") is own_metrics.Remainder
    assert new_metric("tests.helpers.own_metrics.Remainder").score("abc", ["x"]) == 294 % 7
    assert [new_metric(name).max_score for name in ("ANLS", "CIDErD")] == [1.0, 10.0]
    assert new_metric("tests.helpers.own_metrics.Remainder").max_score == 6.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Accuracy", "expected the name of a metric in lit_depth.metrics, such as ExactMatch, .* got 'Accuracy'"),
        ("no_such.Metric", "ModuleNotFoundError: No module named 'no_such'"),
        ("clean_prediction", "torchmetrics.Metric with score or corpus or judge, got 'clean_prediction'"),
        ("ReferenceCorpus", "torchmetrics.Metric with score or corpus"),
        ("tests.helpers.own_metrics.Scoreless", "torchmetrics.Metric with score or corpus"),
        ("tests.helpers.own_metrics.Needy", "expected a metric that can be made without arguments"),
    ],
)
def test_what_is_no_metric_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_metric(name)
