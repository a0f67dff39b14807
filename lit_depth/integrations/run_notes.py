"""What was logged of a run, kept in its folder: enough to build panels of it later, without a network or the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lit_depth.results.reading import read_object
from lit_depth.results.store import write_json

NOTE = "wandb.json"


@dataclass(frozen=True)
class LoggedChart:
    """A chart whose rows are the table ``charts/<name>`` of the run.

    Args:
        kind: Name of the specification.
        spec: Of the preset that draws it (`lit_depth.results.charts.preset`).
        columns: Column of the table by the name that the specification gives it.
        words: Titles by the name that the specification gives them.
    """

    kind: str
    spec: Mapping[str, Any]
    columns: Mapping[str, str]
    words: Mapping[str, str]


@dataclass(frozen=True)
class RunNote:
    """Which run of Weights & Biases a folder was logged to, and under which names.

    Args:
        id: Of the run, on every server that it is synced to.
        project: That it was logged to.
        entity: Its owner; empty for an offline run, which has none yet.
        offline: Whether it waits in ``files`` to be synced.
        files: Folder of the run's files, relative to the result's if it lies in there.
        name: As the dashboard shows it.
        command: That made the result.
        fingerprint: Of the result's arguments, model and data: ``run`` in its manifest and in the run's configuration.
        model: Name of the checkpoint.
        task: That the quality is of.
        title: Of the report.
        headline: Of the report.
        step: Axis of the curves; empty = there are none.
        curves: Their names.
        steps: Values of the axis.
        scalars: Names of the summary.
        charts: By name.
        media: Names of figures and page.
        full: Quality of the full model, its limits ``low`` and ``high``, and its ``latency_ms``, as far as known.
    """

    id: str
    project: str
    entity: str = ""
    offline: bool = True
    files: str = ""
    name: str = ""
    command: str = ""
    fingerprint: str = ""
    model: str = ""
    task: str = ""
    title: str = ""
    headline: str = ""
    step: str = ""
    curves: Sequence[str] = ()
    steps: Sequence[float] = ()
    scalars: Sequence[str] = ()
    charts: Mapping[str, LoggedChart] = field(default_factory=dict)
    media: Sequence[str] = ()
    full: Mapping[str, float] = field(default_factory=dict)


def write_note(folder: Path, note: RunNote) -> None:
    """Write ``wandb.json``; a later run of the folder replaces it."""
    write_json(folder / NOTE, asdict(note))


def read_note(folder: Path) -> RunNote:
    """What the last run of a folder was logged to.

    Raises:
        ValueError: If it was logged nowhere, or the note cannot be read.
    """
    path = folder / NOTE
    if not path.is_file():
        raise ValueError(
            f"expected {path}, which a run that is logged to Weights & Biases writes; give the same command again "
            "with --trainer.logger WandbLogger: it measures nothing twice"
        )
    try:
        content = read_object(path)
        known = {each.name for each in fields(RunNote)}
        found: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items() if key in known
        }
        charts = {key: LoggedChart(**each) for key, each in found.get("charts", {}).items()}
        return RunNote(**{**found, "charts": charts})
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); log the run again") from error
