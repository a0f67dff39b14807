"""What the records of a sweep tell of its progress, counted by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lit_depth.results.progress import PLAN, read_progress, write_plan
from lit_depth.results.records import BAD, REFERENCES, RecordWriter
from lit_depth.results.store import ForeignRunError, write_manifest

MASKS = ["111", "011", "101"]
START = 1_700_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manifest(tmp_path, {}, run="a1")
    return tmp_path / "records" / "task" / "validation"


def record(folder: Path, rank: int, pairs: list[tuple[str, str]], at: float) -> None:
    with RecordWriter(folder / f"rank{rank}.jsonl") as writer:
        for mask, sample in pairs:
            writer.write({"mask": mask, "sample": sample})
    os.utime(folder / f"rank{rank}.jsonl", (at, at))


def begin(folder: Path, masks: list[str], num_samples: int, at: float = START) -> None:
    write_plan(folder, masks, num_samples)
    os.utime(folder / PLAN, (at, at))


def test_speed_and_time_left_of_two_processes(folder: Path) -> None:
    begin(folder, MASKS, 4)
    assert read_progress(folder) == (0, 12, 0, None, None, START)
    record(folder, 0, [(mask, "a") for mask in MASKS], START + 5)
    record(folder, 1, [(mask, "b") for mask in MASKS], START + 6)
    assert read_progress(folder) == (6, 12, 2, 1.0, 6.0, START + 6)


def test_of_a_run_that_goes_on_only_what_is_new_tells_the_speed(folder: Path) -> None:
    record(folder, 0, [(mask, "a") for mask in MASKS], START - 1000)
    begin(folder, MASKS, 3)
    assert read_progress(folder) == (3, 9, 1, None, None, START)
    # another number of processes may answer a pair again, alike
    record(folder, 1, [(mask, sample) for sample in "ab" for mask in MASKS], START + 6)
    assert read_progress(folder) == (6, 9, 2, 0.5, 6.0, START + 6)


def test_bad_samples_are_not_waited_for(folder: Path) -> None:
    begin(folder, MASKS, 3)
    # the second one could be read by a later process
    record(folder, 0, [(BAD, "a"), (BAD, "b"), *((mask, "b") for mask in MASKS), (REFERENCES, "b")], START + 3)
    assert read_progress(folder)[:2] == (3, 6)
    record(folder, 1, [(mask, "c") for mask in MASKS], START + 4)
    done = read_progress(folder)
    assert done.done == done.expected == 6 and done.seconds_left == 0


def test_other_masks_in_the_same_folder_are_kept_apart(folder: Path) -> None:
    record(folder, 0, [("110", "a"), ("110", "b")], START - 9)
    begin(folder, MASKS, 2)
    record(folder, 0, [(mask, "a") for mask in MASKS], START + 3)
    assert read_progress(folder) == (5, 8, 1, 1.0, 3.0, START + 3)


def test_a_line_that_is_being_written_does_not_count(folder: Path) -> None:
    begin(folder, MASKS, 2)
    record(folder, 0, [("111", "a")], START + 1)
    whole = (folder / "rank0.jsonl").read_bytes()
    for cut in range(1, len(whole) + 1):
        (folder / "rank0.jsonl").write_bytes(whole[:cut])
        assert read_progress(folder).done == (cut == len(whole))


def test_records_without_a_plan_are_counted_alone(folder: Path) -> None:
    record(folder, 0, [("111", "a")], START)
    assert read_progress(folder) == (1, None, 1, None, None, START)


def test_another_runs_records_and_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    record(folder, 0, [("111", "a")], START)
    (folder / PLAN).write_text('{"masks": "many"}')
    with pytest.raises(ValueError, match=r"sweep\.json: expected numbers"):
        read_progress(folder)
    write_manifest(tmp_path, {}, run="b2")
    with pytest.raises(ForeignRunError, match="another run"):
        read_progress(folder)
