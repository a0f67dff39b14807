"""Whatever a report keeps for loggers is in the offline run of Weights & Biases, under its name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from lit_depth.integrations.run_notes import read_note
from lit_depth.integrations.wandb import log_report, open_run
from lit_depth.results.charts import Bar, importance_bars
from lit_depth.results.report import Curves, Report, Table
from lit_depth.results.terminal import printing
from tests.helpers.wandb_run import files_of, logged_report, offline_run, read_table


def figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def test_everything_of_a_report_is_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(
        "Title",
        "Headline.",
        [],
        "a kind",
        figures={"curve": figure},
        files={"scores.json": {"0": 0.5}},
        tables={"test/rows": Table(["block", "drop"], [[0, 0.5], [1, None]])},
        scalars={"full/quality": 0.75, "withheld": ""},
        curves=Curves("num_active_blocks", [{"num_active_blocks": 4, "quality/a": 0.5}, {"num_active_blocks": 8}]),
        charts={"bars": importance_bars([Bar("0", 0.5, [0.25, 0.75])], {"title": "Bars"})},
        metadata={"split": "calibration"},
    )
    logged = logged_report(report, "result.json", {"a": [1, 2.5]}, tmp_path, monkeypatch)
    assert logged.metrics["quality/a"] == "num_active_blocks"
    assert [row["quality/a"] for row in logged.history if "quality/a" in row] == [0.5]
    media = logged.history[-1]
    assert read_table(logged, media["test/rows"]) == [{"block": 0, "drop": 0.5}, {"block": 1, "drop": None}]
    bars = {"block": "0", "drop": 0.5, "low": 0.25, "high": 0.75, "differs": True}
    assert read_table(logged, media["charts/bars"]) == [bars]
    drawn = tmp_path / "result" / "figures" / "curve.png"
    assert (logged.files / media["figures/curve"]["path"]).read_bytes() == drawn.read_bytes()
    assert logged.summary["full/quality"] == 0.75 and logged.summary["withheld"] == ""
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "a kind"]
    assert artifact.name == "result" and files_of(artifact) == {"result.json", "scores.json"}
    entries = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert entries.pop("figures/curve.png").read_bytes() == drawn.read_bytes()
    content = {name: path.read_text() for name, path in entries.items()}
    assert json.loads(content["result.json"]) == {"a": [1, 2.5]} and json.loads(content["scores.json"]) == {"0": 0.5}
    assert json.loads(artifact.metadata) == {"split": "calibration"}
    note = read_note(tmp_path / "result")
    assert (note.id, note.project, note.offline) == (logged.run.run_id, "lit-depth-tests", True)
    assert Path(note.files) == logged.files.parent  # what wandb sync takes
    assert (note.step, note.curves, note.steps) == ("num_active_blocks", ("quality/a",), (4, 8))
    assert note.media == ("figures/curve",) and note.scalars == ("full/quality", "withheld")
    assert note.charts["bars"].columns == {name: name for name in bars} and note.charts["bars"].words == {
        "title": "Bars"
    }


def test_importing_integrations_does_not_import_wandb() -> None:
    code = "import sys, lit_depth.integrations; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Names(NamedTuple):
    """How a run is called."""

    folder: Path = Path("out/compare/x")
    name: str = "model, task, x"
    group: str = "compare, model"
    command: str = "compare"
    tags: Sequence[str] = ("task", "t" * 70)


def begun_with(logger: WandbLogger, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the run of a logger is begun with."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **options: given.update(options))
    open_run(logger, Names())  # type: ignore[arg-type]
    _ = logger.experiment
    assert "anonymous" not in given
    return given


def test_a_run_is_begun_in_its_folder_and_under_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    given = begun_with(WandbLogger(project="mine"), monkeypatch)
    expected = {"name": "model, task, x", "group": "compare, model", "job_type": "compare", "dir": "out/compare/x"}
    assert {key: given[key] for key in expected} == expected and given["project"] == "mine"
    assert begun_with(WandbLogger(), monkeypatch)["project"] == "lit-depth"
    monkeypatch.setenv("WANDB_PROJECT", "chosen")
    assert begun_with(WandbLogger(), monkeypatch)["project"] == "chosen"
    assert given["tags"] == ["task", "t" * 64]  # the server takes no longer ones


def test_live_series_are_history_and_at_the_end_no_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def log(logger: WandbLogger) -> None:
        logger.log_metrics({"live/quality/full": 0.5, "live/samples": 4.0}, step=4)
        log_report(logger, Report("T", "H", [], "kind", scalars={"quality": 0.5}), tmp_path, "result.json", {})

    logged = offline_run(log, tmp_path, monkeypatch)
    row = logged.history[0]
    assert (row["live/quality/full"], row["live/samples"], row["trainer/global_step"]) == (0.5, 4.0, 4)
    assert logged.summary["quality"] == 0.5 and not [key for key in logged.summary if key.startswith("live/")]


def test_what_the_user_chose_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"name": "mine", "group": "ours", "job_type": "try", "tags": ["a"]}
    given = begun_with(WandbLogger(save_dir=tmp_path, **chosen), monkeypatch)
    assert {key: given[key] for key in chosen} == chosen and given["dir"] == str(tmp_path)


@pytest.mark.parametrize("mode", ["quiet", "json"])
def test_nothing_is_printed_beside_what_a_machine_reads(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    assert "settings" not in begun_with(WandbLogger(), monkeypatch)
    with printing(mode):
        assert begun_with(WandbLogger(), monkeypatch)["settings"].silent
        chosen = wandb.Settings(silent=False)
        assert begun_with(WandbLogger(settings=chosen), monkeypatch)["settings"] is chosen


class OnlineRun:
    """As much of a run with a server as is asked of it."""

    offline = False
    id, name, project, entity, dir = "a1", "x", "lit-depth", "me", "/elsewhere/wandb/run-a1/files"

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.config = SimpleNamespace(update=lambda *_, **__: None)
        self.used: list[Any] = []
        self.made: list[Any] = []

    def log(self, values: dict[str, Any]) -> None: ...

    def use_artifact(self, artifact: Any) -> None:
        self.used.append(artifact)

    def log_artifact(self, artifact: Any) -> None:
        self.made.append(artifact)


def lineage(folder: Path, weights: str, data: str) -> tuple[OnlineRun, dict[str, str]]:
    arguments = {"model.checkpoint": "org/model", "data.tasks": ["t"], "data fingerprint, t, validation": data}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"arguments": arguments, "model": {"weights": weights}}))
    run = OnlineRun()
    log_report(SimpleNamespace(experiment=run), Report("T", "H", [], "kind"), folder, "result.json", {})  # type: ignore[arg-type]
    return run, {artifact.type: artifact.name for artifact in run.used}


def test_a_result_descends_from_the_checkpoint_and_the_data_by_their_fingerprints(tmp_path: Path) -> None:
    run, first = lineage(tmp_path / "x", "ab", "8 samples")
    assert set(first) == {"model", "dataset"} and [artifact.name for artifact in run.made] == ["result-model-x"]
    assert run.made[0].metadata["model"]["weights"] == "ab"
    note = read_note(tmp_path / "x")
    assert (note.id, note.entity, note.offline, note.files) == ("a1", "me", False, "/elsewhere/wandb/run-a1")
    assert lineage(tmp_path / "y", "ab", "8 samples")[1] == first
    other = lineage(tmp_path / "z", "cd", "8 samples")[1]
    assert other["dataset"] == first["dataset"] and other["model"] != first["model"]
    other = lineage(tmp_path / "z", "ab", "9 samples")[1]
    assert other["dataset"] != first["dataset"] and other["model"] == first["model"]
