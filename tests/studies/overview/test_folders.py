"""Folders of results: what is found in them, and what a user is told of those that hold none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_depth.commands import studies
from lit_depth.studies.overview.folders import _COMMANDS, read_folders
from tests.helpers.result_folders import edit_json, write_comparison

RESULT = "m5_mask_strategy_comparison.json"


def test_every_command_that_writes_a_result_can_be_told_again() -> None:
    assert set(_COMMANDS) == {*studies(), "ingest", "plan"}


def test_runs_below_a_folder_are_found_once(tmp_path: Path, comparison: dict[str, Any]) -> None:
    first = write_comparison(tmp_path / "compare" / "a", comparison, "one")
    second = write_comparison(tmp_path / "compare" / "b", comparison, "two")
    shutil.copytree(first, tmp_path / "compare" / "copy of a")
    (write_comparison(tmp_path / "compare" / "c", comparison, "three") / RESULT).unlink()
    runs, remarks = read_folders([tmp_path, second, tmp_path / "compare" / ".." / "compare" / "a"])
    assert [run.folder for run in runs] == [first, second] and runs[0].command == "compare"
    assert len(remarks) == 2 and "c has not ended" in remarks[0] and "copy of a is the same run as" in remarks[1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "expected a folder of results .* is none"),
        (lambda folder: (folder / "manifest.json").unlink(), "holds no result: expected a folder that a command wrote"),
        (lambda folder: (folder / RESULT).unlink(), "has no m5_.*: the run has not ended. Start the same command"),
        (lambda folder: (folder / RESULT).write_text("{"), "m5_.*json: it is no JSON"),
        (lambda folder: (folder / RESULT).write_text("[]"), "m5_.*json: expected a JSON object"),
        (lambda folder: (folder / "manifest.json").write_text("null"), "manifest.json: expected a JSON object"),
        (lambda folder: edit_json(folder / "manifest.json", command="dance"), "expected a run of .*, got 'dance'"),
        (lambda folder: edit_json(folder / "manifest.json", arguments=[1]), "expected the arguments of a run"),
        (lambda folder: edit_json(folder / RESULT, strategies=None), "cannot be told .*0.1.0 made it. Run comp"),
        (lambda folder: edit_json(folder / "manifest.json", versions=7, model=3) or edit_json(folder / RESULT, full=1),
         "of another version made it"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_told_is_refused(
    tmp_path: Path, comparison: dict[str, Any], damage: Any, message: str
) -> None:
    folder = write_comparison(tmp_path / "run", comparison)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        read_folders([folder])


def test_an_earlier_version_without_what_came_later_is_told(tmp_path: Path, comparison: dict[str, Any]) -> None:
    folder = write_comparison(tmp_path / "run", comparison, with_samples=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({"arguments": manifest["arguments"], "command": "compare"}))
    (run,), remarks = read_folders([folder])
    assert remarks == [] and run.report.charts
