"""ANLS against the reference vectors and against an edit distance by its definition."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.metrics import anls

texts = st.text(alphabet="abA é", max_size=6)


@cache
def edit_distance(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements, by recursion on the last letters."""
    if not a or not b:
        return len(a) + len(b)
    replaced = edit_distance(a[:-1], b[:-1]) + (a[-1] != b[-1])
    return min(replaced, edit_distance(a[:-1], b) + 1, edit_distance(a, b[:-1]) + 1)


def test_equals_reference_vectors(vectors) -> None:
    for vector in vectors("anls"):
        score = anls(vector["prediction"], vector["references"])
        assert round(score, 6) == vector["scores"]["lmms_anls(=RRC script)"], vector["id"]


@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_equals_the_definition(prediction: str, references: list[str]) -> None:
    best = 0.0
    for reference in references:
        a, b = " ".join(prediction.lower().split()), " ".join(reference.lower().split())
        similarity = 1 - edit_distance(a, b) / max(len(a), len(b)) if a or b else 1.0
        best = max(best, similarity if similarity >= 0.5 else 0.0)
    assert anls(prediction, references) == best


@given(texts, texts)
def test_symmetry_and_identity(a: str, b: str) -> None:
    score = anls(a, [b])
    assert score == anls(b, [a])
    assert score == 0.0 or 0.5 <= score <= 1.0
    assert (score == 1.0) == (a.lower().split() == b.lower().split())


@given(texts, st.lists(texts, min_size=1, max_size=4).flatmap(lambda r: st.tuples(st.just(r), st.permutations(r))))
def test_order_of_references(prediction: str, references: tuple[list[str], list[str]]) -> None:
    first, second = references
    assert anls(prediction, first) == anls(prediction, second)
    assert anls(prediction, first) == max(anls(prediction, [reference]) for reference in first)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("ab", ["ax"], 0.5),  # exactly one half counts
        ("abc", ["axy"], 0.0),
        ("", [""], 1.0),
        ("", ["a"], 0.0),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("A  B\n", ["a b"], 1.0),
        ("ab", ["ba"], 0.0),  # two edits, not one
        # white space adds no length: padding must not bring an answer nearer
        ("x" + " " * 98, ["y"], 0.0),
    ],
)
def test_by_hand(prediction: str, references: list[str], expected: float) -> None:
    assert anls(prediction, references) == expected


@pytest.mark.parametrize("references", [[], "abc"])
def test_refuses(references: list[str] | str) -> None:
    with pytest.raises(ValueError, match="expected references"):
        anls("abc", references)
