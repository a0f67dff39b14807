"""What is logged offline is read back from the run's own transaction log, which is what ``wandb sync`` sends."""

from __future__ import annotations

import base64
import hashlib
import json
import runpy
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lightning.pytorch.loggers import WandbLogger

from lit_depth.results.figures import write_figures
from lit_depth.results.importance_figures import write_importance_figures
from lit_depth.results.schema import validate_comparison
from lit_depth.results.store import write_json

RESULT = "m5_mask_strategy_comparison.json"
# the fixture of tests/results
comparison = runpy.run_path(str(Path(__file__).parents[1] / "results" / "conftest.py"))["comparison"]


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


def log(comparison: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Logged:
    from lit_depth.integrations.wandb import log_comparison

    result = folder / "result"
    write_json(result / RESULT, validate_comparison(comparison))
    write_figures(comparison, result / "figures")  # type: ignore[arg-type]
    return offline_run(lambda logger: log_comparison(logger, comparison, result), folder, monkeypatch)  # type: ignore[arg-type]


def read_table(logged: Logged, reference: dict[str, Any]) -> list[dict[str, Any]]:
    content = json.loads((logged.files / reference["path"]).read_text())
    return [dict(zip(content["columns"], row)) for row in content["data"]]


def test_everything_is_in_the_offline_run(
    comparison: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, answer in enumerate(comparison["answers"].values()):
        answer["text"] = f"text {index}"
    comparison["strategies"] = comparison["strategies"][::-1]  # curves must go by blocks, not by order of appearance
    logged = log(comparison, tmp_path, monkeypatch)
    strategies = comparison["strategies"]
    (media,) = [row for row in logged.history if "compare/strategies" in row]

    # native curves: every number of the JSON, once, along the number of blocks
    curves = {"quality": lambda s: s["quality"], "latency_ms/total": lambda s: s["latency_ms"]["total"]["P50"]}
    for policy in ("prefix", "importance", "random"):
        for name, value in curves.items():
            key = f"{name}/{policy}"
            drawn = [(row["num_active_blocks"], row[key]) for row in logged.history if key in row]
            mine = {s["num_active_blocks"]: value(s) for s in strategies if s["policy"] == policy}
            assert drawn == sorted(mine.items())
            assert logged.metrics[key] == "num_active_blocks"
    assert len(logged.history) == len({s["num_active_blocks"] for s in strategies}) + 1

    # table
    rows = read_table(logged, media["compare/strategies"])
    assert [(row["policy"], row["num_active_blocks"]) for row in rows] == [
        (s["policy"], s["num_active_blocks"]) for s in strategies
    ]
    for row, strategy in zip(rows, strategies):
        assert [row["quality_ci_low"], row["quality_ci_high"]] == pytest.approx(strategy["quality_ci"], rel=1e-12)
        assert [row["drop_ci_low"], row["drop_ci_high"]] == pytest.approx(strategy["drop_ci"], rel=1e-12)
        for key in ("quality", "drop", "reference_logprob"):
            assert row[key] == pytest.approx(strategy[key], rel=1e-12)
        for stage in ("vision", "prefill", "decode_per_token", "total"):
            assert row[f"{stage}_P50_ms"] == pytest.approx(strategy["latency_ms"][stage]["P50"], rel=1e-12)

    # charts: the points of each figure
    points = {
        "charts/quality_vs_blocks": lambda s: (s["policy"], s["num_active_blocks"], s["quality"]),
        "charts/latency_vs_blocks": lambda s: (s["policy"], s["num_active_blocks"], s["latency_ms"]["total"]["P50"]),
        "charts/quality_latency_tradeoff": lambda s: (s["policy"], s["latency_ms"]["total"]["P50"], s["quality"]),
    }
    for key, point in points.items():
        chart = read_table(logged, media[f"{key}_table"])
        drawn = sorted((row["lineKey"], row["step"], row["lineVal"]) for row in chart)
        assert drawn == sorted(map(point, strategies))
        assert logged.charts[key]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
        assert f'"{key}_table"' in json.dumps(logged.charts[key])

    # figures, as the very files
    for name in ("m5_quality_vs_blocks", "m5_latency_vs_blocks", "m5_quality_latency_tradeoff"):
        image = logged.files / media[f"figures/{name}"]["path"]
        assert image.read_bytes() == (tmp_path / "result" / "figures" / f"{name}.png").read_bytes()

    # artifact: the very JSON
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "comparison"]
    assert artifact.name == "m5_mask_strategy_comparison"
    (entry,) = artifact.manifest.contents
    content = (tmp_path / "result" / RESULT).read_bytes()
    assert entry.path == RESULT
    assert Path(entry.local_path).read_bytes() == content
    assert base64.b64decode(entry.digest) == hashlib.md5(content).digest()

    # answers and the full model
    assert logged.summary["withheld"] == ""
    for question, answer in comparison["answers"].items():
        assert logged.summary[f"answers/{question}"] == answer["answer"]
        assert logged.summary[f"answers/{question}_text"] == answer["text"]
    assert logged.summary["full/quality"] == comparison["full"]["quality"]
    assert logged.summary["full/latency_ms/total"] == comparison["full"]["latency_ms"]["total"]["P50"]


def test_importance_is_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_depth.integrations.wandb import log_importance

    def block(index: int) -> dict[str, Any]:
        drop = {"drop": 0.1 * index, "drop_ci": [0.1 * index - 0.05, 0.1 * index + 0.07], "rank": 4 - index}
        drop |= {"drop_simultaneous_ci": [0.1 * index - 0.15, 0.1 * index + 0.17], "p_holm": 0.06 - 0.02 * index}
        return {"block": index, "quality": drop, "reference_logprob": {**drop, "drop": 0.3 * index}}

    baseline = {"answer": "yes", "quality": 0.25, "difference": 0.5, "difference_ci": [0.3, 0.7], "beaten": True}
    full = {"quality": 0.75, "num_distinct_answers": 6}
    tasks = [{"task": name, "metric": "ExactMatch", "num_samples": 9, "full": full} for name in "ab"]
    tasks[0]["baseline"], tasks[1]["baseline"] = baseline, {**baseline, "beaten": False}
    for task in tasks:
        task["blocks"] = [block(index) for index in range(4)]
    result = {
        "tasks": tasks,
        "macro": tasks[0]["blocks"],
        "full": full,
        "baseline": baseline,
        "split": "calibration",
        "confidence": 0.95,
    }
    result["agreement"] = [{"a": "a", "b": "b", "quality": {"spearman": 0.5, "verdict": "not shown"}}]
    folder = tmp_path / "result"
    write_json(folder / "importance.json", result)
    figures = write_importance_figures(result, folder / "figures")
    logged = offline_run(lambda logger: log_importance(logger, result, folder), tmp_path, monkeypatch)

    (media,) = logged.history
    for name in ("a", "b", "macro"):
        rows = read_table(logged, media[f"importance/{name}"])
        assert [row["block"] for row in rows] == [0, 1, 2, 3]
        for row in rows:
            entry = block(row["block"])
            assert row["drop"] == pytest.approx(entry["quality"]["drop"])
            assert [row["drop_ci_low"], row["drop_ci_high"]] == pytest.approx(entry["quality"]["drop_ci"])
            assert row["reference_logprob_drop"] == pytest.approx(entry["reference_logprob"]["drop"])
            together = [row["drop_simultaneous_ci_low"], row["drop_simultaneous_ci_high"]]
            assert together == pytest.approx(entry["quality"]["drop_simultaneous_ci"])
            # task b: the full model does not beat the constant answer
            assert row["rank"] == (None if name == "b" else entry["quality"]["rank"])
            expected = "withheld" if name == "b" else "differs" if row["p_holm"] < 0.05 else "tie"
            assert row["verdict"] == row["reference_logprob_verdict"] == expected
        assert logged.charts[f"charts/importance/{name}"]["panel_config"]["panelDefId"] == "wandb/bar/v0"
    for path in figures:
        assert (logged.files / media[f"figures/{path.stem}"]["path"]).read_bytes() == path.read_bytes()
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "importance"]
    (entry,) = artifact.manifest.contents
    assert Path(entry.local_path).read_bytes() == (folder / "importance.json").read_bytes()
    assert logged.summary["full/quality/a"] == 0.75
    assert logged.summary["withheld"].startswith("No verdict on b: the full model (0.750)")
    expected = {"baseline/answer": "yes", "baseline/quality": 0.25, "full/num_distinct_answers": 6}
    for name in "ab":
        assert {key: logged.summary[f"{key}/{name}"] for key in expected} == expected
        assert logged.summary[f"baseline/beaten/{name}"] is (name == "a")


