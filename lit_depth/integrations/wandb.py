"""Reports in Weights & Biases. It imports wandb, as `wandb_panels` and `wandb_workspace` do: import where needed."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_depth.integrations.run_notes import LoggedChart, RunNote, write_note
from lit_depth.results.charts import preset, preset_names
from lit_depth.results.page import PAGE
from lit_depth.results.report import Curves, Report, Table
from lit_depth.results.store import MANIFEST, to_plain
from lit_depth.results.terminal import terminal_mode


class Names(Protocol):
    """How a run is called, and what identifies it."""

    folder: Path

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def command(self) -> str: ...
    @property
    def tags(self) -> list[str]: ...


PROJECT = "lit-depth"
_LIGHTNINGS = "lightning_logs"  # the project that its logger names where it is told none
_LIVE = "live/"  # begins the names of what is logged while a sweep runs
_MOST = 64  # characters of a tag
# of a run's folder, besides what its report names
_OF_FOLDER = (MANIFEST, "records.parquet", PAGE)

# what a result says of its samples
_OF_RESULT = (
    "task",
    "metric",
    "num_samples",
    "num_bad_samples",
    "num_blocks",
    "num_requests",
    "latency_device",
    "device",
)


@rank_zero_only
def open_run(logger: WandbLogger, names: Names) -> None:
    """Name the run that a logger is about to begin, and put its files into the folder of the run.

    What the user chose stays. A run that was begun by somebody else keeps its names. The project is ``lit-depth``
    unless the logger or ``WANDB_PROJECT`` names another. Where a command prints no table (``--quiet``, ``--json``),
    wandb prints nothing either: offline it would tell where its files are between the lines that a machine reads.
    """
    options = logger._wandb_init
    if options["project"] == _LIGHTNINGS and "WANDB_PROJECT" not in os.environ:
        options["project"] = PROJECT
    if options["dir"] in (None, "."):  # Lightning's default is the working folder
        options["dir"] = str(names.folder)
    found: dict[str, Any] = {"name": names.name, "group": names.group, "job_type": names.command}
    found["tags"] = [tag[:_MOST] for tag in names.tags]
    options.update({key: value for key, value in found.items() if options.get(key) is None})
    if terminal_mode() != "table" and options.get("settings") is None:
        options["settings"] = wandb.Settings(silent=True)
    if options.get("anonymous") is None:  # Lightning passes it on even so, and each run warns of it
        options.pop("anonymous", None)


@rank_zero_only
def log_report(logger: WandbLogger, report: Report, folder: str | Path, name: str, result: Mapping[str, Any]) -> None:
    """Log a report to a logger's run, online or offline. Nothing is averaged or rounded here.

    | of the report | in the run |
    |---|---|
    | ``curves`` | one history row per step, each curve against the axis of the curves |
    | ``tables`` | tables under their names |
    | ``charts`` | the rows of each as the table ``charts/<name>``, which `lit_depth.results.charts.preset` draws |
    | ``figures`` | the PNG files, as ``figures/<name>`` |
    | ``report.html`` | the page, as ``report`` |
    | ``scalars`` | the run's summary |
    | the result, ``files``, ``written``, figures, page, manifest, records | an artifact of the report's kind |

    The artifact is called as the result's file, the model and the run; checkpoint and data that it was made from are
    its lineage where there is a server, and in its metadata everywhere. The folder gets a note of the run
    (`lit_depth.integrations.run_notes`), by which panels are made of it later.

    Args:
        logger: Its run is created if there is none yet, and stays open.
        report: What to log.
        folder: Folder of the run, which holds the figures in ``figures/`` and all files but the result's.
        name: Name of the result's file.
        result: Content of it.
    """
    folder, run = Path(folder), logger.experiment
    if report.curves is not None:
        _log_curves(run, report.curves)
    tables = {**report.tables, **{f"charts/{key}": chart.table for key, chart in report.charts.items()}}
    media: dict[str, Any] = {key: _table(table) for key, table in tables.items()}
    media |= {f"figures/{key}": wandb.Image(str(folder / "figures" / f"{key}.png")) for key in report.figures}
    if (folder / PAGE).is_file():
        media["report"] = wandb.Html(str(folder / PAGE), inject=False)
    run.log(media)
    run.summary.update(dict(report.scalars))
    # how it went is history: the table of runs has a column for each value of the summary
    for key in [key for key in dict(run.summary) if key.startswith(_LIVE)]:
        del run.summary[key]
    run.config.update({key: result[key] for key in _OF_RESULT if key in result}, allow_val_change=True)
    sources = _sources(folder)
    metadata = {**report.metadata, **{kind: found for kind, (_, found) in sources.items()}}
    artifact = wandb.Artifact(_artifact_name(folder, name), type=report.kind, metadata=metadata)
    with artifact.new_file(name, encoding="utf-8") as file:
        json.dump(to_plain(result), file, indent=2, allow_nan=False)
    figures = [f"figures/{key}.png" for key in report.figures]
    there = [each for each in _OF_FOLDER if (folder / each).is_file()]
    for each in dict.fromkeys([*report.files, *report.written, *figures, *there]):
        artifact.add_file(str(folder / each), name=each)
    if not run.offline:
        for kind, (source, found) in sources.items():
            run.use_artifact(wandb.Artifact(source, type=kind, metadata=found))
    run.log_artifact(artifact)
    write_note(folder, _note(run, report, folder, result, media))


def _note(run: Any, report: Report, folder: Path, result: Mapping[str, Any], media: Mapping[str, Any]) -> RunNote:
    manifest, curves = _manifest(folder), report.curves
    files = Path(run.dir).parent  # above the folder that holds what the user sees
    return RunNote(
        id=run.id,
        project=run.project,
        entity=run.entity or "",
        offline=bool(run.offline),
        files=str(files.relative_to(folder) if files.is_relative_to(folder) else files),
        name=run.name or run.id,
        command=manifest.get("command", ""),
        fingerprint=manifest.get("run", ""),
        model=Path(str(manifest.get("arguments", {}).get("model.checkpoint", ""))).name,
        task=str(result.get("task", "")),
        title=report.title,
        headline=report.headline,
        step=curves.step if curves else "",
        curves=tuple(dict.fromkeys(key for row in curves.rows for key in row if key != curves.step)) if curves else (),
        steps=tuple(row[curves.step] for row in curves.rows) if curves else (),
        scalars=tuple(report.scalars),
        charts={
            name: LoggedChart(chart.kind, preset(chart), *preset_names(chart)) for name, chart in report.charts.items()
        },
        media=tuple(key for key in media if key == "report" or key.startswith("figures/")),
        full=_full_model(report, result),
    )


def _full_model(report: Report, result: Mapping[str, Any]) -> dict[str, float]:
    """What is known of the full model where one quality is that of the whole result."""
    full = result.get("full") or result.get("report", {}).get("full") or {}
    if "quality" not in full:
        return {}
    low, high = full.get("quality_ci") or (full["quality"], full["quality"])
    latency = report.scalars.get("full/latency_ms/total")
    return {"quality": full["quality"], "low": low, "high": high} | (
        {"latency_ms": latency} if isinstance(latency, float) else {}
    )


def _artifact_name(folder: Path, name: str) -> str:
    """Of which model and run a result is; runs of one name are versions of one artifact."""
    manifest = _manifest(folder)
    model = Path(str(manifest.get("arguments", {}).get("model.checkpoint", ""))).name
    parts = [Path(name).stem, *([model, folder.name] if manifest else [])]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(parts))[:128]


def _sources(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Checkpoint and data by their fingerprints: name of the artifact of each, and what is known of it."""
    manifest = _manifest(folder)
    if not manifest:
        return {}
    model, arguments = manifest["model"], manifest["arguments"]
    checkpoint = {"checkpoint": arguments.get("model.checkpoint"), "weights": model.get("weights")}
    data = {key: value for key, value in arguments.items() if key.startswith("data")}
    return {
        "model": (f"checkpoint-{_digest(checkpoint)}", checkpoint | {"files": model.get("files")}),
        "dataset": (f"data-{_digest(data)}", data),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _log_curves(run: Any, curves: Curves) -> None:
    # hidden: as an axis it needs no panel of its own
    run.define_metric(curves.step, hidden=True)
    for key in dict.fromkeys(key for row in curves.rows for key in row if key != curves.step):
        # exact names, because the logger has claimed "*" for trainer/global_step
        run.define_metric(key, step_metric=curves.step)
    for row in curves.rows:
        run.log(dict(row))


def _table(table: Table) -> wandb.Table:
    # a column may hold names and numbers, or nothing
    return wandb.Table(columns=list(table.headers), data=[list(row) for row in table.rows], allow_mixed_types=True)
