"""Which column holds what: usual names, two that match, and what answers mean."""

from __future__ import annotations

import math

import pytest

from lit_depth.data.columns import find_columns, guess_metric, option_texts, read_answers


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["question", "answer"], {"question": "question", "answer": "answer"}),
        (["Prompt", "Label", "image_path"], {"question": "Prompt", "answer": "Label", "image": "image_path"}),
        (["text", "question", "answers"], {"question": "question", "answer": "answers"}),
        (["file_name", "caption"], {"image": "file_name", "answer": "caption"}),
        (
            ["Question ID", "question", "choices", "answer", "split"],
            {"id": "Question ID", "question": "question", "options": "choices", "answer": "answer", "split": "split"},
        ),
        (["question", "option_A", "option_B", "answer"], {"options": ("option_A", "option_B")}),
        (["question", "answer", "Image 2", "Image 10", "Image 1"], {"image": ("Image 1", "Image 2", "Image 10")}),
        (["question", "answer", "image", "image_2"], {"image": ("image", "image_2")}),
        (["question", "answer", "image_path_1", "image_path_2"], {"image": ("image_path_1", "image_path_2")}),
        (["question", "answer", "image_1"], {"image": "image_1"}),
        (["question", "answer", "image", "image_id_2"], {"image": "image"}),
    ],
)
def test_usual_names_are_found(there, expected):
    found = find_columns(there)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("there", "given", "message"),
    [
        (["question", "Questions", "answer"], {}, "'question' and 'Questions' could both be the question; name one"),
        (["image", "images", "answer"], {}, "could both be the image; name one: --data.columns.image image"),
        (
            ["answer", "image", "image_1"],
            {},
            r"'image' and 'image_1' could be the images; name one, or several in their",
        ),
        (
            ["answer", "image_1", "photo_1"],
            {},
            r"name one, or several in their order: --data.columns.image image_1,photo_1",
        ),
        (["answer", "image"], {"image": "image, other"}, "has no column 'other'"),
        (["question"], {}, r"expected a column of answers, got question; name it: --data.columns.answer NAME"),
        (["answer", "notes"], {}, "expected a column of questions or images"),
        (["question", "answer"], {"question": "Q"}, "has no column 'Q'; it has question, answer"),
        (["question", "answer"], {"quest": "question"}, "expected question, answer, .*, got quest"),
    ],
)
def test_what_is_not_understood_is_asked_for(there, given, message):
    with pytest.raises(ValueError, match=message):
        find_columns(there, given, "q.csv")


def test_a_given_name_settles_which_of_two_is_meant_and_null_means_none():
    found = find_columns(["question", "Questions", "answer", "image"], {"question": "Questions", "image": None})
    assert (found.question, found.image) == ("Questions", None)


def test_several_columns_are_given_with_commas():
    there = ["question", "answer", "left", "right", "a, b", "one", "two"]
    given = {"image": "right,left", "options": "one, two"}
    assert find_columns(there, given).told() == (
        "question = question, answer = answer, image = right, left, options = one, two"
    )
    assert find_columns(there, {"image": "a, b"}).image == "a, b"
    with pytest.raises(ValueError, match="has no column 'left, right'"):
        find_columns(there, {"id": "left, right"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("red", ("red",)),
        (3, ("3",)),
        (3.0, ("3",)),
        (2.5, ("2.5",)),
        (math.nan, ()),
        (None, ()),
        ("", ()),
        ("NA", ("NA",)),
        (["a", "b"], ("a", "b")),
        ('["a", 2]', ("a", "2")),
        ("['a', 'b']", ("a", "b")),
        ("[see note", ("[see note",)),
        (True, ("True",)),
        ({"text": ["two", "2"], "answer_start": [7, 9]}, ("two", "2")),
        ('{"text": ["two", "2"], "answer_start": [7, 9]}', ("two", "2")),
        ([{"answer": "net", "worker": 1}, {"answer": "web"}], ("net", "web")),
        ('[{"answer": "net"}, "web"]', ("net", "web")),
        ({"total": "3.50"}, ('{"total": "3.50"}',)),
        ('{"total":  "3.50"}', ('{"total":  "3.50"}',)),
        ("{not json", ("{not json",)),
    ],
)
def test_answers_are_read_however_they_are_written(value, expected):
    assert read_answers(value) == expected


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "dog", " Dog ", 1, "1", 1.0])
def test_a_choice_is_read_as_its_letter(answer):
    assert read_answers(answer, ["cat", "dog"]) == ("B",)


def test_an_option_that_is_a_letter_or_a_number_comes_before_the_letter_of_an_option():
    assert read_answers("B", ["B", "A"]) == ("A",)
    assert read_answers("1", ["1", "2"]) == ("A",)


@pytest.mark.parametrize("answer", ["C", "cow", 2, "-1"])
def test_an_answer_that_is_no_option_is_refused(answer):
    with pytest.raises(ValueError, match="expected an answer out of A, B"):
        read_answers(answer, ["cat", "dog"])


@pytest.mark.parametrize(
    "value",
    ['["cat", "dog"]', "['cat', 'dog']", "cat|dog", "cat; dog", ["cat", "dog"], '{"A": "cat", "B": "dog"}',
     {"text": ["cat", "dog"], "label": ["A", "B"]}],
)  # fmt: skip
def test_options_are_read_however_they_are_written(value):
    assert option_texts({"options": value}, "options") == ("cat", "dog")


@pytest.mark.parametrize(
    ("answers", "has_options", "has_question", "expected"),
    [
        ([("A",)], True, True, ("multiple_choice", "choice")),
        ([("a cat on a mat",) * 5], False, False, ("cider", "caption")),
        ([("red",) * 10, ("blue",) * 10], False, True, ("vqa", "short")),
        ([("red",) * 10, ("blue",) * 9], False, True, ("exact", "short")),
        ([("3",), ("1,000", "1000")], False, True, ("exact", "number")),
        ([("one two three four five six seven",)], False, True, ("anls", "free")),
        ([], False, True, ("exact", "short")),
    ],
)
def test_the_metric_follows_from_the_answers(answers, has_options, has_question, expected):
    assert guess_metric(answers, has_options, has_question)[:2] == expected
