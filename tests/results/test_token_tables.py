"""The tables of token masking come back from every format, whatever a token's text is."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest

from lit_depth.results.token_tables import COLUMNS, METRICS, read_token_masking, write_token_masking

# what readers take for missing, for numbers, for the end of a line or of the file
TOKENS = ["NA", "null", "nan", "", "None", "1", "1.50", "TRUE", " ", "\n", "\r", "\r\n", "a\rb", '"', '""', ",", "\\"]
TOKENS += ["\u2028", "\ufffd", "日本", "🙂", "#", "\t", "<script>", "'", ";", "-", "\ufeff", "\x1a"]


def table(with_prompts: bool) -> pd.DataFrame:
    rows = [
        (step, layer, text, position, variant)
        for step in range(2)
        for layer in (0, 11)
        for position, text in enumerate(TOKENS)
        for variant in ("Full", "Attn", "Head_0")
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS[:5])
    generator = np.random.default_rng(0)
    for metric in METRICS:
        frame[metric] = (10.0 ** generator.uniform(-12, 8, len(frame))).astype(np.float32)
        frame.loc[::7, metric] = np.nan
        frame.loc[3, metric] = 0.0
    if with_prompts:
        frame.insert(0, "prompt", ["1" if row % 2 else "NA" for row in range(len(frame))])
    return frame


@pytest.mark.parametrize("with_prompts", [False, True])
def test_every_format_gives_back_the_same_table(tmp_path, with_prompts):
    frame = table(with_prompts)
    paths = write_token_masking(tmp_path, frame)
    assert [path.name for path in paths] == [f"masking_results.{kind}" for kind in ("csv", "json", "parquet")]
    for path in paths:
        found = read_token_masking(path)
        pd.testing.assert_frame_equal(found, frame, check_column_type=False, check_dtype=False)
        assert all(found[metric].dtype == np.float32 for metric in METRICS)
        # to the last bit
        for metric in METRICS:
            assert found[metric].to_numpy().tobytes() == frame[metric].to_numpy().tobytes()


def test_other_readers_find_what_the_format_promises(tmp_path):
    frame = table(with_prompts=False)
    csv_path, json_path, parquet_path = write_token_masking(tmp_path, frame)
    with open(csv_path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == list(COLUMNS) and [row[2] for row in rows] == frame["token_masked"].tolist()
    assert rows[0][5:] == ["", ""]  # NaN
    records = json.loads(json_path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert list(records[0]) == list(COLUMNS) and records[0]["l2_distance"] is None
    assert [record["token_masked"] for record in records] == frame["token_masked"].tolist()
    assert list(pd.read_parquet(parquet_path).columns) == list(COLUMNS)
    # float32 written with the fewest digits that give it back
    assert max(len(row[5]) for row in rows) <= 14


def test_json_lines_are_those_of_the_standard_library(tmp_path):
    frame = table(with_prompts=True)
    lines = write_token_masking(tmp_path, frame)[1].read_text(encoding="utf-8").split("\n")
    assert lines[0] == "[" and lines[-2:] == ["]", ""]
    for line, row in zip(lines[1:-2], frame.to_dict("records"), strict=True):
        for metric in METRICS:
            row[metric] = None if np.isnan(row[metric]) else float(str(np.float32(row[metric])))
        assert line.removesuffix(",") == json.dumps(row, ensure_ascii=False)


def test_infinity_is_no_distance(tmp_path):
    frame = table(with_prompts=False)
    frame.loc[5, "l2_distance"] = np.inf
    with pytest.raises(ValueError, match="expected finite distances, got infinity in l2_distance"):
        write_token_masking(tmp_path, frame)
    assert not (tmp_path / "masking_results.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"a,b\n1,2\n", "got none called generation_step"),
        ("x.csv", b"\xff\xfe", "is no table of token masking"),
        ("x.csv", b"", "is no table of token masking"),
        ("x.json", b"{}", "got none called"),
        ("x.json", b"[1, 2", "is no table of token masking"),
        ("x.parquet", b"nonsense", "is no table of token masking"),
        ("x.txt", b"", "expected a .csv, .json or .parquet file"),
        ("nowhere.csv", None, "No such file"),
    ],
)
def test_other_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_token_masking(tmp_path / name)
    assert name in str(error.value)
