"""``lit-depth compare``: depth-mask policies against each other, in quality and in latency."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.arguments import MAX_TOKENS, check_least, check_range
from lit_depth.functional.masks import full_id
from lit_depth.module import DepthModule
from lit_depth.results.page import Section, write_report
from lit_depth.results.store import write_json, write_parquet
from lit_depth.results.table import format_table
from lit_depth.studies.compare.analysis import Scores, answer_questions, compare_policies, describe_masks
from lit_depth.studies.compare.figures import write_figures, write_task_figures
from lit_depth.studies.compare.schema import validate_comparison
from lit_depth.studies.importance.command import SCORES, measure_mean, read_importance, to_importance
from lit_depth.studies.shared.mask_grid import PlannedMask, check_plan, plan_indices, plan_masks
from lit_depth.studies.shared.run_folder import check_shares, check_whole_blocks, evaluate, log_to, open_run
from lit_depth.studies.shared.time_masks import clock_settings, summarize_masks, time_masks

RESULT = "m5_mask_strategy_comparison.json"


def compare(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    *,
    policies: Sequence[str] | None,
    num_active_blocks: Sequence[int] | None,
    active_block_indices: Sequence[Sequence[int]] | None,
    keep: Sequence[int] | None,
    num_seeds: int,
    importance: str | None,
    confidence: float,
    latency_repeats: int,
    latency_new_tokens: int,
    max_bad_samples: float,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """Run the comparison; arguments and result as for `lit_depth.DepthTrainer.compare`."""
    check_whole_blocks(model, "compare")
    num_blocks = model.num_blocks
    keep = list(keep or ())
    names, counts = check_plan(policies, num_active_blocks, num_blocks, num_seeds, keep)
    custom = None if active_block_indices is None else plan_indices(active_block_indices, num_blocks)
    # all arguments are checked before anything is measured
    plan_masks(names, counts, num_blocks, [0.0] * num_blocks, num_seeds, keep)
    needs_importance = custom is None and "importance" in names
    file = read_importance(importance, model, datamodule) if importance and needs_importance else None
    given = None if file is None else to_importance(file, num_blocks, str(importance), keep)
    check_shares(confidence, max_bad_samples)
    check_least(0, latency_repeats=latency_repeats)
    check_range(2 if latency_repeats else 1, MAX_TOKENS, latency_new_tokens=latency_new_tokens)  # one is the prefill's
    measures_importance = needs_importance and given is None
    if measures_importance:
        for each in datamodule.for_each_task():
            each.check_disjoint("calibration", "validation")
    arguments = {
        "policies": names,
        "num_active_blocks": counts,
        "active_block_indices": active_block_indices,
        "keep": keep,
        "num_seeds": num_seeds,
        "importance": given,
        "confidence": confidence,
    }
    splits = ["calibration", "validation"] if measures_importance else ["validation"]
    clock = clock_settings(trainer.strategy.root_device)
    with open_run(trainer, model, datamodule, splits, arguments, output_dir, "compare", name) as (folder, identity):
        entry: dict[str, Any] = {"source": "not used", "num_samples": 0, "scores": {}, "intervals": None}
        if measures_importance:
            given, entry = measure_mean(trainer, model, datamodule, folder, confidence, max_bad_samples)
        elif file is not None:
            entry |= {"source": str(importance), "scores": file}
        plan = custom or plan_masks(names, counts, num_blocks, given, num_seeds, keep)
        masks = [torch.ones(num_blocks, dtype=torch.bool), *(planned.mask for planned in plan)]
        found = {}
        for each in datamodule.for_each_task():
            text = f"masks, {each.task.name}, validation split"
            found[each] = evaluate(trainer, model, each, "validation", masks, folder, text, max_bad_samples)
        if not trainer.is_global_zero:
            return {}
        device = trainer.strategy.root_device
        # one mask of each policy and count: which of equally many blocks run hardly matters to the clock
        first = {(planned.policy, planned.count): planned.id for planned in reversed(plan)}
        timed = sorted({full_id(num_blocks), *first.values()})
        latency = _latency(trainer, folder, model, datamodule, timed, latency_repeats, latency_new_tokens, clock)
        shared = {
            "num_blocks": num_blocks,
            "latency_device": str(device),
            "confidence": confidence,
            "importance": entry,
        }
        tasks = [
            {
                "command": "compare",
                "task": each.task.name,
                "metric": each.task.metric,
                "in_training_mixture": each.task.in_training_mixture,
                "num_samples": len(scores.images),
                "num_bad_samples": len(sweep.bad_samples),
                "bad_samples": sweep.bad_samples,
                **({"parse_failed": sweep.parse_failed} if sweep.parse_failed else {}),
                **shared,
                **_describe(plan, scores, latency, num_blocks, confidence),
            }
            for each, (scores, sweep) in found.items()
        ]
        result = tasks[0]
        if len(tasks) > 1:
            pooled = Scores.pooled([scores for scores, _ in found.values()])
            result = _over_tasks(tasks) | shared | _describe(plan, pooled, latency, num_blocks, confidence)
        records = [
            sweep.records.assign(task=each.task.name) for each, (_, sweep) in found.items() if sweep.records is not None
        ]
        _write(folder, result, identity, pd.concat(records, ignore_index=True))
    log_to(trainer, "log_comparison", result, folder)
    print(_summary(result, folder))
    return result


def _latency(
    trainer: Trainer,
    folder: Path,
    model: DepthModule,
    datamodule: DepthDataModule,
    masks: Sequence[str],
    repeats: int,
    new_tokens: int,
    clock: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Percentiles of every mask in milliseconds; requests that an earlier run timed under these settings count."""
    if repeats < 1:
        return {}
    settings = {**clock, "new_tokens": new_tokens, "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    records = time_masks(
        trainer,
        model,
        datamodule,
        "validation",
        masks,
        folder / "latency" / f"{digest}.jsonl",
        num_requests=repeats,
        batch_size=1,
        new_tokens=new_tokens,
        threads=clock["threads"],
    )
    return summarize_masks(records)


