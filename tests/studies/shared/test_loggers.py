"""What every active logger is told of a run: names and configuration first, numbers and figures at the end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning_utilities.core.imports import RequirementCache
from wandb_workspaces.reports.v2 import CustomChart, LinePlot

from lit_depth.integrations.run_notes import read_note
from lit_depth.integrations.wandb_panels import build_workspace
from lit_depth.options import RUN_FOLDER, new_parser
from lit_depth.results.report import Report
from lit_depth.studies.shared.loggers import RunNames, log_report
from lit_depth.studies.shared.publish import draw
from tests.helpers.commands import run
from tests.helpers.wandb_run import files_of, finished_run, quiet_wandb, read_table

SMALL = ["--data.num_samples", "8", "--data.calibration_samples", "8", "--data.batch_size", "4"]
COMPARE = [
    "compare",
    *SMALL,
    "--policies",
    "prefix",
    "suffix",
    "--num_active_blocks",
    "2",
    "4",
    "--num_requests",
    "2",
]
OF_AN_OPTIMISER = {"learning_rate", "betas", "weight_decay", "warmup_steps", "router_loss"}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    quiet_wandb(tmp_path / "wandb_home", monkeypatch)
    return tmp_path / "here"


@pytest.mark.slow
def test_a_comparison_is_named_and_identified_in_its_run(small_checkpoint: Path, workplace: Path) -> None:
    out = workplace.parent / "out"
    command = [*COMPARE, "--model.checkpoint", small_checkpoint, "--output_dir", out, "--name", "first"]
    assert run([*command, "--trainer.logger", "WandbLogger"]) == 0
    folder = out / "compare" / "first"
    logged = finished_run(folder)  # so it lies below --output_dir
    assert not list(workplace.iterdir())

    model = small_checkpoint.name
    assert logged.run.display_name == f"{model}, shapes_vqa, first"
    assert (logged.run.run_group, logged.run.job_type) == (f"compare, {model}", "compare")
    assert set(logged.run.tags) == {"shapes_vqa", "prefix", "suffix"}
    manifest, result = (json.loads((folder / name).read_text()) for name in ("manifest.json", RESULT))
    for key in ("arguments", "versions", "run", "execution"):
        assert logged.config[key] == manifest[key]
    digests = logged.config["model"]
    assert digests == {key: manifest["model"][key] for key in digests} and {"weights", "decoding"} <= set(digests)
    assert logged.config["num_samples"] == 8 and logged.config["task"] == "shapes_vqa"
    assert not OF_AN_OPTIMISER & set(logged.config)

    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "comparison"]
    assert artifact.name == f"m5_mask_strategy_comparison-{model}-first"
    assert files_of(artifact) == {RESULT, "manifest.json", "records.parquet", "report.html"}
    assert json.loads(artifact.metadata)["model"]["weights"] == manifest["model"]["weights"]
    assert json.loads(artifact.metadata)["dataset"]["data.tasks"] == ["shapes_vqa"]

    (strategy,) = [s for s in result["strategies"] if (s["policy"], s["num_active_blocks"]) == ("suffix", 4)]
    media = logged.history[-1]
    (drawn,) = [
        row
        for row in read_table(logged, media["charts/quality_vs_blocks"])
        if (row["policy"], row["blocks"]) == ("suffix", 4)
    ]
    low, high = strategy["drop_simultaneous_ci"]
    full = result["full"]["quality"]
    expected = [strategy["quality"], max(0.0, full - high), full - low]
    assert [drawn["quality"], drawn["low"], drawn["high"]] == pytest.approx(expected)
    (row,) = [row for row in logged.history if row.get("num_active_blocks") == 4 and "low/suffix" in row]
    assert [row[f"{name}/suffix"] for name in ("quality", "low", "high")] == pytest.approx(expected)
    assert logged.summary["area/suffix"] == pytest.approx(
        np.mean([s["quality"] for s in result["strategies"] if s["policy"] == "suffix"])
    )
    assert np.isfinite(logged.summary["latency/total_ms_per_block"]) and "report" in media


RESULT = "m5_mask_strategy_comparison.json"
COMMANDS = {
    "compare": COMPARE,
    "importance": ["importance", *SMALL],
    "consistency": ["consistency", *SMALL],
    "interactions": ["interactions", *SMALL, "--num_samples", "8", "--num_held_out", "4"],
    "search": ["search", *SMALL, "--beam_width", "1", "--max_blocks_to_remove", "1"],
    "latency": ["latency", "--num_samples", "2", "--num_active_blocks", "3", "6", "--new_tokens", "2"],
    "select": ["select", *SMALL, "--policies", "prefix", "--num_active_blocks", "3", "6", "--num_requests", "2"],
    "tokens": ["tokens"],
    "answers": ["answers", *SMALL, "--num_active_blocks", "3"],
    "export": ["export", "--skip", "1", "--weights", "false"],
}


# file of the result, kind of the artifact, and value, low and high of the curves that have a band
KEPT = {
    "compare": (RESULT, "comparison", ("quality", "low", "high")),
    "importance": ("importance.json", "importance", ("drop", "drop_low", "drop_high")),
    "consistency": ("consistency.json", "consistency", None),
    "interactions": ("interactions.json", "interactions", None),
    "search": ("search.json", "search", ("drop", "drop_low", "drop_high")),
    "latency": ("latency.json", "latency", None),
    "select": ("selection.json", "selection", None),
    "tokens": ("tokens.json", "tokens", None),
    "answers": ("answers.json", "answers", ("agreement", "low", "high")),
    "export": ("export.json", "export", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_kept_whole_and_logs_the_same_numbers_to_any_logger(
    command: str, small_checkpoint: Path, workplace: Path
) -> None:
    out, model = workplace.parent / "out", small_checkpoint.name
    loggers = ["--trainer.logger+", "WandbLogger", "--trainer.logger+", "CSVLogger"]
    options = ["--model.checkpoint", small_checkpoint, "--output_dir", out, *loggers]
    assert run([*COMMANDS[command], *options]) == 0
    folder = out / command / "default"
    assert not list(workplace.iterdir()) and [path.name for path in out.iterdir()] == [command]
    logged, manifest = finished_run(folder), json.loads((folder / "manifest.json").read_text())

    tasks, policies = manifest["arguments"]["data.tasks"], manifest["arguments"].get("policies") or []
    assert logged.run.display_name == ", ".join([model, *tasks, "default"])
    assert (logged.run.run_group, logged.run.job_type) == (f"{command}, {model}", command)
    assert set(logged.run.tags) == {*tasks, *policies} and not OF_AN_OPTIMISER & set(logged.config)
    for key in ("command", "run", "arguments", "versions", "execution"):
        assert logged.config[key] == manifest[key]

    file, kind, band = KEPT[command]
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == kind]
    there = {name for name in ("records.parquet", "layer_importance_scores.json") if (folder / name).is_file()}
    assert {file, "manifest.json", "report.html", *there} <= files_of(artifact)
    entries = {entry.path: entry.size for entry in artifact.manifest.contents}
    assert {path: (folder / path).stat().st_size for path in entries if path != file} == {
        path: size for path, size in entries.items() if path != file
    }
    media = logged.history[-1]
    own = ("_", "trainer/")  # what Weights & Biases and its logger say
    panels = build_workspace([read_note(folder)], "me", "lit-depth", "mine")
    drawn = [panel for section in panels.sections for panel in section.panels]
    tables = {each.query["summaryTable"]["tableKey"] for each in drawn if isinstance(each, CustomChart)}
    assert tables == {key for key in media if key.startswith("charts/")}
    lines = [key for each in drawn if isinstance(each, LinePlot) for key in (each.x, *each.y) if each.y]
    assert set(lines) == {key for row in logged.history[:-1] for key in row if not key.startswith(own)}
    columns = {name.removeprefix("summary:") for name in panels.runset_settings.pinned_columns}
    assert columns - {"run:displayName"} <= set(logged.summary)
    figures = {f"figures/{path.stem}" for path in (folder / "figures").glob("*.png")}
    assert figures <= set(media) and "report" in media

    (path,) = folder.glob("lightning_logs/*/metrics.csv")  # by default the run's files are all in one place
    with open(path, newline="") as stream:
        written = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]
    curves = [{key: row[key] for key in row if not key.startswith(own)} for row in logged.history[:-1]]
    *rows, numbers = [{key: value for key, value in row.items() if key != "step"} for row in written]
    assert [row for row in rows if row] == [pytest.approx(row) for row in curves]
    # the summary has the last of every curve too
    left_out = {key for row in curves for key in row}
    told = {key: value for key, value in logged.summary.items() if isinstance(value, (int, float))}
    told = {key: float(value) for key, value in told.items() if key not in left_out and not key.startswith(own)}
    assert numbers and numbers == pytest.approx(told)

    if band is not None:
        value, low, high = band
        series = [(row, key.partition("/")[2]) for row in curves for key in row if key.startswith(f"{value}/")]
        assert series and all(
            row[f"{low}/{name}"] <= row[f"{value}/{name}"] <= row[f"{high}/{name}"] for row, name in series
        )


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_a_logger_without_a_folder_writes_into_that_of_the_run(logger: str) -> None:
    parser = new_parser()
    parser.add_lightning_class_args(Trainer, "trainer")
    given = lambda *more: parser.parse_args([f"--trainer.logger={logger}", *more]).trainer.logger.init_args  # noqa: E731
    assert given().save_dir == RUN_FOLDER
    assert given("--trainer.logger.save_dir", "own").save_dir == "own"


def test_a_logger_whose_package_is_missing_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = RequirementCache("no-such-package")
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", missing)
    assert run(["latency", "--trainer.logger", "MLFlowLogger"]) == 2
    error = capsys.readouterr().err
    assert "--trainer.logger: lightning.pytorch.loggers.MLFlowLogger" in error and "no-such-package" in error


def test_the_name_of_many_tasks_is_their_number(tmp_path: Path) -> None:
    folder = tmp_path / "compare" / "x"
    folder.mkdir(parents=True)
    arguments = {"model.checkpoint": "/somewhere/model-1B", "data.tasks": list("abcd"), "policies": ["prefix", "a"]}
    manifest = {"arguments": arguments, "command": "compare", "run": "1", "model": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    names = RunNames(folder)
    assert (names.name, names.group) == ("model-1B, 4 tasks, x", "compare, model-1B")
    assert names.tags == ["a", "b", "c", "d", "prefix"]


class TensorBoardLogger:
    """As much as is asked of Lightning's, which needs a package that is not installed."""

    def __init__(self) -> None:
        self.images: dict[str, Any] = {}
        self.experiment = SimpleNamespace(add_image=lambda name, image, dataformats: self.images.update({name: image}))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def save(self) -> None: ...


class MLFlowLogger(TensorBoardLogger):
    """The same of MLflow's."""

    run_id = "7"

    def __init__(self) -> None:
        self.files: list[tuple[str, ...]] = []
        self.experiment = SimpleNamespace(log_artifact=lambda *place: self.files.append(place))


def test_loggers_that_take_figures_get_them(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    report = Report("T", "H", [], "kind", figures={"curve": lambda: Figure(figsize=(1, 2))})
    draw(report, tmp_path / "figures")
    board, flow = TensorBoardLogger(), MLFlowLogger()
    for logger in (board, flow):
        log_report(logger, report, tmp_path, "result.json", {})  # type: ignore[arg-type]
    assert board.images["figures/curve"].shape == (300, 150, 3)
    assert flow.files == [("7", str(tmp_path / "figures" / "curve.png"), "figures")]
