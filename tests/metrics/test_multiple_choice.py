"""Multiple choice: the accepted forms, and that nothing else is ever right."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.metrics import MultipleChoiceAccuracy, multiple_choice_accuracy, parse_choice

OPTIONS = ["dog", "cat", "bird", "none of these"]
FORMS = [
    "{letter}",
    " {letter}\n",
    "({letter})",
    "{letter}.",
    "{letter}:",
    "{letter})",
    "({letter}).",
    "{letter}. {text}",
    "{letter}: {text}",
    "{letter}) {text}",
    "({letter}) {text}",
    "The answer is {letter}",
    "The answer is {letter}.",
    "the answer is ({letter}).",
    "I think the correct answer is: {letter}. {text}",
    "answer: {letter}",
    "{text}",
    "{text}.",
]
# Where the column of the vectors differs from the rule: it takes the first letter that stands alone wherever it is,
# falls back to a similar option, and never compares with the texts.
DIFFERENT = {
    "mc_08": 1.0,  # the exact text of an option
    "mc_22": 1.0,
    "mc_12": 0.0,  # nothing to read: empty, beyond the options, two letters, a sentence
    "mc_14": 0.0,
    "mc_16": 0.0,
    "mc_18": 0.0,
    "mc_24": 0.0,
}


def test_equals_reference_vectors(vectors) -> None:
    for vector in vectors("mc_scienceqa"):
        score = multiple_choice_accuracy(vector["prediction"], vector["choices"], vector["answer_idx"])
        assert score == DIFFERENT.get(vector["id"], vector["scores"]["molmo_hf_user_mc"]), vector["id"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("index", range(4))
def test_every_form_names_every_option(form: str, index: int) -> None:
    letter = string.ascii_uppercase[index]
    prediction = form.format(letter=letter, text=OPTIONS[index])
    assert parse_choice(prediction, OPTIONS) == letter
    for other in range(4):
        assert multiple_choice_accuracy(prediction, OPTIONS, other) == float(other == index)
        assert multiple_choice_accuracy(prediction, OPTIONS, string.ascii_uppercase[other]) == float(other == index)


@pytest.mark.parametrize("prediction", ["b", "(b)", "b.", "b: cat", "CAT", "  cat "])
def test_case_and_space_do_not_matter(prediction: str) -> None:
    assert parse_choice(prediction, OPTIONS) == "B"


@pytest.mark.parametrize(
    "prediction",
    [
        "",
        " ",
        "E",
        "(E)",
        "The answer is E",
        "A or B",
        "ABCD",
        "AA",
        "A dog",
        "a dog",
        "a.m.",
        "dog cat",
        "I think a dog",
        "I. do not know",
        "The answer is a",  # cut off before "dog"
        "The answer is A dog",
        "The answer is A. No, the answer is B.",
        "The answer is not B",
        "none",
        "1",
        "....",
        "Ｂ",  # full width: a letter, but none of the prompt
        "ſ",
    ],
)
def test_anything_else_is_wrong_for_every_answer(prediction: str) -> None:
    assert parse_choice(prediction, OPTIONS) is None
    assert not MultipleChoiceAccuracy.parses(prediction, OPTIONS)
    assert [multiple_choice_accuracy(prediction, OPTIONS, index) for index in range(4)] == [0.0] * 4


def test_texts_that_look_like_letters() -> None:
    assert parse_choice("A", ["B", "A"]) == "A"  # a letter alone is a letter
    assert parse_choice("X", ["x", "y"]) == "A"  # unless no option has it
    assert parse_choice("A. Lincoln", ["B. Franklin", "A. Lincoln"]) == "B"  # the exact text says more than its letter
    assert parse_choice("dog", ["dog", "Dog"]) is None  # both
    assert parse_choice("", ["", "dog"]) is None


@given(st.text(alphabet="ABab(). dogct:is", max_size=12), st.permutations(OPTIONS))
def test_at_most_one_answer_is_right(prediction: str, options: list[str]) -> None:
    scores = [multiple_choice_accuracy(prediction, options, index) for index in range(4)]
    assert sum(scores) == float(parse_choice(prediction, options) is not None)


@given(st.integers(0, 2**32))
def test_garbage_does_not_score_like_chance(seed: int) -> None:
    letters = random.Random(seed).choices(string.ascii_lowercase + " ", k=40)
    assert parse_choice("".join(letters) + "xx", OPTIONS) is None


def test_score_takes_letters_as_references() -> None:
    assert MultipleChoiceAccuracy.score("cat", ["B"], OPTIONS) == 1.0
    assert MultipleChoiceAccuracy.score("cat", ("A", "B"), tuple(OPTIONS)) == 1.0


@pytest.mark.parametrize("options", [[], (), "AB", ["x"] * 27])
def test_refuses_options(options: list[str] | str) -> None:
    with pytest.raises(ValueError, match="expected options as a list"):
        multiple_choice_accuracy("A", options, "A")


@pytest.mark.parametrize("answer", ["C", "b", "", "AB", "dog", 2, -1, None])
def test_refuses_answers_that_are_no_option(answer: str | int | None) -> None:
    with pytest.raises(ValueError, match="expected (an )?answer"):
        multiple_choice_accuracy("A", ["dog", "cat"], answer)
