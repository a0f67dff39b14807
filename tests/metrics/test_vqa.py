"""VQA soft accuracy against the reference vectors and against leaving out one reference after another."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.metrics import clean_prediction, normalize_vqa_answer, vqa_accuracy

# everything that the normalisation looks at, few enough to collide
pieces = ["a", "the", "two", "none", "dont", "dog", "1", ",", ".", "-", "!", "'", " ", "\n", "\t", "$", "É"]
answers = st.lists(st.sampled_from(pieces), max_size=8).map("".join)
words = st.sampled_from(["cat", "a cat", "dog", "Dog.", "2", "two", ""])


def leave_one_out(prediction: str, references: list[str]) -> Fraction:
    """The definition, word by word."""
    answer = normalize_vqa_answer(prediction)
    scores = []
    for left_out in range(len(references)):
        others = [other for index, other in enumerate(references) if index != left_out]
        matches = sum(normalize_vqa_answer(other) == answer for other in others)
        scores.append(min(Fraction(1), Fraction(matches, 3)))
    return sum(scores, Fraction(0)) / len(scores)


def test_normalisation_equals_reference_vectors(vectors) -> None:
    for vector in vectors("vqa_normalise"):
        assert normalize_vqa_answer(vector["input"]) == vector["official_vqaeval"], vector["id"]


def test_official_variant_equals_reference_vectors(vectors) -> None:
    for vector in vectors("vqa_soft"):
        references = vector["references"]
        score = vqa_accuracy(vector["prediction"], references, min_references=len(references))
        assert round(score, 6) == vector["scores"]["lmms_vqav2"], vector["id"]


def test_official_variant_equals_the_first_official_script(vectors) -> None:
    for vector in vectors("vqa_soft"):
        if vector["id"] == "vqa_10":  # that script leaves unanimous references as they are
            continue
        references = vector["references"]
        score = vqa_accuracy(vector["prediction"], references, min_references=len(references))
        assert round(score, 6) == vector["scores"]["official_vqaeval"], vector["id"]


def test_molmo_variant_equals_reference_vectors(vectors) -> None:
    for vector in vectors("vqa_soft"):
        prediction, references = vector["prediction"], vector["references"]
        options = {"variant": "molmo", "min_references": len(references)}
        score = vqa_accuracy(prediction, references, **options)
        assert round(score, 6) == vector["scores"]["allenai_vqa_score_fn"], vector["id"]
        score = vqa_accuracy(clean_prediction(prediction), references, **options)
        assert round(score, 6) == vector["scores"]["allenai_VqaEval_end_to_end"], vector["id"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two Dogs!", "2 dogs"),
        ("zero", "0"),
        ("eleven", "eleven"),
        ("black-and-white", "black and white"),
        ("black - white", "black white"),
        ("t-shirt 1,000", "tshirt 1000"),
        ("1,2,3", "123"),
        ("3.5.", "3.5"),
        ("e.g. 5.5 or .5", "eg 5.5 or .5"),
        ("youre couldntve", "you're couldntve"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("yalld've yall'd've y'all'dve", "yalld've y'all'd've y'all'd've"),
        ("twas 5 oclock", "'twas 5 o'clock"),
        ("hes shes lets", "he's shes lets"),
        ("somebody'd", "somebodyd"),
        ("id've im ive", "id've im ive"),
        ("a_b@c:d", "b c:d"),
        ("A.", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalize_vqa_answer(text) == expected


@given(answers)
def test_normalisation_is_idempotent_and_blind_to_case_and_outer_space(text: str) -> None:
    normalized = normalize_vqa_answer(text)
    assert normalize_vqa_answer(normalized) == normalized
    assert normalize_vqa_answer(text.upper()) == normalized
    assert normalize_vqa_answer(f" \n{text}\t") == normalized


def test_periods_beyond_the_thirty_second_stay() -> None:
    assert normalize_vqa_answer("a" + "." * 32) == ""
    assert normalize_vqa_answer("a" + "." * 34) == "a.."


@given(words, st.lists(words, min_size=1, max_size=12))
def test_official_variant_is_the_mean_over_left_out_references(prediction: str, references: list[str]) -> None:
    score = vqa_accuracy(prediction, references, min_references=1)
    assert score == pytest.approx(float(leave_one_out(prediction, references)), abs=1e-12)


@pytest.mark.parametrize("variant", ["official", "molmo"])
@given(data=st.data())
def test_bounds_permutation_and_more_matches(variant: str, data: st.DataObject) -> None:
    prediction = data.draw(words)
    references = data.draw(st.lists(words, min_size=10, max_size=12))
    score = vqa_accuracy(prediction, references, variant)
    assert 0.0 <= score <= 1.0
    assert vqa_accuracy(prediction, data.draw(st.permutations(references)), variant) == score
    assert vqa_accuracy(normalize_vqa_answer(prediction), references, variant) == score
    assert vqa_accuracy(prediction, [prediction, *references[1:]], variant) >= score


@pytest.mark.parametrize(
    ("matches", "official", "molmo"),
    [(0, 0.0, 0.0), (1, 0.3, 1 / 3), (2, 0.6, 2 / 3), (3, 0.9, 1.0), (4, 1.0, 1.0), (10, 1.0, 1.0)],
)
def test_ten_references(matches: int, official: float, molmo: float) -> None:
    references = ["cat"] * matches + ["dog"] * (10 - matches)
    assert vqa_accuracy("cat", references) == official
    assert vqa_accuracy("cat", references, variant="molmo") == molmo


@pytest.mark.parametrize("variant", ["official", "molmo"])
def test_fewer_than_ten_references_are_an_error(variant: str) -> None:
    with pytest.raises(ValueError, match="at least 10 reference answers for VQA accuracy, got 9"):
        vqa_accuracy("cat", ["cat"] * 9, variant)


def test_unknown_variant() -> None:
    with pytest.raises(ValueError, match="variant as 'official' or 'molmo', got 'soft'"):
        vqa_accuracy("cat", ["cat"] * 10, "soft")
