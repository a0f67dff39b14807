"""Options of the dashboard, and what is said where they have no sense."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from lit_depth.integrations.run_notes import RunNote, write_note
from lit_depth.studies.shared.dashboards import add_arguments, check_arguments, publish
from tests.helpers.wandb_server import fake_server


def given(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_nothing_is_published_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert publish([tmp_path], given()) == []
    check_arguments(given("--wandb", "--project", "p"))
    with pytest.raises(ValueError, match="--project belongs to --wandb: give both"):
        check_arguments(given("--project", "p"))


def test_the_addresses_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = fake_server(monkeypatch, there={"a1": ""})
    write_note(tmp_path, RunNote("a1", "lit-depth", name="one", command="tokens"))
    lines = publish(
        [tmp_path, tmp_path / "b"], given("--wandb", "--entity", "us", "--project", "p", "--workspace", "mine")
    )
    assert [line.partition(":")[0] for line in lines] == ["workspace", "report", "not logged, so left out"]
    assert {(view["entityName"], view["projectName"], view["displayName"]) for view in api.views} == {
        ("us", "p", "mine")
    }


def test_folders_none_of_which_was_logged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--trainer.logger WandbLogger"):
        publish([tmp_path / "a", tmp_path / "b"], given("--wandb"))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lit_depth.integrations

    monkeypatch.delattr(lit_depth.integrations, "wandb_workspace", raising=False)
    for name in ("wandb_workspace", "wandb_panels"):
        monkeypatch.delitem(sys.modules, f"lit_depth.integrations.{name}", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb_workspaces"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ValueError, match=r"pip install 'lit_depth\[wandb-workspaces\]'"):
        publish([tmp_path], given("--wandb"))


def test_the_options_alone_import_no_wandb() -> None:
    code = (
        "import sys, lit_depth.studies.shared.dashboards; assert not {'wandb', 'wandb_workspaces'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
