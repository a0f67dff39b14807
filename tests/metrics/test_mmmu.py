"""MMMU against the reference vectors, and the rules of the official parser one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.metrics import MMMUAccuracy, mmmu_accuracy, parse_mmmu_choice

OPTIONS = ["$6", "$7", "$8", "$9"]


def test_choices_equal_reference_vectors(vectors) -> None:
    for vector in vectors("mmmu_multiple_choice"):
        expected = vector["scores"]["allenai_mmmu_score"]
        if isinstance(expected, dict):  # the reference draws an option at random: wrong
            expected = 0.0
            assert parse_mmmu_choice(vector["prediction"], vector["options"]) is None, vector["id"]
        score = mmmu_accuracy(vector["prediction"], [vector["answer"]], vector["options"])
        assert score == expected, vector["id"]


def test_open_answers_equal_reference_vectors(vectors) -> None:
    for vector in vectors("mmmu_open"):
        score = mmmu_accuracy(vector["prediction"], [vector["answer"]])
        assert score == vector["scores"]["official_eval_open(gold literal_eval if list)"], vector["id"]


@pytest.mark.parametrize(
    ("prediction", "options", "expected"),
    [
        ("B", OPTIONS, "B"),
        ("B.", OPTIONS, "B"),
        ("'B',", OPTIONS, "B"),
        ("(A) and (C), but B", OPTIONS, "C"),  # brackets before bare letters, the last one wins
        ("B then A", OPTIONS, "A"),
        ("b", OPTIONS, None),
        ("E", OPTIONS, None),
        ("AB", OPTIONS, None),
        ("B: seven", OPTIONS, None),
        ("$7", OPTIONS, None),  # texts only in answers of more than five words
        ("it is not clear but $7", OPTIONS, "B"),
        ("first $9 then $8 or so they say", OPTIONS, "C"),
        ("nobody could say what this would cost", OPTIONS, None),
        ("we see the Big Dog here today", ["a cat", "big dog"], "B"),
        ("C\nC\nB", OPTIONS, "C"),
        ("B", ["x", "", "y"], "B"),  # the empty option has a letter, as in the prompt
        ("C", ["x", "", "y"], "C"),
        ("we see only y in this picture", ["x", "", "y"], "C"),
        ("we see nothing at all in this", ["x", "", "y"], None),
        ("", OPTIONS, None),
    ],
)
def test_choice(prediction: str, options: list[str], expected: str | None) -> None:
    assert parse_mmmu_choice(prediction, options) == expected
    assert MMMUAccuracy.parses(prediction, options) == (expected is not None)
    for letter in "ABCD":
        assert mmmu_accuracy(prediction, [letter], options) == float(letter == expected)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("42", ["42"], 1.0),
        ("42.004", ["42"], 1.0),
        ("42.006", ["42"], 0.0),
        ("The answer is 42.", ["42"], 1.0),
        ("It is 41, therefore 42", ["42"], 1.0),
        ("It is 41, therefore 42", ["41"], 0.0),  # only what follows the last indicator
        ("41 or 42", ["41"], 1.0),  # without an indicator all numbers count
        ("x = 7", ["7"], 1.0),
        ("it is x = 7", ["7"], 1.0),
        ("y is 3 = 4\nfoo", ["3"], 1.0),  # "=" counts in the last line only
        ("1,234 people", ["1234"], 1.0),
        ("1234", ["1,234"], 1.0),
        ("1.5e3", ["1500"], 1.0),
        ("about .5", ["0.5"], 1.0),
        (".5", ["0.5"], 0.0),  # the official parser strips periods at both ends
        ("-3", ["3"], 0.0),
        ("A street in Paris", ["paris"], 1.0),
        ("A Paris street", ["paris"], 0.0),  # and takes the "is " in "Paris " for an indicator
        ("Par", ["paris"], 0.0),
        ("y", ["Y"], 1.0),
        ("yes", ["y"], 0.0),
        ("x or y", ["y"], 1.0),
        ("so ?", ["so ?"], 1.0),  # a tail of one mark says nothing: the whole answer counts
        ("3.429", ["['24/7', '3.429']"], 1.0),
        ("24/7", ["['24/7', '3.429']"], 1.0),
        ("5", ["[4, 5]"], 1.0),
        ("[a", ["[a"], 1.0),
        ("5", ["4", "5"], 1.0),
        ("", ["5"], 0.0),
        ("nan", ["5"], 0.0),
        ("nan", ["nan"], 1.0),
        ("infinity", ["inf"], 1.0),
    ],
)
def test_open(prediction: str, references: list[str], expected: float) -> None:
    assert mmmu_accuracy(prediction, references) == expected
    assert MMMUAccuracy.parses(prediction)


@given(st.decimals(-9999, 9999, places=2), st.sampled_from(["{}", "so {}", "the answer is {}.", "x={}", "{} apples"]))
def test_numbers_are_found_in_sentences(number, sentence: str) -> None:
    assert mmmu_accuracy(sentence.format(number), [str(number)]) == 1.0
    assert mmmu_accuracy(sentence.format(number), [str(number + 10000)]) == 0.0


@given(
    st.text(alphabet="AB( )$67.x=is\n", max_size=12),
    st.lists(st.sampled_from(["A", "6", "x", "is 7"]), min_size=1, max_size=4),
)
def test_best_reference_in_any_order(prediction: str, references: list[str]) -> None:
    for options in ((), ("$6", "$7")):
        score = mmmu_accuracy(prediction, references, options)
        assert score == max(mmmu_accuracy(prediction, [reference], options) for reference in references)
        assert score == mmmu_accuracy(prediction, references[::-1], options)


@pytest.mark.parametrize("references", [[], "A"])
def test_refuses_references(references: list[str] | str) -> None:
    for options in ((), OPTIONS):
        with pytest.raises(ValueError, match="expected references"):
            mmmu_accuracy("A", references, options)


@pytest.mark.parametrize("references", [[""], ["5", " "], ["['5', '']"]])
def test_refuses_an_empty_reference_of_an_open_question(references: list[str]) -> None:
    with pytest.raises(ValueError, match="not empty"):
        mmmu_accuracy("5", references)


@pytest.mark.parametrize("options", ["AB", ["", ""], ["x"] * 27])
def test_refuses_options(options: list[str] | str) -> None:
    with pytest.raises(ValueError, match="expected options as a list"):
        mmmu_accuracy("A", ["A"], options)
