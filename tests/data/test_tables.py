"""Tables of a user's own: every format gives the same rows, and a broken one says where."""

from __future__ import annotations

import base64
import io
import json

import datasets
import pytest
from PIL import Image

from lit_depth.data.images import ImageFolder, load_image
from lit_depth.data.tables import FOLDER, pictures, read_files, saved_splits

ROWS = [{"question": "Ein „Wort“?", "answer": "NA"}, {"question": "a\u2028b, c", "answer": "007"}]


def write(path, kind):
    table = datasets.Dataset.from_list(ROWS)
    if kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind in ("jsonl", "ndjson"):
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    elif kind in ("csv", "tsv"):
        table.to_pandas().to_csv(path, index=False, sep="\t" if kind == "tsv" else ",", encoding="utf-8-sig")
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        table.save_to_disk(path.with_suffix(""))
        (path.with_suffix("") / "data-00000-of-00001.arrow").rename(path)
    return str(path)


@pytest.mark.parametrize("kind", ["json", "jsonl", "ndjson", "csv", "tsv", "parquet", "arrow"])
def test_every_format_gives_the_same_rows(kind, tmp_path):
    assert list(read_files([write(tmp_path / f"q.{kind}", kind)])) == ROWS


def test_several_files_follow_one_another_and_kinds_are_not_mixed(tmp_path):
    files = [write(tmp_path / f"q{n}.csv", "csv") for n in range(2)]
    assert list(read_files(files)) == ROWS * 2
    with pytest.raises(ValueError, match="expected files of one kind"):
        read_files([*files, write(tmp_path / "q.json", "json")])


def test_a_folder_that_datasets_saved(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "both")
    table.save_to_disk(tmp_path / "one")
    both = saved_splits(tmp_path / "both")
    assert both is not None and list(both) == ["train", "test"]
    assert list(read_files(both["test"])) == ROWS
    assert list(saved_splits(tmp_path / "one") or ()) == ["unnamed"]
    assert saved_splits(tmp_path) is None


def test_values_of_several_types_stand_in_one_column(tmp_path):
    file = tmp_path / "q.jsonl"
    answers = [3, "two", ["a", 1], None, 2.5, True, {"a": 1}]
    file.write_text("\n".join(json.dumps({"answer": answer}) for answer in answers))
    assert read_files([str(file)])["answer"] == ["3", "two", '["a", 1]', None, "2.5", "true", '{"a": 1}']


@pytest.mark.parametrize(
    "content", [{"data": ROWS}, {"version": 1, "rows": ROWS}, {k: [row[k] for row in ROWS] for k in ROWS[0]}]
)
def test_rows_are_found_inside_a_json_document(content, tmp_path):
    file = tmp_path / "q.json"
    file.write_text(json.dumps(content))
    assert list(read_files([str(file)])) == ROWS


