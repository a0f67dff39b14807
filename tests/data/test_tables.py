"""Tables of a user's own: every format gives the same rows, and a broken one says where."""

from __future__ import annotations

import base64
import io
import json

import datasets
import pytest
from PIL import Image

from lit_depth.data.images import ImageFolder, load_image
from lit_depth.data.tables import pictures, read_files, saved_splits

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


def test_pictures_are_not_fetched_from_the_web(tmp_path):
    with pytest.raises(ValueError, match="expected a file, got the address 'https://a.example/b.png'; download it"):
        load_image(*pictures("https://a.example/b.png"), ImageFolder(str(tmp_path), (str(tmp_path),)))
