"""What ``lit-depth status`` says of runs that were cut short by hand, and of what is no run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lit_depth.commands import result_files, studies
from lit_depth.results.store import locked_folder, write_manifest
from lit_depth.tools.status import as_text, describe, duration, find_runs, main
from tests.helpers.commands import run

BLOCKS = 16
SAMPLES = 12
ANSWERS = (BLOCKS + 1) * SAMPLES
PART = "records/shapes_vqa/calibration"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of importance."""
    out = tmp_path_factory.mktemp("results")
    small = ["--data.calibration_samples", str(SAMPLES), "--data.batch_size", "4"]
    assert run(["importance", "--output_dir", out, *small]) == 0
    return out / "importance" / "default"


def test_running_stopped_and_finished(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = describe(finished)
    part = told["records"][PART]
    assert (told["state"], told["seconds_left"], part["done"], part["expected"]) == ("finished", 0.0, ANSWERS, ANSWERS)
    assert part["records_per_second"] > 0
    result = finished / result_files()["importance"]
    whole, (records,) = result.read_bytes(), finished.rglob("rank0.jsonl")
    lines = records.read_bytes().splitlines(keepends=True)
    try:
        result.unlink()
        num_left = ANSWERS // 4
        records.write_bytes(b"".join(lines[:-num_left]) + lines[-num_left][:20])
        stopped = describe(finished)
        assert (stopped["state"], stopped["records"][PART]["done"]) == ("stopped", ANSWERS - num_left)
        rate = stopped["records"][PART]["records_per_second"]
        assert stopped["seconds_left"] == pytest.approx(num_left / rate)
        with locked_folder(finished):
            assert describe(finished)["state"] == "running"
        capsys.readouterr()
        main([str(finished.parent.parent)])
        printed = capsys.readouterr().out
        assert f"importance, stopped; {duration(stopped['seconds_left'])} left of what has begun." in printed
        assert "shapes_vqa/calibration" in printed and "75%" in printed
    finally:
        result.write_bytes(whole)
        records.write_bytes(b"".join(lines))


def test_json_holds_the_same(finished: Path) -> None:
    command = [sys.executable, "-m", "lit_depth", "status", str(finished), "--json"]
    (told,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["runs"]
    assert told == json.loads(json.dumps(describe(finished)))


def test_what_is_no_run_ends_with_code_2(tmp_path: Path) -> None:
    for folder, why in ((tmp_path, "has no manifest.json"), (tmp_path / "nowhere", "is no folder")):
        with pytest.raises(ValueError, match=why):
            find_runs(folder)
    (tmp_path / "manifest.json").write_text("[1")
    done = subprocess.run([sys.executable, "-m", "lit_depth", "status", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_run_without_records_yet(tmp_path: Path) -> None:
    write_manifest(tmp_path, {}, command="compare", run="a1")
    told = describe(tmp_path)
    assert (told["state"], told["seconds_left"]) == ("stopped", None)
    assert as_text(told, 0.0).endswith("compare, stopped. No records so far.")


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("compare/a", "compare/b", "search/a"):
        (tmp_path / name).mkdir(parents=True)
        write_manifest(tmp_path / name, {}, run=name)
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == ["compare/a", "compare/b", "search/a"]


def test_every_command_has_the_file_of_its_result() -> None:
    assert set(studies()) <= set(result_files())
