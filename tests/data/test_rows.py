"""Rows of tables as questions: columns, lists of questions, answers however they are stored."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lit_depth.data.images import ImageFolder
from lit_depth.data.rows import (
    PLACE,
    ArrowTable,
    Layout,
    Place,
    QuestionRows,
    answer_texts,
    column_names,
    content_id,
    list_elements,
    most_common_first,
    parse_list,
    shared_ids,
)

LISTED = Layout(questions="qa", answer="answer", meta=("kind",))


def test_a_layout_knows_its_columns():
    layout = Layout(question="query", answer="label", optional=("hint",), meta=("kind",), question_id="id")
    assert set(layout.required) == {"image", "query", "label"}
    assert layout.columns(["kind", "other", "query", "id", "hint"]) == ["kind", "query", "id", "hint"]
    assert set(LISTED.required) == {"image", "qa", "qa.question", "qa.answer"}
    assert Layout().by_content and not LISTED.by_content and not Layout(image_id="id").by_content


def test_questions_of_a_row():
    row = {"image": b"x", "kind": 1, "qa": [{"question": "A?", "answer": "a"}, {"question": "B?", "answer": "b"}]}
    assert LISTED.count(row) == 2 and LISTED.count({"qa": []}) == LISTED.count({"qa": None}) == 1
    assert [LISTED.entry(row, number)["question"] for number in (0, 1)] == ["A?", "B?"]
    assert LISTED.entry(row, 1)["kind"] == 1 and LISTED.images_of(row) == (b"x",)
    for broken in ({"qa": []}, {"qa": None}, {"qa": ["text"]}):
        with pytest.raises(ValueError, match="the row has no question"):
            LISTED.entry(broken, 0)


def test_of_a_conversation_only_the_question_is_kept():
    layout = Layout(questions="texts", question="user", answer="assistant", instructed=True)
    row = {"texts": [{"user": " What?\nAnswer briefly.", "assistant": "x"}]}
    assert layout.entry(row, 0)["question"] == "What?"
    assert Layout(image="images").images_of({"images": [b"first", b"second"]}) == (b"first", b"second")
    assert Layout(image="images").images_of({"images": []}) == ()


def test_rows_are_counted_by_question_and_know_their_place():
    table = [{"qa": [{"question": q, "answer": "x"} for q in "ab"]}, {"qa": [{"question": "c", "answer": "x"}]}]
    rows = QuestionRows(table, ["one", "two"], [0, 0, 1], [0, 1, 0], LISTED, "test")
    assert len(rows) == 3
    places = [(0, 0, "one"), (0, 1, "one"), (1, 0, "two")]
    assert [row[PLACE] for row in rows] == [Place("test", *place, LISTED) for place in places]


def test_a_table_is_read_row_by_row_and_by_column():
    table = ArrowTable(datasets.Dataset.from_dict({"qa": [[1, 2], [], [3]], "image": ["a", "b", "c"]}))
    assert len(table) == 3 and table[2] == {"qa": [3], "image": "c"}
    assert list(table.cells(["image"], batch_size=2)) == [{"image": name} for name in "abc"]
    assert table.list_lengths("qa") == [2, 0, 1]
    bare = table.without(["image"])
    assert bare[0] == bare.without(["image"])[0] == {"qa": [1, 2]}


def test_names_of_columns_include_the_keys_of_lists():
    schema = pa.schema({"a": pa.int64(), "qa": pa.list_(pa.struct({"question": pa.string(), "answer": pa.string()}))})
    assert set(column_names(schema)) == {"a", "qa", "qa.question", "qa.answer"}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (None, ()),
        ("stop", ("stop",)),
        ("['stop', 'halt']", ("stop", "halt")),
        (["stop", "", None, "halt"], ("stop", "halt")),
        ([{"answer": "stop"}], ("stop",)),
        ("", ()),
    ],
)
def test_answers_however_they_are_stored(stored, expected):
    assert answer_texts(stored) == expected


def test_small_helpers():
    assert answer_texts(["a", ""], keep_empty=True) == ("a", "")
    assert parse_list("['a', \"b's\"]") == ["a", "b's"] and list_elements(None) == []
    assert list_elements({"question": ["a", "b"]}) == [{"question": "a"}, {"question": "b"}]
    assert most_common_first(["b", "a", "c", "a"]) == ("a", "b", "c", "a") and most_common_first([]) == ()
    one, same, other = ({"bytes": content, "path": None} for content in (b"x", b"x", b"y"))
    assert content_id(one) == content_id(same) != content_id(other) and content_id(None) is None


def test_images_of_several_columns_are_shown_in_their_order():
    layout = Layout(image=("left", "right"))
    assert layout.images_of({"left": b"a", "right": [b"b", None, b"c"]}) == (b"a", b"b", b"c")
    assert layout.images_of({"left": None, "right": []}) == ()
    assert set(layout.required) == {"left", "right", "question", "answers"} and layout.by_content


def test_rows_have_one_id_where_images_that_they_share_connect_them():
    """Against the connected components of the graph of rows and images."""
    draw = np.random.default_rng(0)
    for num_images in (3, 40, 400):
        rows = [draw.choice(num_images, draw.integers(0, 4)).tolist() for _ in range(60)]
        found = shared_ids([[f"{image:03}" for image in images] for images in rows])
        pairs = [(row, len(rows) + image) for row, images in enumerate(rows) for image in images]
        size = len(rows) + num_images
        graph = coo_array((np.ones(len(pairs)), tuple(zip(*pairs))), shape=(size, size))
        _, component = connected_components(graph, directed=False)
        for row, images in enumerate(rows):
            theirs = [image for image in range(num_images) if component[len(rows) + image] == component[row]]
            assert found[row] == (f"{min(theirs):03}" if images else None)


def test_a_file_has_one_name_however_its_path_is_written():
    train, test = (ImageFolder(f"/data/{split}", ("/data",)) for split in ("train", "test"))
    names = [content_id(path, train) for path in ("0.png", "./0.png", "../train/0.png", "/data/train/0.png")]
    assert len(set(names)) == 1 and content_id("0.png", test) != names[0]
    assert content_id("0.png", ImageFolder("/elsewhere/train", ("/elsewhere",))) == names[0]
    assert content_id("../a/0.png", test) == content_id("a/0.png", ImageFolder("/data", ("/data",)))
