"""Files of a run: atomic writes, append-only records, the manifest.

A run may be killed at any point. So every whole file is written beside its place and renamed, and records are appended
one line at a time: a line counts once its line feed is on disk.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RECORD_COLUMNS = ("mask", "sample", "image", "score", "prediction", "reference_logprob")
VERSIONED_PACKAGES = ("lit_depth", "torch", "transformers", "lightning")


def prepare_folder(path: str | Path) -> Path:
    """Create a folder and prove that it can be written to, before hours of work depend on it.

    Raises:
        ValueError: If the folder cannot be created or written to.
    """
    folder = Path(path)
    with _readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process: two runs appending to the same records would mix them.

    The lock is the operating system's, so a killed run leaves none behind.

    Raises:
        ValueError: If another process holds it.
    """
    with _readable_errors(folder):
        file = open(folder / ".lock", "w")  # noqa: SIM115 (closed below)
    with file:
        lock(file, folder)
        yield


def lock(file: IO[Any], path: Path) -> None:
    """Hold an open file until it is closed; raise ValueError naming ``path`` if another process holds it."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"{path} is in use by another run: wait for it, or give another --name") from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the body ends without an exception.

    The folder is created. On an exception the old file, if there was one, stays as it was.

    Raises:
        ValueError: If the file cannot be written.
    """
    path = Path(path)
    # Same folder, so that the rename stays within one file system; same suffix, for writers that go by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with _readable_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _readable_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write to {folder}: expected a writable folder ({reason})") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; what UTF-8 cannot hold (half a surrogate pair) becomes a question mark."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: str | Path, obj: Any) -> None:
    """Write an object as indented JSON, atomically; numpy values and paths are converted, key order is kept.

    Raises:
        ValueError: If a number is NaN or infinite (not JSON, and a wrong result), naming where; if the file cannot be
            written.
    """
    plain = _plain(obj)
    write_text(path, json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _plain(obj: Any, where: str = "$") -> Any:
    """The object in JSON's own types; ``where`` is the place named in an error."""
    if hasattr(obj, "tolist"):  # numpy scalars and arrays, torch tensors
        obj = obj.tolist()
    if isinstance(obj, Mapping):
        return {str(key): _plain(value, f"{where}.{key}") for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value, f"{where}[{index}]") for index, value in enumerate(obj)]
    if isinstance(obj, float) and not math.isfinite(obj):
        raise ValueError(f"expected finite numbers, got {obj} at {where}")
    return str(obj) if isinstance(obj, os.PathLike) else obj


def save_figure(fig: Figure, path: str | Path, dpi: int = 150) -> None:
    """Save a matplotlib figure as PNG, atomically."""
    with atomic_path(path) as temporary:
        fig.savefig(temporary, dpi=dpi, format="png")


