"""What is logged offline is read back from the run's own transaction log, which is what ``wandb sync`` sends."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lightning.pytorch.loggers import WandbLogger

from lit_depth.results.store import write_json


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
    charts: dict[str, Any]


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

    logged = Logged(path.parent / "files", [], {}, {}, [], {})
    for data in transaction_log(path):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            logged.history.append(values(record.history.item))
        elif kind == "summary":  # what was set by hand; the last values of the history are not repeated here
            logged.summary.update(values(record.summary.update))
        elif kind == "metric":
            logged.metrics[record.metric.name] = record.metric.step_metric
        elif kind == "artifact":
            logged.artifacts.append(record.artifact)
        elif kind == "config":
            visualize = values(record.config.update).get("_wandb", {}).get("visualize", {})
            logged.charts.update(visualize)
    return logged


def offline_run(log_to: Callable[[WandbLogger], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Logged:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for place in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{place}_DIR", str(folder / "wandb_home"))
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")  # restored afterwards: the logger writes it too
    logger = WandbLogger(offline=True, save_dir=folder, project="lit-depth-tests")
    try:
        log_to(logger)
    finally:
        logger.experiment.finish()
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


def test_token_masking_is_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_depth.integrations.wandb import log_tokens
    from lit_depth.studies.tokens.figures import write_token_figure

    def group(scale: float) -> dict[str, Any]:
        distances = {"l2_distance": [scale, 2 * scale], "cosine_distance": [None, 0.5]}
        return {"Full": distances, "Attn": {**distances, "l2_distance": [3 * scale, None]}, "num_prompts": 2}

    prompt = {"name": "a", "text": "What?", "image": None, "num_tokens": 9, "num_vision_tokens": 0}
    pages = [{**prompt, "generated_text": " no", "page": f"tokens_{index}.html", "layers": []} for index in range(2)]
    result = {"prompts": pages, "averages": {"text": group(1.0), "final": group(4.0)}, "spans": {"text": group(9.0)}}
    result |= {"num_blocks": 2, "num_output_tokens": 3}
    folder = tmp_path / "result"
    write_json(folder / "tokens.json", result)
    for name in ("masking_results.csv", "masking_results.parquet", "tokens_0.html", "tokens_1.html"):
        (folder / name).write_text(name)
    figure = write_token_figure(result, folder / "figures")
    logged = offline_run(lambda logger: log_tokens(logger, result, folder), tmp_path, monkeypatch)

    (media,) = logged.history
    rows = [tuple(row.values()) for row in read_table(logged, media["tokens/by_block"])]
    assert len(rows) == 3 * 2 * 2 and rows[:4] == [
        ("text", False, "Full", 0, 1.0, None),
        ("text", False, "Full", 1, 2.0, 0.5),
        ("text", False, "Attn", 0, 3.0, None),
        ("text", False, "Attn", 1, None, 0.5),
    ]
    assert rows[-4] == ("text", True, "Full", 0, 9.0, None)
    assert [row["generated_text"] for row in read_table(logged, media["tokens/prompts"])] == [" no", " no"]
    assert figure is not None
    assert (logged.files / media["figures/tokens_by_layer"]["path"]).read_bytes() == figure.read_bytes()
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "tokens"]
    files = {"tokens.json", "masking_results.csv", "masking_results.parquet", "tokens_0.html", "tokens_1.html"}
    assert {entry.path for entry in artifact.manifest.contents} == files


def test_a_search_is_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_depth.integrations.wandb import log_search

    alone = {"removed": [2], "found_by": ["search"], "quality": 0.9, "drop": 0.01, "drop_ci": [-0.01, 0.02]}
    alone |= {"drop_simultaneous_ci": [-0.03, 0.05], "drop_p_holm": 0.4}
    pair = {
        **alone,
        "removed": [0, 2],
        "found_by": ["beam 2", "greedy"],
        "interaction": 0.3,
        "interaction_ci": [0.2, 0.4],
        "interaction_simultaneous_ci": [0.1, 0.5],
        "interaction_p_holm": 0.01,
    }
    nothing = dict.fromkeys(key for key in pair if key.startswith("interaction"))
    result = {"ablations": [alone | nothing, pair], "rank_by": "accuracy", "task": "shapes_vqa"}
    baseline = {"answer": "no", "quality": 0.5, "difference": 0.4, "difference_ci": [0.3, 0.5], "beaten": True}
    result["report"] = {"full": {"quality": 0.9}, "baseline": baseline}
    result |= {"totals": {"evaluations": 800, "saved": 200}, "units": ["0", "1", "2"]}
    write_json(tmp_path / "result" / "search.json", result)
    logged = offline_run(lambda logger: log_search(logger, result, tmp_path / "result"), tmp_path, monkeypatch)
    first, second = read_table(logged, logged.history[0]["search/ablations"])
    assert (first["removed"], first["drop_ci_high"], first["interaction"]) == ("2", 0.02, None)
    assert (second["removed"], second["num_removed"], second["found_by"]) == ("0 2", 2, "beam 2, greedy")
    assert second["interaction_ci_low"] == 0.2 and second["interaction_simultaneous_ci_high"] == 0.5
    assert (first["drop_p_holm"], second["interaction_p_holm"]) == (0.4, 0.01)
    assert logged.summary["withheld"] == "" and logged.summary["baseline/quality"] == 0.5
    expected = {"search/removed_1": "2", "search/drop_1": 0.01, "search/evaluations": 800, "search/saved": 200}
    assert {key: logged.summary[key] for key in expected} == expected
    assert [artifact.type for artifact in logged.artifacts if artifact.type == "search"] == ["search"]


def test_importing_integrations_does_not_import_wandb() -> None:
    code = "import sys, lit_depth.integrations; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
