"""Records survive a kill at any byte, name their run, and refuse what would be a wrong result."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lit_depth.results.records import RECORD_COLUMNS, RecordWriter, check_complete, read_records
from lit_depth.results.store import write_manifest


def record(mask: str, sample: int, score: float = 1.0) -> dict[str, Any]:
    return {
        "mask": mask,
        "sample": str(sample),
        "image": f"image {sample // 2}",
        "score": score,
        "prediction": "é\u2028\n<b>",
        "reference_logprob": -0.25,
    }


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
        num_complete = max(0, content[:cut].count(b"\n") - 1)  # the first line names the run
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


def test_of_equal_records_one_is_kept_and_masks_stay_text(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.jsonl") as writer:
        writer.write({**record("0101", 1), "error": "late"})
        writer.write({**record("0101", 1), "error": "late"})
        writer.write({"mask": "0011", "sample": 7})
    frame = read_records([tmp_path / "a.jsonl"])
    assert frame[["mask", "sample"]].values.tolist() == [["0011", "7"], ["0101", "1"]]
    assert frame["error"].tolist()[1] == "late"


@pytest.mark.parametrize("change", [{"score": 0.0}, {"prediction": "b"}, {"reference_logprob": -0.250001}, {"more": 1}])
def test_two_records_of_one_cell_that_differ_are_an_error(tmp_path: Path, change: dict[str, Any]) -> None:
    for name, kept in (("a", record("10", 1)), ("b", record("10", 1) | change)):
        with RecordWriter(tmp_path / f"{name}.jsonl") as writer:
            writer.write(record("11", 1))  # the same in both
            writer.write(kept)
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with pytest.raises(
        ValueError, match=r"b.jsonl, line 3: another record of mask 10, sample 1 than in .*a.jsonl, line 3"
    ):
        read_records(paths)
    last = read_records(paths, keep="last")  # as of times, which are never the same
    assert len(last) == 2 and last.iloc[0].to_dict() | change == last.iloc[0].to_dict()


def test_records_belong_to_one_run(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_manifest(tmp_path / name, {}, run=name)
        with RecordWriter(tmp_path / name / "records" / "rank0.jsonl") as writer:
            writer.write(record("1", 0))
    mine, other = (tmp_path / name / "records" / "rank0.jsonl" for name in ("1", "2"))
    assert mine.read_text().startswith('{"run": "1"}\n') and len(read_records([mine])) == 1
    mine.write_bytes(other.read_bytes())
    for use in (lambda: read_records([mine]), lambda: RecordWriter(mine)):
        with pytest.raises(ValueError, match=r"1/records/rank0.jsonl belongs to another run \(2, this one is 1\)"):
            use()
    # outside of a run's folder the caller says whose they are
    elsewhere = tmp_path / "rank0.jsonl"
    elsewhere.write_bytes(other.read_bytes())
    assert len(read_records([elsewhere], run="2")) == 1
    with pytest.raises(ValueError, match="another run"):
        read_records([elsewhere], run="3")


def test_records_of_earlier_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rank0.jsonl"
    path.write_text(json.dumps(record("1", 0)) + "\n")
    before = path.read_bytes()
    for use in (lambda: read_records([path]), lambda: RecordWriter(path)):
        with pytest.raises(ValueError, match="rank0.jsonl, line 1: expected the run that these records belong to"):
            use()
    assert path.read_bytes() == before


def test_what_was_appended_can_be_taken_back(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.jsonl") as writer:
        writer.write(record("1", 0))
    with RecordWriter(tmp_path / "a.jsonl") as writer:
        writer.write(record("1", 1))
        writer.take_back()
        writer.write(record("1", 2))
    assert read_records([tmp_path / "a.jsonl"])["sample"].tolist() == ["0", "2"]


def test_records_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "victim").write_text("mine")
    write_manifest(tmp_path / "run", {}, run="1")
    (tmp_path / "run" / "records").symlink_to(tmp_path / "outside")
    (tmp_path / "run" / "rank0.jsonl").symlink_to(tmp_path / "victim")
    for path in (tmp_path / "run" / "records" / "shapes" / "rank0.jsonl", tmp_path / "run" / "rank0.jsonl"):
        with pytest.raises(ValueError, match="(records|rank0.jsonl) is a symbolic link"):
            RecordWriter(path)
    assert (tmp_path / "victim").read_text() == "mine" and list((tmp_path / "outside").iterdir()) == []


def test_one_file_has_one_writer(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "rank0.jsonl") as writer:
        with pytest.raises(ValueError, match="rank0.jsonl is in use by another run"):
            RecordWriter(tmp_path / "rank0.jsonl")
        writer.write(record("1", 0))
    RecordWriter(tmp_path / "rank0.jsonl").close()


def test_no_records_give_an_empty_table_with_columns(tmp_path: Path) -> None:
    RecordWriter(tmp_path / "a.jsonl").close()
    assert list(read_records([tmp_path / "a.jsonl"]).columns) == list(RECORD_COLUMNS)
    assert len(read_records([])) == 0


@pytest.mark.parametrize("line", ["{nonsense}", '{"mask": "1"}', "[1]", "[" * 100_000, "\0\0"])
def test_damage_inside_a_file_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rank0.jsonl"
    path.write_text('{"run": null}\n' + json.dumps(record("1", 0)) + "\n" + line + "\n")
    with pytest.raises(ValueError, match="rank0.jsonl, line 3: .*: delete the file"):
        read_records([path])


@pytest.mark.parametrize(
    ("bad", "message"), [({"mask": "1"}, "without"), ({"mask": "1", "sample": "a", "score": float("nan")}, "score")]
)
def test_writer_refuses_bad_records(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with RecordWriter(tmp_path / "a.jsonl") as writer, pytest.raises(ValueError, match=message):
        writer.write(bad)
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"run": null}\n'


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
