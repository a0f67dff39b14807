"""An offline run of Weights & Biases, read back from its own log."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lightning.pytorch.loggers import WandbLogger

from lit_depth.results.report import Report
from lit_depth.results.store import write_json
from lit_depth.studies.shared.publish import draw


def transaction_log(path: Path) -> Iterator[bytes]:
    """Records of a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) after a 7-byte header.

    A record is cut into chunks that do not cross 32 KiB blocks; a chunk is checksum (4 bytes), length (2), type (1):
    1 = whole, 2 = first, 3 = middle, 4 = last.
    """
    data, position, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:  # too small for a chunk: padding
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        assert kind in (1, 2, 3, 4)
        if kind in (1, 4):
            yield record
            record = b""


class Logged(NamedTuple):
    """A finished offline run."""

    files: Path
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    metrics: dict[str, str]  # name: step metric
    artifacts: list[Any]
    config: dict[str, Any]
    run: Any  # name, group, job type and tags


def read_run(path: Path) -> Logged:
    from wandb.proto.wandb_internal_pb2 import Record

    def values(items: Any) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for item in items:
            *parents, last = item.nested_key or [item.key]
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = json.loads(item.value_json)
        return nested

    logged = Logged(path.parent / "files", [], {}, {}, [], {}, None)
    for data in transaction_log(path):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            logged.history.append(values(record.history.item))
        elif kind == "summary":  # what was set by hand; the last values of the history are not repeated here
            logged.summary.update(values(record.summary.update))
            for item in record.summary.remove:
                logged.summary.pop("/".join(item.nested_key) or item.key, None)
        elif kind == "metric":
            logged.metrics[record.metric.name] = record.metric.step_metric
        elif kind == "artifact":
            logged.artifacts.append(record.artifact)
        elif kind == "config":
            logged.config.update(values(record.config.update))
        elif kind == "run":
            logged = logged._replace(run=record.run)
            logged.config.update(values(record.run.config.update))
    return logged


def quiet_wandb(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, silent, and with all that is kept between runs in a folder of the test's own."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for place in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{place}_DIR", str(home))
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")  # restored afterwards: the logger writes it too


def offline_run(log_to: Callable[[WandbLogger], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Logged:
    quiet_wandb(folder / "wandb_home", monkeypatch)
    log_to(WandbLogger(offline=True, save_dir=folder, project="lit-depth-tests"))
    return finished_run(folder)


def finished_run(folder: Path) -> Logged:
    """End the run of this process, and read it back from below the folder."""
    import wandb

    wandb.finish()
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    # finish returns before wandb's own process has written the last record
    deadline = time.monotonic() + 30
    while not is_written(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    return read_run(path)


def is_written(path: Path) -> bool:
    """Whether the log ends with the record of the run's exit."""
    from wandb.proto.wandb_internal_pb2 import Record

    size = -1
    while size != path.stat().st_size:  # not in the middle of a record
        size = path.stat().st_size
        time.sleep(0.1)
    if size <= 7:
        return False
    kinds = []
    for data in transaction_log(path):
        record = Record()
        record.ParseFromString(data)
        kinds.append(record.WhichOneof("record_type"))
    return "exit" in kinds


def read_table(logged: Logged, reference: dict[str, Any]) -> list[dict[str, Any]]:
    content = json.loads((logged.files / reference["path"]).read_text())
    return [dict(zip(content["columns"], row)) for row in content["data"]]


def files_of(artifact: Any) -> set[str]:
    """Names of the files of an artifact, apart from figures."""
    return {entry.path for entry in artifact.manifest.contents if not entry.path.startswith("figures/")}


def logged_report(
    report: Report, name: str, result: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Logged:
    """What is in the offline run of a report, whose figures and files lie in ``folder / "result"``."""
    from lit_depth.integrations.wandb import log_report

    place = folder / "result"
    draw(report, place / "figures")
    for file, content in report.files.items():
        write_json(place / file, content)
    return offline_run(lambda logger: log_report(logger, report, place, name, result), folder, monkeypatch)
