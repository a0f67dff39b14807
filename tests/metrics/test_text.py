"""Predictions are cleaned as Molmo's evaluator does, against the reference vectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.metrics import clean_prediction


def test_cleaning_equals_reference_vectors(vectors) -> None:
    for vector in vectors("prediction_cleaning"):
        assert clean_prediction(vector["decoded"]) == vector["allenai_VqaEval"], vector["id"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("b\na\na", "a"),
        ("b\na\na\nb", "b"),
        ("a  b\n a b\nc", "a b"),
        ("I think.\nAnswer: 42\n", "42"),
        ("Answer: a\nb", "a\nb"),
        ("answer: a", "answer: a"),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert clean_prediction(text) == expected


@given(st.lists(st.text(alphabet="ab \t", max_size=4), min_size=1, max_size=6))
def test_cleaning_keeps_one_of_the_lines(lines: list[str]) -> None:
    cleaned = clean_prediction("\n".join(lines))
    assert cleaned in [" ".join(line.split()) for line in lines]
    assert clean_prediction(cleaned) == cleaned
