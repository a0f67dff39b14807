"""Relaxed accuracy against the reference vectors and by its law: five per cent of the target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.metrics import clean_prediction, relaxed_accuracy

texts = st.text(alphabet="01.%-a A,", max_size=5)
numbers = st.floats(1e-3, 1e6) | st.floats(-1e6, -1e-3)


def test_equals_reference_vectors(vectors) -> None:
    for vector in vectors("relaxed_accuracy"):
        prediction, references, scores = vector["prediction"], vector["references"], vector["scores"]
        score = relaxed_accuracy(clean_prediction(prediction), references)
        assert score == scores["allenai_VqaEval_end_to_end"], vector["id"]
        assert relaxed_accuracy(prediction, references) == scores["allenai_fn_max"], vector["id"]


@given(numbers, st.floats(-0.2, 0.2))
def test_five_per_cent_of_the_target(target: float, change: float) -> None:
    prediction = repr(target * (1 + change))
    if abs(abs(change) - 0.05) > 1e-9:  # at the border floats decide
        assert relaxed_accuracy(prediction, [repr(target)]) == float(abs(change) < 0.05)
        assert relaxed_accuracy(f"{prediction}%", [f"{target!r}%"]) == float(abs(change) < 0.05)


@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_best_reference_in_any_order(prediction: str, references: list[str]) -> None:
    score = relaxed_accuracy(prediction, references)
    assert score == max(relaxed_accuracy(prediction, [reference]) for reference in references)
    assert score == relaxed_accuracy(prediction, references[::-1])
    assert score == relaxed_accuracy(f" {prediction.upper()}\n", references)
    assert relaxed_accuracy(prediction, [prediction]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("105", "100", 1.0),
        ("95", "100", 1.0),
        ("105.1", "100", 0.0),
        ("100", "105.2", 1.0),  # five per cent of the target, not of the answer
        ("100", "105.3", 0.0),
        ("-14", "14", 0.0),
        ("0.5", "50%", 1.0),
        ("50", "50%", 0.0),
        ("50%", "0.5", 1.0),
        ("0.0", "0", 0.0),  # zero has no five per cent: text against text
        ("0", "0", 1.0),
        ("1,000", "1000", 0.0),
        ("1e3", "1000", 1.0),
        ("Blue", "blue", 1.0),
        ("blue.", "blue", 0.0),
        ("inf", "14", 0.0),
        ("14", "inf", 0.0),
        ("nan", "14", 0.0),
        ("14", "nan", 0.0),
        ("nan", "nan", 1.0),  # no number, but the same text
        ("NaN", "nan", 1.0),
        ("nan", "nan%", 0.0),
        ("inf", "inf", 1.0),
        ("-inf", "inf", 0.0),
        ("infinity", "inf", 0.0),
        ("1e400", "1e400", 1.0),
        ("1e400", "2e400", 0.0),
        ("1e400", "inf", 0.0),
        ("1e308", "-1e308", 0.0),
        ("1e-400", "0", 0.0),  # zero again
        ("+14", "14", 1.0),
        ("- 14", "14", 0.0),
        ("-14", "-14.5", 1.0),
        ("-50%", "-0.5", 1.0),
        ("50 %", "0.5", 1.0),
        ("50%%", "0.5", 1.0),  # the evaluator strips all of them
        ("", "14", 0.0),
        ("%", "14", 0.0),
    ],
)
def test_by_hand(prediction: str, reference: str, expected: float) -> None:
    assert relaxed_accuracy(prediction, [reference]) == expected


@pytest.mark.parametrize("references", [[], "14"])
def test_refuses(references: list[str] | str) -> None:
    with pytest.raises(ValueError, match="expected references"):
        relaxed_accuracy("14", references)
