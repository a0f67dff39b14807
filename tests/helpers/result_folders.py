"""Folders of finished comparisons as a run leaves them, without a run."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lit_depth.data.task import Sample
from lit_depth.results.shown_samples import Kept, show_samples, write_kept
from lit_depth.results.store import write_json, write_parquet

QUESTIONS = 48
EVIL = '<script>alert("x")</script> & </td><img src=http://a/b onerror=x>'


def write_comparison(
    folder: Path,
    comparison: Mapping[str, Any],
    model: str = "tiny",
    tasks: Sequence[str] = ("shapes",),
    right: float = 0.8,
    run: str | None = None,
    answer: str = "a cat",
    with_samples: bool = True,
) -> Path:
    """A folder whose records agree with its manifest; each mask is right on another share of the questions.

    Args:
        comparison: Content of the result.
        model: Name of the checkpoint, which its weights are named by too.
        tasks: Each with questions of its own, two about each image.
        right: Share of them that the full model answers rightly.
        run: Id of the run; None = of model and tasks.
        answer: Every right answer, and part of every question.
        with_samples: Keep texts and pictures of the samples.
    """
    result = copy.deepcopy(dict(comparison)) | {"task": " and ".join(tasks)}
    if len(tasks) > 1:
        result["tasks"] = [copy.deepcopy(dict(comparison)) | {"task": task} for task in tasks]
    masks = {mask["mask_id"] for strategy in result["strategies"] for mask in strategy["masks"]}
    masks.add(result["full"]["mask_id"])
    arguments = {
        "model.checkpoint": f"/models/{model}",
        "model.revision": None,
        "data.tasks": list(tasks),
        "data.metrics": ["ExactMatch"] * len(tasks),
        **{f"data fingerprint, {task}, validation": f"{QUESTIONS} samples, 0" for task in tasks},
    }
    manifest = {
        "arguments": arguments,
        "versions": {"lit_depth": "0.1.0", "torch": "2.13.0"},
        "command": "compare",
        "run": run or f"{model} {' '.join(tasks)}",
        "model": {"weights": model},
    }
    write_json(folder / "manifest.json", manifest)
    write_parquet(folder / "records.parquet", records(sorted(masks), tasks, right, answer))
    if with_samples:
        shown = show_samples(samples(answer))
        write_kept(folder, Kept("2026-01-01T00:00:00+00:00", "cpu", dict.fromkeys(tasks, shown)))
    write_json(folder / "m5_mask_strategy_comparison.json", result)
    return folder


def samples(answer: str) -> list[Sample]:
    """Questions with a picture each."""
    return [
        Sample(f"s{n}", f"i{n // 2}", Image.new("RGB", (400, 200), (10 * n, 0, 0)), f"{n}: {answer}?", (answer,))
        for n in range(QUESTIONS)
    ]


def records(masks: Sequence[str], tasks: Sequence[str], right: float, answer: str) -> pd.DataFrame:
    """One row for each task, mask and question; the fewer blocks, the fewer right answers."""
    generator = np.random.default_rng(0)
    hardness = np.sort(generator.uniform(size=QUESTIONS))
    rows = [
        {
            **{"task": task, "split": "validation", "mask": mask, "sample": f"s{n}", "image": f"i{n // 2}"},
            **{"score": float(is_right), "prediction": answer if is_right else f"no {answer}"},
            "reference_logprob": -1.0,
        }
        for task in tasks
        for mask in masks
        for n in range(QUESTIONS)
        for is_right in [hardness[n] < right * mask.count("1") / len(mask)]
    ]
    return pd.DataFrame(rows)


def edit_json(path: Path, **entries: Any) -> None:
    """Change entries of a JSON object; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | entries
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
