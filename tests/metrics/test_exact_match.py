"""Exact match, against the reference vectors and by symmetry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.metrics import ExactMatch, exact_match

answers = st.text(alphabet="aAbB1. ßé", max_size=6)


def test_exact_match_equals_reference_vectors(vectors) -> None:
    """Column of the evaluator that ignores case and punctuation: on these vectors that is the final period."""
    for vector in vectors("exact_match"):
        expected = vector["scores"]["lmms_exact_match(ignore_case,ignore_punct)"]
        assert exact_match(vector["prediction"], vector["references"]) == expected, vector["id"]


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        (" Yes. ", ["yes"], 1.0),
        ("yes..", ["yes"], 0.0),
        ("yes..", ["yes."], 0.0),
        ("STRASSE", ["straße"], 1.0),
        ("3", ["2", "3"], 1.0),
        ("3.0", ["3"], 0.0),
        ("", [""], 1.0),
        ("", ["3"], 0.0),
        ("1", ["1", "yes"], 1.0),
    ],
)
def test_exact_match(prediction: str, references: list[str], expected: float) -> None:
    assert exact_match(prediction, references) == expected


@given(answers, answers)
def test_exact_match_is_symmetric_and_blind_to_case_space_and_period(a: str, b: str) -> None:
    score = exact_match(a, [b])
    assert exact_match(b, [a]) == score
    assert exact_match(f"\t{a.upper()}\n", [b]) == score
    if not a.strip().endswith("."):
        assert exact_match(a + ".", [b]) == score
    assert exact_match(a, [a]) == 1.0


@given(answers, st.lists(answers, min_size=1, max_size=4))
def test_exact_match_takes_the_best_reference(prediction: str, references: list[str]) -> None:
    score = exact_match(prediction, references)
    assert score == max(exact_match(prediction, [reference]) for reference in references)
    assert exact_match(prediction, references[::-1]) == score


@pytest.mark.parametrize("references", [[], "yes"])
def test_exact_match_refuses(references: list[str] | str) -> None:
    with pytest.raises(ValueError, match="expected references"):
        exact_match("yes", references)


@given(
    st.lists(st.tuples(answers, st.lists(answers, min_size=1, max_size=3)), min_size=1, max_size=8), st.integers(0, 8)
)
def test_metric_is_the_mean_whatever_the_batches(samples: list[tuple[str, list[str]]], split: int) -> None:
    metric = ExactMatch()
    for part in (samples[:split], samples[split:]):
        metric.update([prediction for prediction, _ in part], [references for _, references in part])
    scores = [ExactMatch.score(prediction, references) for prediction, references in samples]
    assert torch.cat(metric.scores).tolist() == scores
    assert metric.compute().item() == pytest.approx(sum(scores) / len(scores))


def test_metric_forward_reset_and_pickle() -> None:
    metric = ExactMatch()
    assert metric(["a"], [["a"]]) == 1.0
    assert metric(["a"], [["b"]]) == 0.0
    assert metric.compute() == 0.5
    assert metric.clone().compute() == 0.5
    metric.reset()
    assert metric.scores == []


def test_metric_refuses_unpaired_batches() -> None:
    with pytest.raises(ValueError, match="got 2 predictions and 1 lists"):
        ExactMatch().update(["a", "b"], [["a"]])
