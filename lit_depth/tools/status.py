"""How far runs have come, from their files alone: ``lit-depth status DIR...``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_depth.commands import result_files
from lit_depth.results.locks import is_held
from lit_depth.results.progress import Progress, read_progress
from lit_depth.results.reading import read_object
from lit_depth.results.store import MANIFEST
from lit_depth.results.table import format_table
from lit_depth.results.terminal import tell

_DEPTH = 3  # folders below a given one that are looked through
_HEADERS = ("records of", "done", "of", "share", "processes", "per second", "left", "last written")


def main(argv: Sequence[str]) -> None:
    """Say of running, stopped and finished runs what is recorded, how fast, and how long the rest will take.

    Raises:
        ValueError: If a folder holds no run, or a file of it is damaged; the message says why.
    """
    parser = argparse.ArgumentParser(prog="lit-depth status", description=(main.__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="DIR",
        help="folders of runs, such as results/compare/default, or folders above them, such as results",
    )
    given = [Path(folder).expanduser() for folder in parser.parse_args(argv).folders]
    runs = [describe(folder) for folder in dict.fromkeys(run for each in given for run in find_runs(each))]
    now = time.time()
    tell("\n\n".join(as_text(run, now) for run in runs), {"runs": runs})


def find_runs(folder: Path) -> list[Path]:
    """The folder itself where it is that of a run, else those of all runs below it.

    Raises:
        ValueError: If there is none.
    """
    if (folder / MANIFEST).is_file():
        return [folder]
    patterns = ("/".join(["*"] * depth) for depth in range(1, _DEPTH + 1))
    found = [path.parent for pattern in patterns for path in sorted(folder.glob(f"{pattern}/{MANIFEST}"))]
    if not found:
        raise ValueError(
            f"expected the folder of a run, such as results/compare/default, or one above it, got {folder}, which "
            + ("has no manifest.json" if folder.is_dir() else "is no folder")
        )
    return found


def describe(folder: Path) -> dict[str, Any]:
    """What the files of a run tell; times are in seconds.

    Raises:
        ValueError: If one is damaged.
    """
    try:
        manifest = read_object(folder / MANIFEST)
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST}: {error}") from error
    command = str(manifest.get("command", folder.parent.name))
    result = result_files().get(command)
    held = is_held(folder / ".lock")
    is_finished = result is not None and (folder / result).is_file()
    state = "running" if held else "finished" if is_finished else "unknown" if held is None else "stopped"
    places = {path.parent for path in folder.rglob("*.jsonl") if path.parent != folder}
    parts = {str(place.relative_to(folder)): read_progress(place)._asdict() for place in sorted(places)}
    left = [part["seconds_left"] for part in parts.values() if part["expected"] is not None]
    return {
        "folder": str(folder),
        "command": command,
        "state": state,
        "seconds_left": 0.0 if state == "finished" else None if None in left or not left else sum(left),
        "records": parts,
    }


def as_text(run: Mapping[str, Any], now: float) -> str:
    """What the terminal shows of `describe`, at a time in seconds since 1970."""
    lines = [f"{run['folder']}: {run['command']}, {run['state']}"]
    rows = [_row(name, Progress(**part), now) for name, part in run["records"].items()]
    if not rows:
        return f"{lines[0]}. No records so far."
    if run["state"] != "finished" and (left := run["seconds_left"]) is not None:
        lines[0] += f"; {duration(left)} left of what has begun" if left else "; all is recorded of what has begun"
    return "\n".join([f"{lines[0]}.", format_table(rows, _HEADERS)])


def _row(name: str, part: Progress, now: float) -> list[Any]:
    share = part.done / part.expected if part.expected else None
    return [
        name.removeprefix("records/"),
        part.done,
        part.expected,
        None if share is None else f"{share:.0%}",
        part.num_files,
        None if part.records_per_second is None else f"{part.records_per_second:.3g}",
        None if part.seconds_left is None else duration(part.seconds_left),
        f"{duration(max(now - part.last, 0))} ago",
    ]


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> [duration(each) for each in (0.4, 75, 7384, 200_000)]
    ['0 s', '1 min 15 s', '2 h 3 min', '2 d 7 h']
    """
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    rest, parts = round(seconds), []
    for unit, length in units:
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