def _describe(
    plan: Sequence[PlannedMask], scores: Scores, latency: Mapping[str, Any], num_blocks: int, confidence: float
) -> dict[str, Any]:
    full, strategies = describe_masks(plan, scores, latency, num_blocks, confidence)
    comparisons = compare_policies(plan, scores, confidence)
    answers = answer_questions(comparisons, strategies, confidence)
    return {"full": full, "strategies": strategies, "comparisons": comparisons, "answers": answers}


def _over_tasks(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a result says of its tasks together; every task's own result is kept under ``tasks``."""
    return {
        "command": "compare",
        "task": f"mean of {', '.join(task['task'] for task in tasks)}",
        "metric": " / ".join(dict.fromkeys(task["metric"] for task in tasks)),
        "num_samples": sum(task["num_samples"] for task in tasks),
        "num_bad_samples": sum(task["num_bad_samples"] for task in tasks),
        "bad_samples": {
            f"{task['task']}/{sample}": reason for task in tasks for sample, reason in task["bad_samples"].items()
        },
        "tasks": list(tasks),
    }


def _write(folder: Path, result: dict[str, Any], arguments: dict[str, Any], records: Any) -> None:
    comparison = validate_comparison(result)
    figures = write_figures(comparison, folder / "figures")
    of_tasks = write_task_figures([validate_comparison(task) for task in result.get("tasks", ())], folder / "figures")
    for path in set((folder / "figures").glob("m5_*.png")) - {*figures, *of_tasks}:
        path.unlink()  # of an earlier run with latency
    write_parquet(folder / "records.parquet", records)
    if result["importance"]["scores"]:
        write_json(folder / SCORES, result["importance"]["scores"])
    headers, rows = _table(result)
    sections = [
        Section("Answers", text="\n\n".join(f"{q}: {a['answer']}. {a['text']}" for q, a in _questions(result))),
        Section("Figures", figures=figures),
        Section("Quality and latency of every policy", headers=headers, rows=rows),
        *(
            Section(task["task"], text=_headline(task), headers=_table(task)[0], rows=_table(task)[1], figures=[figure])
            for task, figure in zip(result.get("tasks", ()), of_tasks)
        ),
        Section("Arguments", code=json.dumps(arguments, indent=2, default=str)),
    ]
    write_report(folder, f"Depth-mask policies on {result['task']}", sections)
    # last: whoever sees it may rely on all the rest
    write_json(folder / RESULT, result)


def _questions(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    wording = {
        "importance_beats_prefix": "Does importance beat prefix?",
        "random_worse_than_prefix": "Is random worse than prefix?",
        "choice_of_blocks_matters": "How much does the choice of blocks matter at equal count?",
        "depth_is_a_scalar": "Is depth a scalar?",
    }
    return [(question, result["answers"][key]) for key, question in wording.items()]


def _table(result: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Quality per policy and count, one row per count."""
    names = list(dict.fromkeys(strategy["policy"] for strategy in result["strategies"]))
    by_key = {(s["policy"], s["num_active_blocks"]): s for s in result["strategies"]}
    counts = sorted({count for _, count in by_key})
    rows = []
    for count in counts:
        row: list[Any] = [count]
        for name in names:
            entry = by_key.get((name, count))
            low, high = entry["quality_ci"] if entry else (0.0, 0.0)
            row.append(f"{entry['quality']:.3f} [{low:.2f}, {high:.2f}]" if entry else None)
        times = [
            s["latency_ms"]["total"]["P50"]
            for s in result["strategies"]
            if s["num_active_blocks"] == count and s["latency_ms"]
        ]
        row.append(f"{sum(times) / len(times):.1f}" if times else None)
        rows.append(row)
    return ["blocks", *names, "total ms"], rows


def _summary(result: dict[str, Any], folder: Path) -> str:
    lines = [""]
    for each in (*result.get("tasks", ()), result):
        headers, rows = _table(each)
        lines += [_headline(each), "", format_table(rows, headers), ""]
    for question, answer in _questions(result):
        lines.append(f"{question} {answer['answer'].upper()}. {answer['text']}")
    paths = [folder / RESULT, *sorted((folder / "figures").glob("*.png")), folder / "report.html"]
    return "\n".join([*lines, "", "written:", *(f"  {path}" for path in paths)])


def _headline(result: dict[str, Any]) -> str:
    full = result["full"]
    return (
        f"{result['metric']} on {result['task']}, {result['num_samples']} samples ({result['num_bad_samples']} bad), "
        f"{result['confidence']:.0%} intervals by image; full model {full['quality']:.3f} "
        f"[{full['quality_ci'][0]:.3f}, {full['quality_ci'][1]:.3f}]"
    )
