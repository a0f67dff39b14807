"""What is given to the server, which runs it lacks, and what is said when it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb

from lit_depth.integrations.run_notes import LoggedChart, RunNote, write_note
from lit_depth.integrations.wandb_workspace import (
    baseline_id,
    full_values,
    log_full_model,
    publish_workspace,
    upload_charts,
)
from tests.helpers.wandb_run import finished_run, quiet_wandb
from tests.helpers.wandb_server import FakeApi, fake_server

CHART = LoggedChart("bars", {"mark": {"type": "line"}, "encoding": {}}, {"x": "x"}, {"title": "T"})
NOTE = RunNote(
    "a1",
    "lit-depth",
    files="wandb/offline-run-1-a1",
    name="model, task, one",
    command="compare",
    fingerprint="f1",
    model="model",
    task="task",
    step="num_active_blocks",
    curves=("quality/a", "low/a", "high/a", "latency_ms/total/a"),
    steps=(4, 8),
    scalars=("area/a", "half_depth/quality", "blocks_for_99/a", "full/quality"),
    charts={"bars": CHART},
    full={"quality": 0.75, "low": 0.5, "high": 1.0, "latency_ms": 20.0},
)


def written(folder: Path, note: RunNote) -> Path:
    folder.mkdir()
    write_note(folder, note)
    return folder


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Full models that were logged, instead of logging them."""
    found: list[Any] = []
    name = "lit_depth.integrations.wandb_workspace.log_full_model"
    monkeypatch.setattr(name, lambda notes, entity, project: found.append((notes, entity, project)))
    return found


def test_charts_workspace_and_report_are_given_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    api = fake_server(monkeypatch, there={"a1": "f1", "b9": "f2"})
    folders = [written(tmp_path / "a", NOTE), written(tmp_path / "b", replace(NOTE, id="b1", fingerprint="f2"))]
    folders.append(written(tmp_path / "c", replace(NOTE, id="c1", fingerprint="f3", command="search")))
    found = publish_workspace(folders)
    (chart,) = api.charts.values()  # the same specification, once
    assert (chart["entity"], chart["spec_type"], chart["access"]) == ("me", "vega2", "private")
    assert chart["spec"]["encoding"] == {"detail": {"field": "name"}}
    workspace, report = api.views
    assert (workspace["type"], report["type"]) == ("project-view", "runs")
    assert {view["entityName"] for view in api.views} == {"me"}
    assert {view["projectName"] for view in api.views} == {"lit-depth"}
    assert workspace["displayName"] == report["displayName"] == "lit_depth model on task"
    # the second one was synced under another id, and the third one not at all
    (runs,) = workspace["spec"]["section"]["runSets"]
    assert runs["filters"]["filters"][0]["value"] == ["a1", "b9", "c1", baseline_id(NOTE)]
    assert chart["name"] in json.dumps(workspace["spec"]) and chart["name"] in json.dumps(report["spec"])
    assert found.waiting == [f"wandb sync --entity me {tmp_path / 'c' / NOTE.files}"]
    assert found.lines()[-1].endswith(found.waiting[0])
    assert found.workspace.startswith("https://here/me/lit-depth?nw=")
    assert found.report.startswith("https://here/me/lit-depth/reports/")
    ((notes, *place),) = logged  # one full model, whose curves are those of all three
    assert len(notes) == 3 and place == ["me", "lit-depth"]


def test_a_run_of_another_project_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    fake_server(monkeypatch)
    folders = [written(tmp_path / "a", NOTE)]
    folders.append(written(tmp_path / "b", replace(NOTE, id="b1", offline=False, entity="us")))
    offline, online = publish_workspace([*folders, *folders], project="other").waiting
    assert offline == f"wandb sync --entity us --project other {folders[0] / NOTE.files}"
    assert online == f"{folders[1]} was logged to us/lit-depth; choose it by --entity and --project"


def test_a_full_model_that_is_there_is_not_logged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    fake_server(monkeypatch, there={"a1": "f1", baseline_id(NOTE): ""})
    publish_workspace([written(tmp_path / "a", NOTE)], entity="us", project="other", name="mine")
    assert not logged


def test_another_full_model_is_another_run() -> None:
    others = [replace(NOTE, model="m"), replace(NOTE, task="t"), replace(NOTE, full={"quality": 0.5})]
    assert len({baseline_id(each) for each in [NOTE, *others]}) == 4
    assert baseline_id(replace(NOTE, id="b1", name="another")) == baseline_id(NOTE)


def test_the_full_model_is_flat_where_masks_are_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_wandb(tmp_path / "home", monkeypatch)
    log_full_model([NOTE], "", "lit-depth", mode="offline", dir=tmp_path)
    found = finished_run(tmp_path)
    assert found.run.display_name == "full model, model, task" and found.run.job_type == "full model"
    assert found.run.run_id == baseline_id(NOTE) and found.config["model"] == "model"
    values = {"quality/a": 0.75, "low/a": 0.5, "high/a": 1.0, "latency_ms/total/a": 20.0}
    rows = [{key: row[key] for key in row if not key.startswith("_")} for row in found.history]
    assert rows == [{"num_active_blocks": count, **values} for count in (4, 8)]
    assert all(found.metrics[key] == "num_active_blocks" for key in values)
    assert {key: found.summary[key] for key in NOTE.scalars if key in found.summary} == {
        "area/a": 0.75,
        "half_depth/quality": 0.75,
        "full/quality": 0.75,
    }


def test_what_is_not_known_of_the_full_model_is_left_out() -> None:
    assert full_values(replace(NOTE, full={"quality": 1.0, "low": 1.0, "high": 1.0}), NOTE.curves).keys() == {
        *("quality/a", "low/a", "high/a")
    }


def test_a_chart_that_is_there_stays_and_a_refusal_is_told() -> None:
    api = FakeApi()
    upload_charts([CHART, CHART], "me", api)
    upload_charts([CHART], "me", api)
    assert len(api.charts) == 1


def test_what_the_server_says_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = fake_server(monkeypatch)
    folder = written(tmp_path / "a", NOTE)

    def refuse(**_: Any) -> str:
        raise wandb.Error("no quota")

    api.create_custom_chart = refuse  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="--wandb: the server did not do it: no quota"):
        publish_workspace([folder])
    api.default_entity = None
    with pytest.raises(ValueError, match="expected --entity NAME"):
        publish_workspace([folder])


def test_without_an_account_it_says_how_to_log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_wandb(tmp_path / "home", monkeypatch)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="wandb login"):
        publish_workspace([written(tmp_path / "a", NOTE)])