def test_consistency_and_latency_are_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_depth.integrations.wandb import log_consistency, log_latency

    known = {"spearman": 0.8, "p_value": 0.01, "ci": [0.5, 0.97], "verdict": "not shown"}
    unknown = dict.fromkeys(("spearman", "p_value", "ci")) | {"verdict": "not shown"}
    result = {"splits": ["validation"], "pairs": [{"a": "x", "b": "y", "quality": known, "reference_logprob": unknown}]}
    baseline = {"answer": "no", "quality": 0.5, "difference": 0.0, "difference_ci": [-0.1, 0.1], "beaten": False}
    full = {"quality": 0.5, "num_distinct_answers": 1}
    result["measurements"] = [{"name": "x", "full": full, "baseline": baseline}]
    write_json(tmp_path / "result" / "consistency.json", result)
    logged = offline_run(lambda logger: log_consistency(logger, result, tmp_path / "result"), tmp_path, monkeypatch)
    rows = read_table(logged, logged.history[0]["consistency/pairs"])
    assert [row["spearman"] for row in rows] == [0.8, None] and rows[0]["noise_free_high"] == 0.97
    assert logged.summary["spearman/x - y"] == 0.8 and logged.summary["verdict/x - y"] == "not shown"
    assert [artifact.type for artifact in logged.artifacts if artifact.type == "consistency"] == ["consistency"]
    assert logged.summary["withheld"].startswith("No verdict on x") and logged.summary["baseline/answer/x"] == "no"

    times = {"total": {"P50": 40.0}, "decode_per_token": None}
    entry = {"policies": ["prefix"], "num_active_blocks": 4, "mask_id": "1111", "latency_ms": times}
    entry["of_full"] = {"total": {"ratio": 0.5}}
    fits = {"total": {"slope": 2.0, "intercept": 9.0, "r2": 0.99}}
    result = {"device": "some device", "num_requests": 3, "configurations": [entry], "fits": fits}
    for name in ("latency.json", "latency_details.json"):
        write_json(tmp_path / "times" / name, result)
    logged = offline_run(lambda logger: log_latency(logger, result, tmp_path / "times"), tmp_path / "2", monkeypatch)
    (row,) = read_table(logged, logged.history[0]["latency/configurations"])
    assert (row["total_P50_ms"], row["decode_per_token_P50_ms"], row["of_full"]) == (40.0, None, 0.5)
    assert logged.summary["latency/total_ms_per_block"] == 2.0 and logged.summary["latency/total_ms_fixed"] == 9.0


