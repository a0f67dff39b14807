"""Which files of samples are meant: those that are given, and in a folder the newest of each task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lit_depth.integrations.harness_logs import LM_EVAL, LMMS_EVAL, read_harness_log
from lit_depth.integrations.inspect_logs import is_inspect_log, read_inspect_log
from lit_depth.integrations.sample_logs import SampleLog

INSPECT = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d[^_]*)_(?P<task>.+)_[^_]+\.(eval|json)")


def read_logs(paths: Sequence[str | Path]) -> tuple[list[SampleLog], list[str]]:
    """Logs of some files, and of the newest file of each task in some folders; and what is told of the choice.

    Raises:
        ValueError: If a file is no log of samples, a folder has none, or one is given twice.
    """
    files: list[Path] = []
    remarks: list[str] = []
    for path in (Path(each).expanduser() for each in paths):
        if path.is_dir():
            found, told = _newest(path)
            files += found
            remarks += told
        elif path.exists():
            files.append(path)
        else:
            raise ValueError(f"{path} does not exist: expected a file of samples, or a folder of them")
    twice = next((file for number, file in enumerate(files) if any(map(file.samefile, files[:number]))), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice: expected every file once")
    logs = [read_log(file) for file in files]
    return logs, [*remarks, *(remark for log in logs for remark in log.remarks)]


def read_log(path: Path) -> SampleLog:
    """The samples of one file, whichever harness wrote it.

    Raises:
        ValueError: If it is no such file, or damaged.
    """
    try:
        of_inspect = is_inspect_log(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if of_inspect:
        return read_inspect_log(path)
    if path.suffix == ".json":
        raise ValueError(
            f"{path}: expected a file of samples (samples_*.jsonl of lm-eval, *_samples_*.jsonl of lmms-eval, a log of "
            "Inspect), got other JSON; the means of a file of results cannot be paired: evaluate with --log_samples"
        )
    return read_harness_log(path)


def _newest(folder: Path) -> tuple[list[Path], list[str]]:
    """The newest file of each task in a folder and each folder below it, and what is told of those left out."""
    times: dict[tuple[Path, str], list[tuple[str, Path]]] = {}
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        for pattern in (LM_EVAL, LMMS_EVAL, INSPECT):
            if named := pattern.fullmatch(file.name):
                times.setdefault((file.parent, named["task"]), []).append((named["time"], file))
                break
    if not times:
        raise ValueError(
            f"{folder} has no file of samples in it: expected samples_<task>_<time>.jsonl of lm-eval, "
            "<time>_samples_<task>.jsonl of lmms-eval (both with --log_samples), or a log of Inspect"
        )
    newest, remarks = [], []
    for (_, task), found in times.items():
        *older, (_, last) = sorted(found)
        newest.append(last)
        if older:
            left = ", ".join(file.name for _, file in older)
            remarks.append(f"{task}: the newest file was taken, {last.name}; left out: {left}.")
    return newest, remarks
