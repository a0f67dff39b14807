"""What is known of a logged run is read back as it was written, and whatever else lies there is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_depth.integrations.run_notes import LoggedChart, RunNote, read_note, write_note


def test_a_note_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    chart = LoggedChart("bars", {"mark": "bar"}, {"x": "x"}, {"title": "T"})
    note = RunNote(
        "a1", "lit-depth", curves=("quality/a",), steps=(1, 2), charts={"bars": chart}, full={"quality": 0.5}
    )
    write_note(tmp_path, note)
    assert read_note(tmp_path) == note


def test_a_note_of_a_later_version_may_say_more(tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text(json.dumps({"id": "a1", "project": "p", "more": 1}))
    assert read_note(tmp_path).id == "a1"


@pytest.mark.parametrize("content", ["[]", "{", '{"id": "a"}', '{"id": "a", "project": "p", "charts": {"x": {}}}'])
def test_a_damaged_note_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "wandb.json").write_text(content)
    with pytest.raises(ValueError, match=r"wandb\.json cannot be read .*log the run again"):
        read_note(tmp_path)


def test_a_folder_that_was_never_logged_says_how_to_log_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--trainer.logger WandbLogger"):
        read_note(tmp_path)