def test_json_lines_may_be_called_json_and_csv_may_have_semicolons(tmp_path):
    write(tmp_path / "q.jsonl", "jsonl")
    (tmp_path / "q.jsonl").rename(tmp_path / "lines.json")
    assert list(read_files([str(tmp_path / "lines.json")])) == ROWS
    (tmp_path / "q.csv").write_text("question;answer\nHow much, in kg?;1,5\n")
    assert list(read_files([str(tmp_path / "q.csv")])) == [{"question": "How much, in kg?", "answer": "1,5"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", b"a,b,a\n1,2,3\n", "q.csv: expected columns of different names, got 'a' twice"),
        ("q.csv", b"a,b\n", "q.csv: expected rows below the names of the columns, got none"),
        (
            "q.csv",
            b"a,b\nred, or blue?,2\n",
            "Expected 2 fields in line 2, saw 3; a text that holds the separator stands",
        ),
        ("q.csv", "a,b\n1,2\n".encode("utf-16"), "q.csv: expected UTF-8"),
        ("q.jsonl", b"", "q.jsonl: expected rows, got none"),
        ("q.json", b" \n", "q.json: expected rows, got none"),
        ("q.json", b"[]", "q.json: expected rows, got none"),
        ("q.jsonl", b'{"a": 1}\n{"a": \n', "q.jsonl, line 2: expected an object in JSON"),
        ("q.jsonl", b'{"a": 1}\n\n[1]\n', r"q.jsonl, line 3: expected an object in JSON, got \[1\]"),
        ("q.json", b'[{"a": 1},\n{"a" 2}]', "q.json, line 2: expected JSON"),
        ("q.json", b"[1, 2]", "q.json: expected a list of objects"),
        ("q.csv", b"a,b\n1,2\n1,2,3\n", "q.csv: Expected 2 fields in line 3, saw 3"),
        ("q.csv", "a,b\n1,ä\n".encode("latin-1"), "q.csv: expected UTF-8"),
        ("q.jsonl", '{"a": "ä"}'.encode("latin-1"), "q.jsonl: expected UTF-8"),
        ("q.csv", b"", "q.csv: expected a first line with the names of the columns"),
        ("q.parquet", b"PAR1 no", "cannot read .*q.parquet"),
    ],
)
def test_a_broken_file_says_where(name, content, message, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_files([str(file)])


def test_a_picture_may_be_written_in_many_ways(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    text = base64.b64encode(buffer.getvalue()).decode()
    ways = ["a.png", text, f"data:image/png;base64,{text}", json.dumps(["a.png", "b.png"]), buffer.getvalue(),
            {"bytes": buffer.getvalue()}, {"bytes": text}, {"path": "a.png"}, '{"path": "a.png"}']  # fmt: skip
    for way in ways:
        (found,) = pictures(way) if way != json.dumps(["a.png", "b.png"]) else pictures(way)[:1]
        image = load_image(found, ImageFolder(str(tmp_path), (str(tmp_path),)))
        assert image.size == (9, 7) and image.getpixel((0, 0)) == (255, 0, 0)
    assert pictures("  ") == pictures([]) == ()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a.png; b c.png |d.png", ("a.png", "b c.png", "d.png")),
        ("photos\\a.png", ("photos/a.png",)),
        ('["a.png", "", null, {"path": "b.png"}]', ("a.png", {"path": "b.png"})),
        ("['a.png', 'b;c.png']", ("a.png", "b;c.png")),
        ("[1].png", ("[1].png",)),
        ("{a}.png", ("{a}.png",)),
        (["a.png", None, b"x"], ("a.png", b"x")),
        ([{"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}], ({"bytes": None, "path": "a.png"},)),
        ({"bytes": [b"x", b"y"], "path": [None, ""]}, ({"bytes": b"x", "path": None}, {"bytes": b"y", "path": ""})),
        (float("nan"), ()),
        (None, ()),
        ([[1, 2], [3, 4]], ([[1, 2], [3, 4]],)),
    ],
)  # fmt: skip
def test_a_cell_may_hold_several_pictures(cell, expected):
    assert pictures(cell) == expected


def test_base64_of_several_pictures_is_told_from_paths():
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    data = f"data:image/png;base64,{text}"
    for cell in (json.dumps([text, data]), f"{text};{text}", f"{text} | {text}", [text, data]):
        assert pictures(cell) == (buffer.getvalue(),) * 2


def test_a_table_typed_by_hand_may_have_blanks_quotes_and_any_line_end(tmp_path):
    lines = ["Question, Answer , Image", '"What, ""now""?"  , "red", a b.png', "Why?,,", '"two', 'lines?", x, y']
    expected = [
        {"Question": 'What, "now"?  ', "Answer": "red", "Image": "a b.png"},
        {"Question": "Why?", "Answer": "", "Image": ""},
        {"Question": "two\nlines?", "Answer": "x", "Image": "y"},
    ]
    for number, (end, start) in enumerate([("\n", ""), ("\r\n", "\ufeff"), ("\n", "\ufeff")]):
        file = tmp_path / f"{number}.csv"
        file.write_bytes((start + end.join(lines)).encode())
        found = [{name: text.replace("\r\n", "\n") for name, text in row.items()} for row in read_files([str(file)])]
        assert found == expected
    (tmp_path / "q.jsonl").write_bytes("\ufeff".encode() + b'{"a": "1"}\r\n\r\n{"a": "2"}\r\n')
    assert read_files([str(tmp_path / "q.jsonl")])["a"] == ["1", "2"]


def test_what_is_no_number_is_nothing_and_a_whole_number_has_no_point(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"a": NaN}\n{"a": 3.0}\n{"a": 3.5}\n{"b": 1}\n')
    assert read_files([str(tmp_path / "q.jsonl")])["a"] == [None, "3", "3.5", None]


def test_json_lines_are_read_some_at_a_time(tmp_path, monkeypatch):
    """The same whatever the number, also where a column comes late."""
    rows = [{"a": str(n)} if n < 5 else {"b": n, "a": None} for n in range(8)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number in (1, 3, 100):
        monkeypatch.setattr("lit_depth.data.tables._ROWS_AT_ONCE", number)
        table = read_files([str(tmp_path / "q.jsonl")])
        assert table["a"] == ["0", "1", "2", "3", "4", None, None, None]
        assert table["b"] == [None] * 5 + ["5", "6", "7"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_know_the_folder_of_their_file(kind, tmp_path):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(write(tmp_path / name / f"q.{kind}", kind))
    assert read_files(files, str(tmp_path))[FOLDER] == ["one", "one", "two", "two"]
    assert FOLDER not in read_files(files).column_names


def test_tables_of_different_columns_are_not_joined(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\n1,2\n")
    (tmp_path / "b.csv").write_text("Q,A\n1,2\n")
    with pytest.raises(ValueError, match="expected the same columns .*, got question, answer in .*a.csv and Q, A in"):
        read_files([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])


def test_pictures_are_not_fetched_from_the_web(tmp_path):
    with pytest.raises(ValueError, match="expected a file, got the address 'https://a.example/b.png'; download it"):
        load_image(*pictures("https://a.example/b.png"), ImageFolder(str(tmp_path), (str(tmp_path),)))