def test_token_masking_is_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_depth.integrations.wandb import log_tokens
    from lit_depth.results.token_figures import write_token_figure

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


def test_without_latency_only_quality_is_logged(
    comparison: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_figures(comparison, tmp_path / "result" / "figures")  # type: ignore[arg-type] # left by an earlier run
    for entry in (comparison["full"], *comparison["strategies"]):
        entry["latency_ms"] = None
    logged = log(comparison, tmp_path, monkeypatch)
    keys = {key for row in logged.history for key in row}
    assert not [key for key in keys if "latency" in key]
    assert {key for key in keys if key.startswith("figures/")} == {"figures/m5_quality_vs_blocks"}
    (media,) = [row for row in logged.history if "compare/strategies" in row]
    assert {row["total_P50_ms"] for row in read_table(logged, media["compare/strategies"])} == {None}
    assert "full/latency_ms/total" not in logged.summary


def test_a_missing_result_is_named_before_anything_is_logged(comparison: dict[str, Any], tmp_path: Path) -> None:
    from lit_depth.integrations.wandb import log_comparison

    logger = WandbLogger(offline=True, save_dir=tmp_path)
    with pytest.raises(ValueError, match=RESULT):
        log_comparison(logger, comparison, tmp_path)  # type: ignore[arg-type]
    assert logger.version is None  # no run was created


def test_importing_integrations_does_not_import_wandb() -> None:
    code = "import sys, lit_depth.integrations; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
