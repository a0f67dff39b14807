"""Evaluation logs of Inspect (UK AI Security Institute), ``.json`` or ``.eval``, which is a zip file of JSON.

Scores become numbers as Inspect's own ``accuracy`` and ``mean`` make them (C, P, I, N are 1, 0.5, 0, 0).
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_depth.integrations.sample_logs import (
    LoggedSample,
    SampleLog,
    Values,
    as_list,
    as_mapping,
    as_number,
    cluster_of,
    duplicate,
)
from lit_depth.results.reading import read_json

_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_ZSTANDARD = 93  # of zip files; Python reads it from 3.14 on
_MOST_BYTES = 2**31  # of one part, unpacked
_LOCAL_HEADER = 30


def read_inspect_log(path: Path) -> SampleLog:
    """The samples of one log; scores of several epochs are averaged.

    A scorer is a metric; one that gives several values is several, ``scorer.value``.

    Raises:
        ValueError: If the file is damaged or no such log, its run did not end, or a sample stands there twice.
    """
    header, samples = _read(path)
    about = header.get("eval")
    if not isinstance(about, dict) or not isinstance(about.get("task"), str):
        raise ValueError(f"{path}: expected a log of Inspect, with 'eval' and 'samples' in it")
    if header.get("status") != "success":
        raise ValueError(
            f"{path}: expected a run that has ended, this one has the status {header.get('status')!r}: "
            "`inspect eval-retry` completes it"
        )
    found, values, several = _read_samples(path, samples, as_mapping(header.get("results")).get("completed_samples"))
    return SampleLog(
        path=path,
        harness="inspect",
        task=about["task"],
        model=_model(about),
        samples={name: sample._replace(values=values.of(name)) for name, sample in found.items()},
        refused=values.refused,
        means=_means(as_mapping(header.get("results"))),
        binding=_binding(header, about),
        noted=_noted(about),
        remarks=(f"{path.name}: scores of {several} epochs were averaged.",) if several > 1 else (),
    )


def _read_samples(
    path: Path, samples: Iterable[Mapping[str, Any]], completed: Any
) -> tuple[dict[str, LoggedSample], Values, int]:
    """Samples without their values, these (means over epochs), and the number of epochs.

    Args:
        completed: How many there are, over all epochs, as far as the log says it.
    """
    found: dict[str, LoggedSample] = {}
    scores: dict[tuple[str, str], list[float]] = {}
    values, epochs = Values(), set()
    for sample in samples:
        name, epoch = str(sample.get("id")), str(sample.get("epoch", 1))
        if (name, epoch) in epochs:
            raise duplicate(path, name, f"twice in epoch {epoch}")
        epochs.add((name, epoch))
        found[name] = _about(sample)
        for metric, value in _scores(sample):
            number = _number(value)
            if number is None:
                values.add(name, metric, value)
            elif not math.isnan(number):  # NaN is a sample without a score
                scores.setdefault((name, metric), []).append(number)
    if not found:
        raise ValueError(f"{path}: there are no samples in it (written with --no-log-samples?)")
    if isinstance(completed, int) and len(epochs) < completed:
        raise ValueError(
            f"{path}: expected {completed} samples over all epochs, as its results say, got {len(epochs)}: some were "
            "taken out of it; give the log as Inspect wrote it"
        )
    for (name, metric), numbers in scores.items():
        values.add(name, metric, math.fsum(numbers) / len(numbers))
    several = len({epoch for _, epoch in epochs})
    if several > 1:  # each has an answer of its own
        found = {name: sample._replace(answer=None) for name, sample in found.items()}
    return found, values, several


def _about(sample: Mapping[str, Any]) -> LoggedSample:
    """What a sample asks, of which image, and what was answered."""
    asked = [_text(sample.get("input")), *map(str, as_list(sample.get("choices")))]
    answers = [as_mapping(score).get("answer") for score in as_mapping(sample.get("scores")).values()]
    told = next((answer for answer in answers if isinstance(answer, str)), None)
    completion = as_mapping(sample.get("output")).get("completion")
    answer = told if told is not None else completion if isinstance(completion, str) else None
    target = json.dumps(sample.get("target"), sort_keys=True)
    return LoggedSample(("\n".join(asked), target), None, cluster_of(sample.get("metadata")), answer, {})


def _text(asked: Any) -> str:
    """The words of an input, which is a text or messages; ids of messages differ from run to run."""
    if isinstance(asked, str):
        return asked
    contents = [as_mapping(each).get("content") for each in as_list(asked)]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [content])]
    return "\n".join(str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in parts)


def _scores(sample: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for scorer, score in as_mapping(sample.get("scores")).items():
        value = score.get("value") if isinstance(score, Mapping) else score
        if isinstance(value, Mapping):
            yield from ((f"{scorer}.{name}", each) for name, each in value.items())
        else:
            yield scorer, value


def _number(value: Any) -> float | None:
    """A score as a number, NaN where there is none; None if it cannot be one.

    >>> _number("C"), _number("yes"), _number("0.25"), _number(True), _number([1]), _number("blue")
    (1.0, 1.0, 0.25, 1.0, None, None)
    """
    if value is None or value != value:
        return math.nan
    if isinstance(value, str):
        if value in _LETTERS:
            return _LETTERS[value]
        if value.lower() in _WORDS:
            return _WORDS[value.lower()]
        try:
            return float(value)
        except ValueError:
            return None
    return as_number(value)


def _model(about: Mapping[str, Any]) -> str:
    """The checkpoint's folder where one was given, else the name."""
    path = as_mapping(about.get("model_args")).get("model_path")
    return str(path or about.get("model") or "").removeprefix("hf/").removeprefix("vllm/")


