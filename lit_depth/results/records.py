"""Records of a run: one JSON line per (mask, sample), appended as it is measured.

A run may be killed at any point: a line counts once its line feed is on disk. The first line names the run.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from lit_depth.results.locks import hold
from lit_depth.results.store import check_run, prepare_folder, readable_errors, refuse_links, run_of, to_plain

if TYPE_CHECKING:
    import pandas as pd

# these stand where a record has its mask
BAD = "bad"  # the prediction is then the reason
REFERENCES = "references"  # of a sample, kept for a metric that scores all samples of a mask together
RECORD_COLUMNS = ("mask", "sample", "image", "score", "prediction", "reference_logprob")


class RecordWriter:
    """Appends records to a JSON-lines file, one flushed line each; a context manager.

    The first line names the run. What a killed run left of its last line is cut off on opening. One file has one
    writer: use one per process.

    The file's folder is created. ``run`` None is that of the manifest above the file, if there is one.

    Raises:
        ValueError: If the file belongs to another run, another process writes to it, or it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rank0.jsonl"
        >>> with RecordWriter(path) as writer:
        ...     writer.write({"mask": "1101", "sample": "7", "score": 1.0})
        >>> read_records([path])[["mask", "score"]].values.tolist()
        [['1101', 1.0]]
    """

    def __init__(self, path: str | Path, run: str | None = None) -> None:
        self.path = Path(path)
        refuse_links(self.path)
        prepare_folder(self.path.parent)
        run = run_of(self.path) if run is None else run
        with readable_errors(self.path.parent):
            # a process that outlived its killed run may still be writing here
            self._lock = hold(self.path.with_suffix(".lock"), self.path)
        try:
            with readable_errors(self.path.parent):
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
                # unbuffered: what a full disk refuses must not wait in a buffer and fail again on closing
                self._file = open(os.open(self.path, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115 (see close)
            self._start(run)
        except BaseException:
            self.close()
            raise

    def _start(self, run: str | None) -> None:
        with readable_errors(self.path.parent):
            content = self._file.read()
            # rfind gives -1 for a file without any complete line: cut to length 0.
            self._start_bytes = content.rfind(b"\n") + 1
            self._file.truncate(self._start_bytes)
        if self._start_bytes:
            check_run(self.path, _run_named_in(self.path, content.partition(b"\n")[0]), run)
        else:
            self._append({"run": run})
            self._start_bytes = os.fstat(self._file.fileno()).st_size

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
        self._append(record)

    def _append(self, record: Mapping[str, Any]) -> None:
        line = (json.dumps(to_plain(record), allow_nan=False) + "\n").encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise ValueError(
                f"cannot write to {self.path} ({error.strerror or error}). What was recorded before is kept: make "
                "room, then start the same command again"
            ) from error

    def take_back(self) -> None:
        """Remove the records that were appended since the file was opened."""
        with readable_errors(self.path.parent):
            self._file.truncate(self._start_bytes)

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(
    paths: Iterable[str | Path], keep: Literal["first", "last"] = "first", run: str | None = None
) -> "pd.DataFrame":
    """Read and merge record files; of a (mask, sample) that occurs again one record is kept.

    Args:
        paths: JSON-lines files, such as one per process. A last line without line feed (killed run) is ignored.
        keep: Which one. ``first``: they must be equal, as answers are. ``last``: times are not, and the last were taken
            together.
        run: Id of the run; None = that of the manifest above each file, if there is one.

    Returns:
        One row per (mask, sample), sorted by both, so that the result does not depend on the number of processes. The
        columns :data:`RECORD_COLUMNS` are always there.

    Raises:
        ValueError: If a complete line is not a record, or two records that must be equal differ, naming file and line;
            if a file does not name its run, or another one.
    """
    import pandas as pd

    records: dict[tuple[str, str], dict[str, Any]] = {}
    places: dict[tuple[str, str], str] = {}
    for path in map(Path, paths):
        for number, record in record_lines(path, run_of(path) if run is None else run):
            key, place = (record["mask"], record["sample"]), f"{path}, line {number}"
            if keep == "first" and records.get(key, record) != record:
                raise ValueError(
                    f"{place}: another record of mask {key[0]}, sample {key[1]} than in {places[key]}, so one of the "
                    "two is wrong: delete both files, and what they hold is measured again"
                )
            records[key], places[key] = record, place
    columns = dict.fromkeys([*RECORD_COLUMNS, *(name for record in records.values() for name in record)])
    frame = pd.DataFrame(list(records.values()), columns=list(columns))
    return frame.sort_values(["mask", "sample"]).reset_index(drop=True)


def record_lines(path: Path, run: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and records of a file, whose first line names the run; one that is being written is left out."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            if number == 1:
                check_run(path, _run_named_in(path, line), run)
                continue
            try:
                record = json.loads(line)
                yield number, {**record, "mask": str(record["mask"]), "sample": str(record["sample"])}
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a record with 'mask' and 'sample', got {line[:80]!r}: delete the "
                    "file, and what it held is measured again"
                ) from error


def _run_named_in(path: Path, line: bytes) -> str | None:
    """The run that the first line of a records file names; None for records outside a run's folder."""
    try:
        first = json.loads(line)
        if isinstance(first, dict) and first.keys() == {"run"}:
            return first["run"]
    except (ValueError, RecursionError):
        pass
    raise ValueError(
        f"{path}, line 1: expected the run that these records belong to, got {line[:60]!r}: an earlier version made "
        "them, or the file is damaged. Delete it, or give another --name"
    )


def check_complete(frame: "pd.DataFrame", mask_ids: Sequence[str], num_samples: int) -> None:
    """Check that every mask has a record of each of the same samples; further masks are not looked at.

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
