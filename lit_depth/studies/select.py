"""``lit-depth select``: the best mask under a latency budget, chosen, re-measured, and reported on other questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional import mask_id, top_k
from lit_depth.functional.checks import MAX_TOKENS, check_least, check_range
from lit_depth.functional.selection import (
    TOLERANCES,
    Candidate,
    Line,
    depth_under_budget,
    fit_line,
    pareto_frontier,
    percentile_bound,
    request_mask,
    round_up,
    select_for_budget,
)
from lit_depth.module import DepthModule
from lit_depth.results.measured import Option, quality_by_mask, read_comparison, read_latency
from lit_depth.results.selection_report import summarize_selection, write_selection
from lit_depth.results.verdicts import refusal
from lit_depth.studies.baseline import describe_baseline
from lit_depth.studies.comparison import Scores, describe_masks
from lit_depth.studies.identity import check_same_model, model_arguments
from lit_depth.studies.importance import measure_mean, read_importance, to_importance
from lit_depth.studies.plan import PlannedMask, check_plan, plan_masks
from lit_depth.studies.run import check_shares, check_whole_blocks, evaluate, log_to, open_run
from lit_depth.studies.timing import clock_settings, time_masks

SHARE = 0.95  # of the requests that have to stay within the budget
POLICIES = ("importance", "prefix", "uniform")


def select(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    *,
    budget_ms: float | None,
    complexity: str | None,
    comparison: str | None,
    latency: str | None,
    importance: str | None,
    estimate_depth: bool,
    policies: Sequence[str] | None,
    num_active_blocks: Sequence[int] | None,
    keep: Sequence[int] | None,
    num_seeds: int,
    num_requests: int,
    num_checks: int,
    margin: float,
    new_tokens: int | None,
    confidence: float,
    max_bad_samples: float,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """Select; arguments and result as for `lit_depth.DepthTrainer.select`."""
    check_whole_blocks(model, "select")
    num_blocks, keep = model.num_blocks, list(keep or ())
    names, counts = check_plan(policies or POLICIES, num_active_blocks, num_blocks, num_seeds, keep)
    check_shares(confidence, max_bad_samples)
    check_least(1, num_requests=num_requests, num_checks=num_checks)
    check_range(1, MAX_TOKENS, new_tokens=new_tokens)
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be at least 0 and below 1, got {margin}")
    if budget_ms is not None and not 0 < budget_ms < float("inf"):
        raise ValueError(f"budget_ms must be positive and finite, got {budget_ms}")
    if comparison is not None and (policies or num_active_blocks or keep):
        raise ValueError("comparison brings its own masks: give no policies, num_active_blocks or keep with it")
    if estimate_depth and (complexity or policies or num_active_blocks):
        raise ValueError("estimate_depth knows no quality: give no complexity, policies or num_active_blocks with it")
    if complexity is not None and budget_ms is None:
        raise ValueError("complexity needs --budget_ms")
    if len(datamodule.tasks) > 1:
        raise ValueError(f"select takes its requests from one task, got {[task.name for task in datamodule.tasks]}")
    if estimate_depth and (importance is None or budget_ms is None or comparison is not None):
        raise ValueError("estimate_depth needs --importance FILE and --budget_ms, and no --comparison")
    datamodule.check_disjoint("calibration", "validation")
    scores = None
    if importance is not None:
        scores = to_importance(read_importance(importance, model, datamodule), num_blocks, importance, keep)
    model.use_task(datamodule.task.max_new_tokens)
    new_tokens = new_tokens or model.max_new_tokens
    device = trainer.strategy.root_device
    clock = clock_settings(device)
    same = model_arguments(trainer, model)
    given = None if comparison is None else read_comparison(comparison, num_blocks, datamodule.task.name)
    if comparison is not None:
        check_same_model(comparison, "comparison", model, {**same, "data.path": datamodule.path})
    timed = None if latency is None else read_latency(latency, num_blocks, new_tokens, clock["device"])
    if latency is not None:
        check_same_model(latency, "latency", model, {**same, "threads": clock["threads"]})
    # a budget is no part of the run's identity: another one is answered from the same measurements
    arguments = {
        "comparison": comparison,
        "latency": latency,
        "importance": scores,
        "estimate_depth": estimate_depth,
        "policies": names,
        "num_active_blocks": counts,
        "keep": keep,
        "num_seeds": num_seeds,
        "new_tokens": new_tokens,
        **clock,
        "confidence": confidence,
    }
    splits = ["calibration", "validation"]
    with open_run(trainer, model, datamodule, splits, arguments, output_dir, "select", name) as (folder, identity):
        baseline = None
        if estimate_depth:
            assert scores is not None
            options = _by_importance(scores, num_blocks, keep)
        elif given is not None:
            options, baseline = given
        else:
            if scores is None and "importance" in names:
                scores, _ = measure_mean(trainer, model, datamodule, folder, confidence, max_bad_samples)
            plan = plan_masks(names, counts, num_blocks, scores, num_seeds, keep)
            options, baseline = _measure_quality(trainer, model, datamodule, plan, folder, confidence, max_bad_samples)
        if not trainer.is_global_zero:
            return {}

        def measure(masks: Sequence[str], split: str, requests: int) -> dict[str, list[float]]:
            records = time_masks(
                trainer,
                model,
                datamodule,
                split,
                masks,
                folder / "latency" / f"{split}.jsonl",
                num_requests=requests,
                batch_size=1,
                new_tokens=new_tokens,
                threads=clock["threads"],
            )
            return {str(mask): rows["total"].astype(float).tolist() for mask, rows in records.groupby("mask")}

        if timed is None:
            timed = measure(_to_time(options, num_blocks, estimate_depth), "calibration", num_requests)
        bounds = {mask: percentile_bound(times, SHARE) / (1 - margin) for mask, times in timed.items()}
        line = None
        if len({mask.count("1") for mask in bounds}) > 1:
            line = fit_line([mask.count("1") for mask in bounds], list(bounds.values()))
        if estimate_depth and line is None:
            raise ValueError(
                "estimate_depth draws a line through the times of two numbers of active blocks or more: "
                + ("keep fewer blocks" if latency is None else f"{latency} has one")
            )
        candidates = [
            {
                "mask_id": option.mask_id,
                "policies": option.policies,
                "num_active_blocks": option.mask_id.count("1"),
                "active_block_indices": [index for index, bit in enumerate(option.mask_id) if bit == "1"],
                "latency_ms": {
                    "num_requests": len(timed.get(option.mask_id, ())),
                    "P50": float(np.median(timed[option.mask_id])) if option.mask_id in timed else None,
                    "bound": _bound(option.mask_id, bounds, line),
                },
                "chosen_by": option.chosen_by,
                "expected": option.expected,
            }
            for option in (options if estimate_depth else _best_of_each_count(options))
        ]
        frontier = [] if estimate_depth else _frontier(candidates)
        full = next((each for each in options if each.mask_id == "1" * num_blocks), None)
        result = {
            "command": "select",
            "task": datamodule.task.name,
            "metric": datamodule.task.metric,
            "num_blocks": num_blocks,
            "new_tokens": new_tokens,
            "device": identity["device"],
            "confidence": confidence,
            "share_within_budget": SHARE,
            "margin": margin,
            "budget_ms": budget_ms,
            "complexity": complexity,
            "quality": "not measured" if estimate_depth else (comparison or "measured"),
            "full": full and (full.expected or full.chosen_by),
            "baseline": baseline,
            "line": None if line is None else line._asdict(),
            "candidates": candidates,
            "frontier": frontier,
            "selected": None,
            "rejected": [],
            "requests": {},
        }
        if budget_ms is not None and refusal(result) is None:
            again = partial(measure, split="validation", requests=num_checks)
            _choose(result, budget_ms, complexity, again, len(keep))
        write_selection(result, identity, folder)
    log_to(trainer, "log_selection", result, folder)
    print(summarize_selection(result, folder))
    return result


def _measure_quality(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    plan: Sequence[PlannedMask],
    folder: Path,
    confidence: float,
    max_bad_samples: float,
) -> tuple[list[Option], dict[str, Any] | None]:
    """Quality of the planned masks on the calibration split, to choose by, and on the validation split, to report.

    With the ``baseline`` of the validation split.
    """
    masks = [torch.ones(model.num_blocks, dtype=torch.bool), *(planned.mask for planned in plan)]
    found, baseline = {}, None
    for split in ("calibration", "validation"):
        text = f"masks, {datamodule.task.name}, {split} split"
        scores, _ = evaluate(trainer, model, datamodule, split, masks, folder, text, max_bad_samples)
        found[split] = _entries(plan, scores, model.num_blocks, confidence)
        baseline = describe_baseline(scores, "1" * model.num_blocks, confidence)
    chosen_by, expected = found["calibration"], found["validation"]
    options = [Option(mask, names, entry, expected[mask][1]) for mask, (names, entry) in chosen_by.items()]
    return options, baseline


def _entries(
    plan: Sequence[PlannedMask], scores: Scores, num_blocks: int, confidence: float
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    full, strategies = describe_masks(plan, scores, {}, num_blocks, confidence)
    return quality_by_mask(full, strategies)


def _by_importance(importance: Sequence[float], num_blocks: int, keep: Sequence[int]) -> list[Option]:
    """The most important blocks at every number of blocks; nothing is known of their quality."""
    return [
        Option(mask_id(top_k(importance, count, keep=keep)), ["importance"], None, None)
        for count in range(max(1, len(keep)), num_blocks + 1)
    ]


def _best_of_each_count(options: Sequence[Option]) -> list[Option]:
    """Of equally many blocks the best mask: which of them run hardly matters to the clock."""
    best: dict[int, Option] = {}
    for option in options:
        count = option.mask_id.count("1")
        assert option.chosen_by is not None
        if count not in best or option.chosen_by["quality"] > best[count].chosen_by["quality"]:  # type: ignore[index]
            best[count] = option
    return [best[count] for count in sorted(best)]


def _to_time(options: Sequence[Option], num_blocks: int, for_line: bool) -> list[str]:
    if not for_line:
        return [option.mask_id for option in _best_of_each_count(options)]
    by_count = {option.mask_id.count("1"): option.mask_id for option in options}
    counts = sorted(by_count)
    chosen = [by_count[counts[round(share * (len(counts) - 1))]] for share in (0, 0.25, 0.5, 0.75, 1)]
    return list(dict.fromkeys(chosen))


def _bound(mask: str, bounds: Mapping[str, float], line: Any) -> float:
    """What 95% of the requests under this mask stay within: its own times, those of its depth, or the line."""
    same = [bound for other, bound in bounds.items() if other.count("1") == mask.count("1")]
    if mask in bounds or same:
        return bounds.get(mask, max(same))
    if line is None:
        raise ValueError(f"there are no times of {mask.count('1')} active blocks, and too few others to draw a line")
    return line.time_ms(mask.count("1"))


def _frontier(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    points = [(entry["latency_ms"]["bound"], entry["chosen_by"]["quality"], entry["mask_id"]) for entry in candidates]
    return [mask for _, _, mask in pareto_frontier(points)]


def _estimated_depth(line: Line, budget_ms: float, slower: Mapping[int, float], fewest: int, num_blocks: int) -> int:
    """Most blocks within the budget by the line, but fewer than those that took longer when measured again.

    Args:
        line: Time by the number of active blocks, in ms.
        budget_ms: Longest time in ms.
        slower: Time in ms of the depths that were measured again and took more than the budget.
        fewest: Blocks that have to stay active.
        num_blocks: Blocks of the model.

    Raises:
        ValueError: A budget below what the fewest blocks take; it names that time.
    """
    most = min(slower, default=num_blocks + 1) - 1
    if most < fewest:
        raise ValueError(
            f"budget_ms: expected a budget of at least {round_up(slower[fewest])} ms, which {fewest} of {num_blocks} "
            f"blocks took when measured again, given {budget_ms} ms"
        )
    return depth_under_budget(line, budget_ms, most, fewest)


def _choose(
    result: dict[str, Any],
    budget_ms: float,
    complexity: str | None,
    measure: Callable[[Sequence[str]], Mapping[str, list[float]]],
    num_kept: int,
) -> None:
    """Fill in ``selected``, ``rejected`` and ``requests``: a choice that does not stay within the budget is dropped."""
    by_id = {entry["mask_id"]: entry for entry in result["candidates"]}
    rejected: list[dict[str, Any]] = result["rejected"]

    def pick(complexity: str | None) -> str:
        # what was measured again takes that long, which is more than the budget
        again = {each["mask_id"]: each["measured_again"]["bound"] for each in rejected}
        if result["quality"] == "not measured":
            slower = {mask.count("1"): time for mask, time in again.items()}
            fewest, num_blocks = max(1, num_kept), result["num_blocks"]
            depth = _estimated_depth(Line(**result["line"]), budget_ms, slower, fewest, num_blocks)
            return next(mask for mask in by_id if mask.count("1") == depth)
        candidates = [Candidate.from_result(entry) for entry in by_id.values()]
        candidates = [replace(each, latency_ms=again.get(each.mask_id, each.latency_ms)) for each in candidates]
        try:
            if complexity is None:
                return select_for_budget(candidates, budget_ms).mask_id
            return request_mask(candidates, complexity, budget_ms).mask_id
        except ValueError as error:
            tried = f"; measured again, {len(rejected)} masks took longer than before" if rejected else ""
            raise ValueError(f"budget_ms: {error}{tried}") from error

    while result["selected"] is None:
        mask = pick(complexity)
        times = measure([mask])[mask]
        check = {
            "num_requests": len(times),
            "share_within_budget": float(np.mean([time <= budget_ms for time in times])),
            "P50": float(np.median(times)),
            "P95": float(np.percentile(times, 95)),
            "bound": percentile_bound(times, SHARE),
        }
        # not the share itself, which is above its true value half of the time
        if check["bound"] <= budget_ms:
            result["selected"] = {**by_id[mask], "measured_again": check}
        else:
            rejected.append({**by_id[mask], "measured_again": check})
    if result["quality"] != "not measured":
        result["requests"] = {each: pick(each) for each in TOLERANCES}
    else:
        full = max(by_id, key=lambda mask: mask.count("1"))
        ratio = budget_ms / by_id[full]["latency_ms"]["bound"]
        result["depth_by_plain_ratio"] = min(result["num_blocks"], int(result["num_blocks"] * ratio))
