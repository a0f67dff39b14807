"""Small folders as lm-eval 0.4.13 and lmms-eval 0.7.3 write them with ``--log_samples``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_depth.integrations.harness_logs import read_harness_log
from lit_depth.integrations.sample_logs import SampleLog

TIME, LMMS_TIME = "2026-01-02T03-04-05.678901", "20260102_030405"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def lm_eval_row(number: int, values: Mapping[str, Any], filter_name: str = "none", **changes: Any) -> dict[str, Any]:
    """A row of a task that generates."""
    return {
        "doc_id": number,
        "doc": {"question": f"question {number}"},
        "target": f"target {number}",
        "arguments": {"gen_args_0": {"arg_0": f"question {number}", "arg_1": {"until": ["\n"]}}},
        "resps": [[f"answer {number}"]],
        "filtered_resps": [f"answer {number}"],
        "filter": filter_name,
        "metrics": list(values),
        "doc_hash": digest(f"doc {number}"),
        "prompt_hash": digest(f"prompt {number}"),
        "target_hash": digest(f"target {number}"),
        **values,
        **changes,
    }


def lmms_eval_row(number: int, values: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "target": f"target {number}",
        "filtered_resps": f"answer {number}",
        "token_counts": [{"input_tokens": 9, "output_tokens": 2}],
        "doc_hash": digest(f"doc {number}"),
        **values,
        "input": f"question {number}",
        **changes,
    }


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_lm_eval(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    task: str = "sums",
    time: str = TIME,
    model: str | None = None,
    **results: Any,
) -> Path:
    """A file of samples, with its file of results beside it; ``results`` changes what that says of the task."""
    means: dict[str, list[float]] = {}
    for row in rows:
        for name in row["metrics"]:
            means.setdefault(f"{name},{row['filter']}", []).append(row[name])
    of_task = {
        "results": {key: sum(found) / len(found) for key, found in means.items() if _numbers(found)},
        "configs": {"task": task, "test_split": "test", "num_fewshot": 0, "output_type": "generate_until"},
        "versions": 1.0,
        "n-shot": 0,
        "higher_is_better": {name: True for row in rows for name in row["metrics"]},
        "n-samples": {"original": 100, "effective": len({row["doc_id"] for row in rows})},
    }
    whole = {part: {task: results.get(part, value)} for part, value in of_task.items()}
    more = {key: value for key, value in results.items() if key not in of_task}
    about = {
        "model_name": model or str(folder),
        "config": {"model": "hf"},
        "lm_eval_version": "0.4.13",
        **whole,
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"results_{time}.json").write_text(json.dumps(about))
    return write_lines(folder / f"samples_{task}_{time}.jsonl", rows)


def _numbers(found: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) for value in found)


def log_of(folder: Path, scores: dict[int, float], metric: str = "acc", **results: Any) -> SampleLog:
    """The log of a task of lm-eval, with a score of each document."""
    return read_harness_log(
        write_lm_eval(folder, [lm_eval_row(doc, {metric: score}) for doc, score in scores.items()], **results)
    )


def write_lmms_eval(
    folder: Path, rows: Sequence[Mapping[str, Any]], task: str = "pictures", filters: Sequence[str] = (), **results: Any
) -> Path:
    listed = [{"name": name, "filter": [{"function": "take_first"}]} for name in filters] or None
    settings = {"task": task, "test_split": "test", "output_type": "generate_until", "filter_list": listed}
    about = {
        "model_name": str(folder),
        "configs": {task: settings},
        "versions": {task: 0.0},
        "n-shot": {task: 0},
        **results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{LMMS_TIME}_results.json").write_text(json.dumps(about))
    return write_lines(folder / f"{LMMS_TIME}_samples_{task}.jsonl", rows)


def write_run(
    folder: Path,
    task: str,
    masks: Mapping[str, Mapping[str, float]],
    metric: str = "acc",
    role: str = "validation",
    **more: Any,
) -> Path:
    """The folder of a run with records of one task: of each mask the scores by sample."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {"data.tasks": [task], "data.metrics": [f"lit_depth.integrations.harness.{metric}"]}
    manifest = {"arguments": arguments, "run": "0123456789abcdef", "model": {"files": {}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {
            "mask": mask,
            "sample": name,
            "image": name,
            metric: score,
            "score": score,
            "prediction": f"answer {name}",
            **more,
        }
        for mask, scores in masks.items()
        for name, score in scores.items()
    ]
    write_lines(folder / "records" / task / role / "rank0.jsonl", [{"run": manifest["run"]}, *rows])
    return folder
