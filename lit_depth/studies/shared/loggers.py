"""What every active logger gets: what identifies the run, the numbers of a report, and its figures if it takes some."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from lit_depth.results.report import Report
from lit_depth.studies.shared.identity import read_manifest

_OF_MANIFEST = ("command", "run", "arguments", "versions", "execution")
_OF_MODEL = ("weights", "files", "modules", "attention", "decoding")


@dataclass(frozen=True)
class RunNames:
    """How a run is called in a dashboard, from its folder ``<command>/<name>`` and the manifest in it."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder) or {"arguments": {}, "model": {}}

    @property
    def command(self) -> str:
        return self.manifest.get("command") or self.folder.parent.name

    @property
    def model(self) -> str:
        return Path(str(self.manifest["arguments"].get("model.checkpoint", "model"))).name

    @property
    def tasks(self) -> list[str]:
        return self.manifest["arguments"].get("data.tasks") or []

    @property
    def config(self) -> dict[str, Any]:
        """What identifies the run: the manifest, without the settings of the model that its digests stand for."""
        manifest = self.manifest
        model = {key: value for key, value in manifest["model"].items() if key in _OF_MODEL}
        return {key: manifest[key] for key in _OF_MANIFEST if key in manifest} | {"model": model}

    @property
    def name(self) -> str:
        tasks = self.tasks if len(self.tasks) < 4 else [f"{len(self.tasks)} tasks"]
        return ", ".join([self.model, *tasks, self.folder.name])

    @property
    def group(self) -> str:
        return f"{self.command}, {self.model}"

    @property
    def tags(self) -> list[str]:
        return list(dict.fromkeys([*self.tasks, *(self.manifest["arguments"].get("policies") or ())]))


def open_loggers(loggers: list[Logger], folder: Path) -> None:
    """Tell every logger whose run this is, before anything is logged: names, and what identifies it."""
    names = RunNames(folder)
    for logger in loggers:
        if _kind(logger) == "WandbLogger":
            from lit_depth.integrations import wandb

            wandb.open_run(logger, names)  # type: ignore[arg-type]
        logger.log_hyperparams(names.config)


def log_report(logger: Logger, report: Report, folder: Path, name: str, result: Mapping[str, Any]) -> None:
    """Log to Weights & Biases all that a report keeps for loggers; to any other logger its numbers and figures.

    Numbers along an axis are logged at it as the step. TensorBoard and MLflow take the figures too.
    """
    if _kind(logger) == "WandbLogger":
        from lit_depth.integrations import wandb

        wandb.log_report(logger, report, folder, name, result)  # type: ignore[arg-type]
        return
    for row in report.curves.rows if report.curves else ():
        logger.log_metrics(dict(row), step=int(row[report.curves.step]))  # type: ignore[union-attr]
    if numbers := report.numbers:
        logger.log_metrics(numbers)
    if (log_figure := _FIGURES.get(_kind(logger))) is not None:
        for figure in report.figures:
            log_figure(logger, figure, folder / "figures" / f"{figure}.png")
    logger.save()


def _kind(logger: Logger) -> str:
    """The logger's own class or the one of Lightning's that it is made from; without importing any."""
    names = [base.__name__ for base in type(logger).__mro__]
    return next((name for name in names if name in ("WandbLogger", *_FIGURES)), names[0])


def _to_tensorboard(logger: Any, name: str, path: Path) -> None:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        logger.experiment.add_image(f"figures/{name}", np.asarray(image.convert("RGB")), dataformats="HWC")


def _to_mlflow(logger: Any, name: str, path: Path) -> None:
    logger.experiment.log_artifact(logger.run_id, str(path), "figures")


_FIGURES: dict[str, Callable[[Any, str, Path], None]] = {
    "TensorBoardLogger": _to_tensorboard,
    "MLFlowLogger": _to_mlflow,
}