def _means(results: Mapping[str, Any]) -> dict[str, float]:
    """Inspect's own means: ``accuracy``, or ``mean``, of each scorer."""
    found = {}
    for score in map(as_mapping, as_list(results.get("scores"))):
        name, scorer, metrics = score.get("name"), score.get("scorer"), as_mapping(score.get("metrics"))
        mean = as_number(as_mapping(metrics.get("accuracy") or metrics.get("mean")).get("value"))
        if mean is not None:
            found[str(name) if name == scorer else f"{scorer}.{name}"] = mean
    return found


def _binding(header: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    plan = as_mapping(header.get("plan"))
    return {
        "version of the task": about.get("task_version"),
        "arguments of the task": about.get("task_args"),
        "dataset": as_mapping(about.get("dataset")).get("name"),
        "generation": {**as_mapping(plan.get("config")), **as_mapping(about.get("model_generate_config"))},
        "scorers": [as_mapping(each).get("name") for each in as_list(about.get("scorers"))],
    }


def _noted(about: Mapping[str, Any]) -> dict[str, Any]:
    versions = {f"{name} version": version for name, version in as_mapping(about.get("packages")).items()}
    engine = str(about.get("model") or "").partition("/")[0]
    return {**versions, "engine": engine, "epochs": as_mapping(about.get("config")).get("epochs") or 1}


# ---- files


def is_inspect_log(path: Path) -> bool:
    """Whether a file's beginning is that of a log of Inspect."""
    if zipfile.is_zipfile(path):
        return True
    with open(path, "rb") as file:
        start = file.read(4096)
    return start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and b'"eval"' in start and b'"status"' in start


def _read(path: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """The log without its samples, and these."""
    if not zipfile.is_zipfile(path):
        try:
            log = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not isinstance(log, dict):
            raise ValueError(f"{path}: expected a log of Inspect, a JSON object")
        return log, iter([each for each in as_list(log.get("samples")) if isinstance(each, dict)])
    try:
        archive = zipfile.ZipFile(path)
        names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if "header.json" not in names:
        raise ValueError(
            f"{path}: expected a log of Inspect with header.json in it: its run did not end, or it is none"
        )
    parts = (name for name in names if name.startswith("samples/") and name.endswith(".json"))
    return _part(archive, path, "header.json"), (_part(archive, path, name) for name in parts)


def _part(archive: zipfile.ZipFile, path: Path, name: str) -> dict[str, Any]:
    try:
        part = json.loads(_unpacked(archive, path, archive.getinfo(name)))
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise ValueError(f"{path}: {name} in it cannot be read ({error}): copy the file again") from error
    if not isinstance(part, dict):
        raise ValueError(f"{path}: expected an object in {name}, got {type(part).__name__}")
    return part


def _unpacked(archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo) -> bytes:
    """A part of a zip file, also one that is packed by Zstandard."""
    if info.file_size > _MOST_BYTES:
        raise ValueError(f"expected at most {_MOST_BYTES:,} bytes, got {info.file_size:,}")
    if info.compress_type != _ZSTANDARD:
        return archive.read(info)
    import pyarrow

    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(_LOCAL_HEADER)[26:30])
        file.seek(name_bytes + extra_bytes, io.SEEK_CUR)
        packed = file.read(info.compress_size)
    content = pyarrow.CompressedInputStream(pyarrow.BufferReader(packed), "zstd").read(info.file_size)
    if zlib.crc32(content) != info.CRC:
        raise ValueError("its checksum is another")
    return bytes(content)
