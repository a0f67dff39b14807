"""What an evaluation elsewhere wrote of each sample: one type for the logs of all harnesses."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

CLUSTER_KEYS = ("image_id", "imageId", "image", "image_path", "img_id")
_GZIP = b"\x1f\x8b"


class LoggedSample(NamedTuple):
    """One document as an evaluation asked and scored it."""

    asked: tuple[str, str]
    """Prompt (or its digest) and target: the same in two logs of one document."""
    doc_hash: str | None
    cluster: str | None
    """Image, where the log names it."""
    answer: str | None
    """Letter of the chosen option, or the generated text."""
    values: dict[str, float]
    """By metric."""


@dataclass(frozen=True)
class SampleLog:
    """One task, answered by one model somewhere else.

    Args:
        path: The file of the samples.
        harness: ``lm_eval``, ``lmms_eval`` or ``inspect``.
        task: Its name there.
        model: Name of the model there.
        samples: By the harness's id.
        refused: Metrics that are no number for each sample, and why.
        means: The harness's own means, by metric.
        lower_is_better: Metrics of which less is more.
        binding: Settings that two logs have to share.
        noted: Settings that may differ, which is then told.
        split: Of the dataset, where it is known.
        remarks: What is told of the reading, in sentences.
    """

    path: Path
    harness: str
    task: str
    model: str
    samples: Mapping[str, LoggedSample]
    refused: Mapping[str, str] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    lower_is_better: frozenset[str] = frozenset()
    binding: Mapping[str, Any] = field(default_factory=dict)
    noted: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """Metrics that are numbers, in the order of the log."""
        return list(dict.fromkeys(name for sample in self.samples.values() for name in sample.values))

    def means_over_samples(self, metric: str) -> bool:
        """Whether the harness's own figure is the mean of its samples, as far as it says one."""
        values = [sample.values[metric] for sample in self.samples.values() if metric in sample.values]
        told = self.means.get(metric)
        return told is None or math.isclose(math.fsum(values) / len(values), told, rel_tol=1e-6, abs_tol=1e-6)


class Values:
    """Metrics of the documents as they are read: numbers by document, and what is no number.

    >>> values = Values()
    >>> values.add("0", "acc", 1.0), values.add("0", "words", ["a"]), values.of("0"), values.refused
    (None, None, {'acc': 1.0}, {'words': 'a list at sample 0'})
    """

    def __init__(self) -> None:
        self._found: dict[str, dict[str, float]] = {}
        self.refused: dict[str, str] = {}

    def add(self, sample: str, metric: str, value: Any) -> None:
        """Note a value; one that is no finite number refuses the metric."""
        number = as_number(value)
        if number is None:
            self.refused.setdefault(metric, f"{_kind(value)} at sample {sample}")
        else:
            self._found.setdefault(sample, {})[metric] = number

    def of(self, sample: str) -> dict[str, float]:
        """Numbers of a sample, without the metrics that are refused."""
        return {name: value for name, value in self._found.get(sample, {}).items() if name not in self.refused}


def as_mapping(value: Any) -> Mapping[str, Any]:
    """A value where it is an object; an empty one of anything else, which a damaged file may hold.

    >>> as_mapping({"a": 1}), as_mapping([1]), as_mapping(None)
    ({'a': 1}, {}, {})
    """
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """The same of lists.

    >>> as_list([1]), as_list("abc")
    ([1], [])
    """
    return value if isinstance(value, list) else []


def as_number(value: Any) -> float | None:
    """A value as a finite number; None if it is none.

    >>> as_number(True), as_number(0.5), as_number("0.5"), as_number(float("nan"))
    (1.0, 0.5, None, None)
    """
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _kind(value: Any) -> str:
    """
    >>> _kind(None), _kind([1]), _kind("C"), _kind({}), _kind(float("inf"))
    ('null', 'a list', 'a text', 'an object', 'inf')
    """
    names = {type(None): "null", list: "a list", str: "a text", dict: "an object"}
    return names.get(type(value), str(value))


def cluster_of(*about: Any) -> str | None:
    """The image that a document is about, by the usual names of its field; None where it names none.

    >>> cluster_of({"question": "?", "image_id": 7}), cluster_of({"image": {"bytes": "..."}}, None)
    ('7', None)
    """
    named = (fields[key] for fields in map(as_mapping, about) for key in CLUSTER_KEYS if key in fields)
    return next((str(value) for value in named if isinstance(value, (str, int))), None)


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a file of JSON lines, plain or gzipped.

    Raises:
        ValueError: If the file cannot be read, is empty, or a line is no object with a ``doc_id``.
    """
    number = 0
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not line.endswith(b"\n"):
                raise ValueError(
                    f"{path}, line {number}: the last line is cut off after {len(line):,} bytes, so samples are "
                    "missing: copy the file again, or evaluate again"
                ) from error
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {_shown(line)}") from error
        if not isinstance(row, dict) or not isinstance(row.get("doc_id"), (int, str)):
            raise ValueError(
                f"{path}, line {number}: expected a sample of lm-eval or lmms-eval, an object with 'doc_id' "
                f"(written with --log_samples), got {_shown(line)}"
            )
        yield number, row
    if not number:
        raise ValueError(f"{path} is empty: expected samples, written with --log_samples")


def _lines(path: Path) -> Iterable[bytes]:
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == _GZIP
        with gzip.open(path) if packed else open(path, "rb") as lines:
            for number, line in enumerate(lines):
                yield line.removeprefix(b"\xef\xbb\xbf") if not number else line
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _shown(line: bytes) -> str:
    text = line[:60].decode(errors="replace").strip()
    return repr(text if len(line) <= 60 else f"{text}...")


def duplicate(path: Path, sample: str, times: str = "twice") -> ValueError:
    """The refusal of a sample that stands there more than once."""
    return ValueError(
        f"{path}: sample {sample} stands there {times}, so it is not known which one counts: give a file of one run"
    )
