"""Files of a run survive being killed, and refuse what would be a wrong result."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_depth.results.store import (
    RECORD_COLUMNS,
    RecordWriter,
    atomic_path,
    check_complete,
    locked_folder,
    prepare_folder,
    read_records,
    save_figure,
    write_json,
    write_manifest,
    write_parquet,
    write_text,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


def record(mask: str, sample: int, score: float = 1.0) -> dict[str, Any]:
    return {
        "mask": mask,
        "sample": str(sample),
        "image": f"image {sample // 2}",
        "score": score,
        "prediction": "é\u2028\n<b>",
        "reference_logprob": -0.25,
    }


@pytest.fixture
def not_a_folder(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("here")
    return file / "results"


# --- whole files


@given(json_values)
@settings(max_examples=50, deadline=None)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_json_converts_numpy_torch_and_paths(tmp_path: Path) -> None:
    value = {0: np.float32(0.5), "n": np.int64(3), "a": np.arange(2), "t": torch.tensor([True]), "p": Path("x/y")}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {"0": 0.5, "n": 3, "a": [0, 1], "t": [True], "p": "x/y"}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float64("nan"), np.array([1.0, np.nan])])
def test_json_refuses_nan_and_names_the_place(tmp_path: Path, number: Any) -> None:
    with pytest.raises(ValueError, match=r"\$\.masks\[1\]\.quality"):
        write_json(tmp_path / "a.json", {"masks": [{}, {"quality": number}]})
    assert list(tmp_path.iterdir()) == []


def test_failure_before_the_rename_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, [1])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_depth.results.store.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, [2])
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_failure_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".png"
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_not_utf8_does_not_lose_the_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "half \ud800 pair")
    assert (tmp_path / "a.txt").read_text() == "half ? pair"


def test_figure_and_table_are_written_whole(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    save_figure(Figure(), tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    frame = pd.DataFrame([record("11", 0), record("10", 0)])
    write_parquet(tmp_path / "records.parquet", frame)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "records.parquet"), frame)


def test_unwritable_folder_is_one_readable_error(not_a_folder: Path) -> None:
    for write in (
        lambda: prepare_folder(not_a_folder),
        lambda: write_json(not_a_folder / "a.json", {}),
        lambda: RecordWriter(not_a_folder / "rank0.jsonl"),
    ):
        with pytest.raises(ValueError, match="cannot write to .*results: expected a writable folder"):
            write()


def test_prepare_folder_leaves_nothing(tmp_path: Path) -> None:
    folder = prepare_folder(str(tmp_path / "a" / "b"))
    assert folder.is_dir() and list(folder.iterdir()) == []
    assert prepare_folder(folder) == folder


def test_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"model": Path("checkpoint"), "seeds": (0, 1)}, fingerprint="abc")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["arguments"] == {"model": "checkpoint", "seeds": [0, 1]}
    assert manifest["fingerprint"] == "abc"
    assert manifest["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "platform", "transformers", "lightning", "lit_depth"} <= manifest["versions"].keys()


# --- records


def test_records_round_trip_whatever_the_number_of_writers(tmp_path: Path) -> None:
    records = [record(mask, sample, sample / 10) for sample in range(10) for mask in ("110", "011")]
    with RecordWriter(tmp_path / "one" / "rank0.jsonl") as writer:
        for item in records:
            writer.write(item)
    for rank in range(3):
        with RecordWriter(tmp_path / "three" / f"rank{rank}.jsonl") as writer:
            for item in records[rank::3]:
                writer.write(item)
    one = read_records((tmp_path / "one").glob("*.jsonl"))
    three = read_records((tmp_path / "three").glob("*.jsonl"))
    pd.testing.assert_frame_equal(one, three)
    assert list(one.columns) == list(RECORD_COLUMNS)
    key = ["mask", "sample"]
    assert one.to_dict("records") == sorted(records, key=lambda item: [item[name] for name in key])


def test_every_cut_of_the_file_can_be_read_and_resumed(tmp_path: Path) -> None:
    """A kill may cut the file at any byte; the records before the cut stay, and writing goes on cleanly."""
    records = [record("10", sample) for sample in range(3)]
    whole = tmp_path / "whole.jsonl"
    with RecordWriter(whole) as writer:
        for item in records:
            writer.write(item)
    content = whole.read_bytes()
    for cut in range(len(content) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:cut])
        num_complete = content[:cut].count(b"\n")
        assert read_records([path])["sample"].tolist() == ["0", "1", "2"][:num_complete]
        with RecordWriter(path) as writer:
            for item in records[num_complete:]:
                writer.write(item)
        assert path.read_bytes() == content


def test_record_is_on_disk_before_the_writer_is_closed(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "rank0.jsonl")
    writer.write(record("1", 0))
    assert len(read_records([writer.path])) == 1
    writer.close()


def test_first_of_two_records_is_kept_and_masks_stay_text(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.jsonl") as writer:
        writer.write({**record("0101", 1, 1.0), "error": "late"})
        writer.write(record("0101", 1, 0.0))
        writer.write({"mask": "0011", "sample": 7})
    frame = read_records([tmp_path / "a.jsonl"])
    assert frame[["mask", "sample"]].values.tolist() == [["0011", "7"], ["0101", "1"]]
    assert frame["score"].tolist()[1] == 1.0
    assert frame["error"].tolist()[1] == "late"


def test_no_records_give_an_empty_table_with_columns(tmp_path: Path) -> None:
    RecordWriter(tmp_path / "a.jsonl").close()
    assert list(read_records([tmp_path / "a.jsonl"]).columns) == list(RECORD_COLUMNS)
    assert len(read_records([])) == 0


@pytest.mark.parametrize("line", ["{nonsense}", '{"mask": "1"}', "[1]", "\0\0"])
def test_damage_inside_a_file_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rank0.jsonl"
    path.write_text(json.dumps(record("1", 0)) + "\n" + line + "\n")
    with pytest.raises(ValueError, match="rank0.jsonl, line 2"):
        read_records([path])


@pytest.mark.parametrize(
    ("bad", "message"), [({"mask": "1"}, "without"), ({"mask": "1", "sample": "a", "score": float("nan")}, "score")]
)
def test_writer_refuses_bad_records(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with RecordWriter(tmp_path / "a.jsonl") as writer, pytest.raises(ValueError, match=message):
        writer.write(bad)
    assert (tmp_path / "a.jsonl").read_bytes() == b""


def frame_of(pairs: list[tuple[str, int]]) -> pd.DataFrame:
    return pd.DataFrame([record(mask, sample) for mask, sample in pairs], columns=list(RECORD_COLUMNS))


def test_complete_records_pass() -> None:
    pairs = [(mask, sample) for mask in ("11", "10", "01") for sample in range(4)]
    check_complete(frame_of(pairs), ["11", "10"], 4)


@pytest.mark.parametrize("num_missing", [1, 3, 8])
def test_missing_records_are_counted(num_missing: int) -> None:
    pairs = [(mask, sample) for mask in ("11", "10") for sample in range(4)][num_missing:]
    with pytest.raises(ValueError, match=f"= 8 records, got {8 - num_missing}: {num_missing} are missing"):
        check_complete(frame_of(pairs), ["11", "10"], 4)


@pytest.mark.parametrize("pairs", [[("11", 0), ("11", 1), ("10", 0), ("10", 2)], [("11", 0), ("11", 1), ("11", 2)]])
def test_unpaired_or_surplus_samples_are_refused(pairs: list[tuple[str, int]]) -> None:
    with pytest.raises(ValueError, match="same 2 samples"):
        check_complete(frame_of(pairs), sorted({mask for mask, _ in pairs}), 2)


def test_a_folder_has_one_run_at_a_time(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lit_depth.results.store import locked_folder\n"
        "with locked_folder(Path(sys.argv[1])): print('held')"
    )
    with locked_folder(tmp_path):
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        assert "in use by another run" in other.stderr
    other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert other.stdout == "held\n", other.stderr


def test_a_full_disk_is_reported_and_loses_no_complete_record(tmp_path):
    """A limit on the file's size is what the operating system offers: like a full disk it cuts a line in the middle."""
    path = tmp_path / "rank0.jsonl"
    record = {"mask": "1101", "sample": "s", "score": 1.0, "prediction": "x" * 50}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = 0
    with RecordWriter(path) as writer:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
            with pytest.raises(ValueError, match="rank0.jsonl.*too large.*start the same command again"):
                for written in range(100):
                    writer.write({**record, "sample": f"s{written}"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert 0 < written < 20 and path.stat().st_size == 1000 and not path.read_bytes().endswith(b"\n")
    assert len(read_records([path])) == written
    with RecordWriter(path) as writer:
        writer.write({**record, "sample": "again"})
    assert set(read_records([path])["sample"]) == {*(f"s{i}" for i in range(written)), "again"}
