"""What a comparison rests on besides answers: scores that choose blocks, and times."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional.masks import full_id
from lit_depth.module import DepthModule
from lit_depth.studies.compare.arguments import CompareArguments
from lit_depth.studies.shared.importance_scores import IMPORTANCE_KEYS, read_importance, read_ties, to_importance
from lit_depth.studies.shared.mask_flops import count_flops
from lit_depth.studies.shared.mask_grid import PlannedMask
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.time_masks import median_limits, summarize_masks, time_masks

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


def measure_times(
    run: Run, plan: Sequence[PlannedMask], arguments: CompareArguments, clock: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Percentiles in milliseconds by mask, and how they were measured, with the operations of every mask.

    Requests timed earlier in this way count. Timed are the full model and one mask of each policy and count:
    which of equally many blocks run hardly matters to the clock.
    """
    if not run.datamodule.for_each_task()[0].task.max_new_tokens:
        return {}, {"latency_requests": None}  # texts that are scored ask for no answer
    masks = sorted({full_id(arguments.num_blocks), *(planned.id for planned in plan)})
    counted = {"flops": count_flops(run, "validation", masks, new_tokens=arguments.new_tokens)}
    if not arguments.num_requests:
        return {}, counted | {"latency_requests": None}
    first = {(planned.policy, planned.count): planned.id for planned in reversed(plan)}
    settings = {**clock, "new_tokens": arguments.new_tokens, "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    records = time_masks(
        run,
        "validation",
        sorted({full_id(arguments.num_blocks), *first.values()}),
        run.folder / "latency" / f"{digest}.jsonl",
        num_requests=arguments.num_requests,
        new_tokens=arguments.new_tokens,
        threads=clock["threads"],
    )
    return summarize_masks(records), counted | {
        "latency_requests": int(records["sample"].nunique()),
        "latency_settings": {**clock, "batch_size": 1, "new_tokens": arguments.new_tokens},
        "latency_limits_ms": median_limits(records, arguments.confidence),
    }