def write_parquet(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a table, such as the merged records, as parquet, atomically and without its index."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


class RecordWriter:
    """Appends records to a JSON-lines file, one flushed line each; a context manager.

    What a killed run left of its last line is cut off on opening. One file has one writer: use one per process.

    Args:
        path: The file; its folder is created.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rank0.jsonl"
        >>> with RecordWriter(path) as writer:
        ...     writer.write({"mask": "1101", "sample": "7", "score": 1.0})
        >>> read_records([path])[["mask", "score"]].values.tolist()
        [['1101', 1.0]]
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        prepare_folder(self.path.parent)
        with _readable_errors(self.path.parent):
            # unbuffered: what a full disk refuses must not wait in a buffer and fail again on closing
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (closed in close)
        # a process that outlived its killed run may still be writing here
        lock(self._file, self.path)
        with _readable_errors(self.path.parent):
            self._file.seek(0)
            # rfind gives -1 for a file without any complete line: cut to length 0.
            self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record.

        Args:
            record: ``mask`` and ``sample`` identify it; ``image``, ``score``, ``prediction`` and ``reference_logprob``
                are read as columns of their own, and any other key too.

        Raises:
            ValueError: If ``mask`` or ``sample`` is missing, a number is NaN or infinite, or the disk is full.
        """
        missing = {"mask", "sample"} - record.keys()
        if missing:
            raise ValueError(f"expected a record with 'mask' and 'sample', got one without {sorted(missing)}")
        line = (json.dumps(_plain(record), allow_nan=False) + "\n").encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise ValueError(
                f"cannot write to {self.path} ({error.strerror or error}). What was recorded before is kept: make "
                "room, then start the same command again"
            ) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(paths: Iterable[str | Path], keep: Literal["first", "last"] = "first") -> pd.DataFrame:
    """Read and merge record files; of a (mask, sample) that occurs again one record is kept.

    Args:
        paths: JSON-lines files, such as one per process. A last line without line feed (killed run) is ignored.
        keep: Which one. Answers do not change when they are repeated; times do, and the last were taken together.

    Returns:
        One row per (mask, sample), sorted by both, so that the result does not depend on the number of processes. The
        columns :data:`RECORD_COLUMNS` are always there.

    Raises:
        ValueError: If a complete line is not a record, naming file and line.
    """
    import pandas as pd

    records = [record for path in paths for record in _read_lines(Path(path))]
    columns = list(dict.fromkeys([*RECORD_COLUMNS, *(key for record in records for key in record)]))
    frame = pd.DataFrame(records, columns=columns)
    frame = frame.drop_duplicates(["mask", "sample"], keep=keep)
    return frame.sort_values(["mask", "sample"]).reset_index(drop=True)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                mask, sample = str(record["mask"]), str(record["sample"])
                wrong = [name for name in ("score", "reference_logprob") if not _is_number(record.get(name))]
                if wrong:
                    raise ValueError(f"expected a number as {wrong[0]}")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a record with 'mask' and 'sample', got {line[:80]!r}; delete the "
                    "file, and what it holds is measured again, or give another --name"
                ) from error
            yield {**record, "mask": mask, "sample": sample}


def _is_number(value: Any) -> bool:
    """Whether a recorded value is a finite number, or null."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and math.isfinite(value))


def check_complete(frame: pd.DataFrame, mask_ids: Sequence[str], num_samples: int) -> None:
    """Check that every mask has a record of each of the same samples.

    Args:
        frame: Output of :func:`read_records`.
        mask_ids: The masks that were asked for; further ones in the frame are not looked at.
        num_samples: Number of samples per mask.

    Raises:
        ValueError: If records are missing or masks saw different samples.
    """
    asked = frame[frame["mask"].isin(list(mask_ids))]
    counts = asked["mask"].value_counts().reindex(list(mask_ids), fill_value=0)
    incomplete = counts[counts < num_samples]
    if len(incomplete):
        missing = int((num_samples - incomplete).sum())
        raise ValueError(
            f"expected {len(counts)} masks x {num_samples} samples = {len(counts) * num_samples} records, got "
            f"{len(asked)}: {missing} are missing (first: mask {incomplete.index[0]} has {incomplete.iloc[0]}). "
            "Start the same command again to complete them."
        )
    num_distinct = asked["sample"].nunique()
    if num_distinct != num_samples:
        raise ValueError(f"expected the same {num_samples} samples under every mask, got {num_distinct} in all")


def write_manifest(folder: str | Path, arguments: Mapping[str, Any], **extra: Any) -> None:
    """Write ``manifest.json``: all arguments, the versions they ran with, and whatever else identifies the run.

    Args:
        folder: Folder of the run.
        arguments: All arguments of the command, JSON values or paths.
        **extra: Further entries, such as fingerprints of checkpoint and data, seeds, or the state of the run.
    """
    versions = {name: _version(name) for name in VERSIONED_PACKAGES}
    machine = {"python": sys.version.split()[0], "platform": platform.platform()}
    write_json(Path(folder) / "manifest.json", {"arguments": arguments, "versions": versions | machine, **extra})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
