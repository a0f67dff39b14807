"""What a comparison rests on: scores that choose blocks, answers of every mask, and times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.module import DepthModule
from lit_depth.studies.compare.arguments import CompareArguments
from lit_depth.studies.shared.evaluate import evaluate
from lit_depth.studies.shared.importance_scores import (
    IMPORTANCE_KEYS,
    Measured,
    name_ties,
    read_importance,
    read_ties,
    to_importance,
)
from lit_depth.studies.shared.mask_grid import PlannedMask
from lit_depth.studies.shared.time_masks import summarize_masks, time_masks

NOT_USED: dict[str, Any] = {"source": "not used", "num_samples": 0, **dict.fromkeys(IMPORTANCE_KEYS), "scores": {}}


def given_importance(
    path: str | None, arguments: CompareArguments, model: DepthModule, datamodule: DepthDataModule
) -> tuple[list[float] | None, dict[str, Any]]:
    """Scores of a file, if there is one and the policies need it, and the result's ``importance`` entry."""
    if not path or not arguments.needs_importance:
        return None, NOT_USED
    scores = read_importance(path, model, datamodule)
    entry = NOT_USED | {"source": path, "scores": scores, "tied_with": read_ties(path)}
    return to_importance(scores, arguments.num_blocks, path, arguments.keep), entry


def used_ties(
    plan: Sequence[PlannedMask],
    scores: Sequence[float] | None,
    tied_with: Mapping[Any, Sequence[int]] | None,
    keep: Sequence[int],
) -> list[dict[str, Any]] | None:
    """`name_ties` of the planned masks; None where scores were used whose ties are not known."""
    if scores is None:
        return []
    if tied_with is None:
        return None
    masks = {each.count: each.mask.nonzero().flatten().tolist() for each in plan if each.policy == "importance"}
    return name_ties(masks, scores, {int(block): list(others) for block, others in tied_with.items()}, keep)


def measure_answers(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    plan: Sequence[PlannedMask],
    folder: Path,
    max_bad_samples: float,
) -> list[Measured]:
    """Answers of the full model and of every planned mask on the validation split of each task."""
    masks = [torch.ones(model.num_blocks, dtype=torch.bool), *(planned.mask for planned in plan)]
    found = []
    for each in datamodule.for_each_task():
        text = f"masks, {each.task.name}, validation split"
        scores, sweep = evaluate(trainer, model, each, "validation", masks, folder, text, max_bad_samples)
        found.append(Measured(each.task, "validation", scores, sweep))
    return found


def measure_times(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    plan: Sequence[PlannedMask],
    folder: Path,
    arguments: CompareArguments,
    clock: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], int | None]:
    """Percentiles in milliseconds by mask, and of how many requests; those timed earlier in this way count.

    Timed are the full model and one mask of each policy and count: which of equally many blocks run hardly matters to
    the clock.
    """
    if not arguments.latency_repeats:
        return {}, None
    first = {(planned.policy, planned.count): planned.id for planned in reversed(plan)}
    settings = {**clock, "new_tokens": arguments.latency_new_tokens, "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    records = time_masks(
        trainer,
        model,
        datamodule,
        "validation",
        sorted({"1" * arguments.num_blocks, *first.values()}),
        folder / "latency" / f"{digest}.jsonl",
        num_requests=arguments.latency_repeats,
        batch_size=1,
        new_tokens=arguments.latency_new_tokens,
        threads=clock["threads"],
    )
    return summarize_masks(records), int(records["sample"].nunique())
