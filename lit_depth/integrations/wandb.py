"""Reports in Weights & Biases. The only module that imports wandb: import it where it is needed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_depth.results.page import PAGE
from lit_depth.results.report import Curves, Report, Table
from lit_depth.results.store import to_plain


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
    | the result, ``files`` and ``written`` | an artifact named as the result's file, of the report's kind |

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
    artifact = wandb.Artifact(Path(name).stem, type=report.kind, metadata=dict(report.metadata))
    with artifact.new_file(name, encoding="utf-8") as file:
        json.dump(to_plain(result), file, indent=2, allow_nan=False)
    for each in (*report.files, *report.written):
        artifact.add_file(str(folder / each))
    run.log_artifact(artifact)


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
