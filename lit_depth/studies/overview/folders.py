"""Folders of results: found, read, and told again as their commands told them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_depth.results.reading import read_object
from lit_depth.results.report import Report
from lit_depth.results.store import MANIFEST
from lit_depth.studies.answers.report import report as answers
from lit_depth.studies.compare.report import report as compare
from lit_depth.studies.confirm.report import report as ingest
from lit_depth.studies.consistency.report import report as consistency
from lit_depth.studies.export.report import report as export
from lit_depth.studies.importance.report import report as importance
from lit_depth.studies.interactions.report import report as interactions
from lit_depth.studies.latency.plan import report as plan
from lit_depth.studies.latency.report import report as latency
from lit_depth.studies.search.report import report as search
from lit_depth.studies.select.report import report as select
from lit_depth.studies.shared.comparison_schema import validate_comparison
from lit_depth.studies.tokens.report import report as tokens

_DEPTH = 3  # folders below a given one that are looked through
# file of each command's result, and what tells it
_COMMANDS: dict[str, tuple[str, Callable[[Any], Report]]] = {
    "answers": ("answers.json", answers),
    "compare": ("m5_mask_strategy_comparison.json", lambda result: compare(validate_comparison(result))),
    "consistency": ("consistency.json", consistency),
    "export": ("export.json", export),
    "importance": ("importance.json", importance),
    "ingest": ("ingest.json", ingest),
    "interactions": ("interactions.json", interactions),
    "latency": ("latency_details.json", latency),
    "plan": ("plan.json", plan),
    "search": ("search.json", search),
    "select": ("selection.json", select),
    "tokens": ("tokens.json", lambda result: tokens(result, ())),
}


class Stored(NamedTuple):
    """A run that has ended, read from its folder."""

    folder: Path
    manifest: Mapping[str, Any]
    result: Mapping[str, Any]
    report: Report

    @property
    def command(self) -> str:
        """What made it."""
        return str(self.manifest["command"])

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Those of the run."""
        return self.manifest["arguments"]


def read_folders(given: Sequence[Path]) -> tuple[list[Stored], list[str]]:
    """Runs in the order in which their folders are given, and remarks on what was left out.

    Of a folder above several runs all that have ended are taken. A run that is given twice, or copied, counts once.

    Raises:
        ValueError: If a folder is not there, holds no result, or a file of it is damaged or of another version.
    """
    stored: dict[Path, Stored] = {}
    remarks: list[str] = []
    for folder in given:
        for each in _runs_in(folder, remarks):
            if each.resolve() not in stored:
                stored[each.resolve()] = read_stored(each)
    kept: dict[Any, Stored] = {}
    for place, run in stored.items():
        first = kept.setdefault(run.manifest.get("run") or place, run)
        if first is not run:
            remarks.append(f"{run.folder} is the same run as {first.folder} and is left out.")
    return list(kept.values()), remarks


def read_stored(folder: Path) -> Stored:
    """The run of one folder.

    Raises:
        ValueError: If it has not ended, or a file is damaged or of another version.
    """
    manifest = _read(folder / MANIFEST)
    command = manifest.get("command", folder.parent.name)
    if command not in _COMMANDS:
        raise ValueError(f"{folder / MANIFEST}: expected a run of {', '.join(_COMMANDS)}, got {command!r}")
    name, tell = _COMMANDS[command]
    if not (folder / name).is_file():
        raise ValueError(
            f"{folder} has no {name}: the run has not ended. Start the same command again, and it is continued"
        )
    result = _read(folder / name)
    if not isinstance(manifest.get("arguments"), dict):
        raise ValueError(f"{folder / MANIFEST}: expected the arguments of a run in it")
    try:
        told = tell(result)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        versions = manifest.get("versions")
        version = versions.get("lit_depth") if isinstance(versions, dict) else None
        raise ValueError(
            f"{folder / name} cannot be told ({type(error).__name__}: {error}): it is damaged, or lit_depth "
            f"{version or 'of another version'} made it. Run {command} again under another --name"
        ) from error
    return Stored(folder, {**manifest, "command": command}, result, told)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _runs_in(folder: Path, remarks: list[str]) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"expected a folder of results such as results/compare/default, {folder} is none")
    if (folder / MANIFEST).is_file():
        return [folder]
    found = sorted(
        path.parent for depth in range(1, _DEPTH + 1) for path in folder.glob("/".join(["*"] * depth + [MANIFEST]))
    )
    ended = [each for each in found if _has_ended(each)]
    remarks += [f"{each} has not ended and is left out." for each in found if each not in ended]
    if not ended:
        raise ValueError(
            f"{folder} holds no result: expected a folder that a command wrote, such as results/compare/default, or "
            "one above such folders"
        )
    return ended


def _has_ended(folder: Path) -> bool:
    command = _read(folder / MANIFEST).get("command", folder.parent.name)
    return command not in _COMMANDS or (folder / _COMMANDS[command][0]).is_file()
