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
from lit_depth.functional.checks import MAX_TOKENS, check_least, check_range
from lit_depth.module import DepthModule
from lit_depth.results.figures import write_figures, write_task_figures
from lit_depth.results.report import Section, write_report
from lit_depth.results.schema import validate_comparison
from lit_depth.results.store import write_json, write_parquet
from lit_depth.results.tables import format_table
from lit_depth.results.verdicts import LEGEND, describe_constant, mark_strategy, refusal
from lit_depth.studies.answers import answer_questions, withhold
from lit_depth.studies.baseline import describe_baseline
from lit_depth.studies.comparison import Scores, compare_policies, describe_masks
from lit_depth.studies.importance import (
    COMPARISON,
    IMPORTANCE_KEYS,
    SCORES,
    measure_mean,
    name_ties,
    read_importance,
    read_ties,
    tie_sentences,
    to_importance,
)
from lit_depth.studies.plan import PlannedMask, check_plan, plan_indices, plan_masks
from lit_depth.studies.run import check_shares, check_whole_blocks, evaluate, log_to, open_run
from lit_depth.studies.timing import clock_settings, summarize_masks, time_masks

RESULT = COMPARISON
QUESTIONS = {
    "importance_beats_prefix": "Does importance beat prefix?",
    "random_worse_than_prefix": "Is random worse than prefix?",
    "choice_of_blocks_matters": "How much does the choice of blocks matter at equal count?",
    "depth_is_a_scalar": "Is depth a scalar?",
}


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
        entry: dict[str, Any] = {"source": "not used", "num_samples": 0} | dict.fromkeys(IMPORTANCE_KEYS)
        entry |= {"scores": {}, "ties": []}
        if measures_importance:
            given, measured = measure_mean(trainer, model, datamodule, folder, confidence, max_bad_samples)
            entry |= measured
        elif file is not None:
            entry |= {"source": str(importance), "scores": file, "tied_with": read_ties(str(importance))}
        plan = custom or plan_masks(names, counts, num_blocks, given, num_seeds, keep)
        if given is not None:
            entry["ties"] = _ties(plan, given, entry["tied_with"], keep)
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
        timed = sorted({"1" * num_blocks, *first.values()})
        latency, num_requests = _latency(
            trainer, folder, model, datamodule, timed, latency_repeats, latency_new_tokens, clock
        )
        shared = {
            "num_blocks": num_blocks,
            "latency_device": str(device),
            "latency_requests": num_requests,
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
) -> tuple[dict[str, dict[str, Any]], int | None]:
    """Percentiles of every mask in milliseconds, and of how many requests; those timed earlier in this way count."""
    if repeats < 1:
        return {}, None
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
    return summarize_masks(records), int(records["sample"].nunique())


def _ties(
    plan: Sequence[PlannedMask], scores: Sequence[float], tied_with: Mapping[Any, Any] | None, keep: Sequence[int]
) -> list[dict[str, Any]] | None:
    """`name_ties` of the planned masks; None where ties are not known."""
    if tied_with is None:
        return None
    masks = {each.count: each.mask.nonzero().flatten().tolist() for each in plan if each.policy == "importance"}
    return name_ties(masks, scores, {int(block): others for block, others in tied_with.items()}, keep)


def _describe(
    plan: Sequence[PlannedMask], scores: Scores, latency: Mapping[str, Any], num_blocks: int, confidence: float
) -> dict[str, Any]:
    full, strategies = describe_masks(plan, scores, latency, num_blocks, confidence)
    comparisons = compare_policies(plan, scores, confidence)
    answers = answer_questions(comparisons, strategies, confidence)
    result = {
        "full": full,
        "baseline": describe_baseline(scores, full["mask_id"], confidence),
        "strategies": strategies,
    }
    reason = refusal(result)
    if reason is not None:
        comparisons, answers = withhold(comparisons, answers, reason)
    return result | {"comparisons": comparisons, "answers": answers}


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
    refused = _refusals(result)
    ties = tie_sentences(result["importance"])
    sections = [
        *([Section("No verdict", text="\n\n".join(refused))] if refused else []),
        Section("Answers", text="\n\n".join(_answers(result) or ["No question was asked."])),
        *([Section("Ties that the importance policy used", text="\n\n".join(ties))] if ties else []),
        Section("Figures", text=_latency_remark(result), figures=figures),
        Section(
            "Quality and latency of every policy", text=f"{_headline(result)}\n\n{LEGEND}", headers=headers, rows=rows
        ),
        *(
            Section(
                task["task"],
                text="\n\n".join([*_refusals(task), _headline(task)]),
                headers=_table(task)[0],
                rows=_table(task)[1],
                figures=[figure],
            )
            for task, figure in zip(result.get("tasks", ()), of_tasks)
        ),
        Section("Arguments", code=json.dumps(arguments, indent=2, default=str)),
    ]
    write_report(folder, f"Depth-mask policies on {result['task']}", sections)
    # last: whoever sees it may rely on all the rest
    write_json(folder / RESULT, result)


def _refusals(result: Mapping[str, Any]) -> list[str]:
    """Why there are no verdicts, on the result's samples and on each of its tasks."""
    each = [refusal(entry, entry["task"]) for entry in (result, *result.get("tasks", ()))]
    return [reason for reason in each if reason]


def _answers(result: Mapping[str, Any]) -> list[str]:
    """The answers that were asked for; what is withheld says why only once, elsewhere."""
    given = {question: result["answers"][key] for key, question in QUESTIONS.items() if result["answers"][key]}
    return [
        f"{question} {answer['answer'].upper()}." + ("" if answer["answer"] == "withheld" else f" {answer['text']}")
        for question, answer in given.items()
    ]


def _latency_remark(result: Mapping[str, Any]) -> str:
    count = result["latency_requests"]
    if count is None:
        return ""
    return f"Times are medians of {count} request{'s' if count > 1 else ''} of batch size 1 under each mask."


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
            sign = mark_strategy(entry, result["baseline"]) if entry else ""
            row.append(f"{entry['quality']:.3f} [{low:.2f}, {high:.2f}]{sign}" if entry else None)
        times = [
            s["latency_ms"]["total"]["P50"]
            for s in result["strategies"]
            if s["num_active_blocks"] == count and s["latency_ms"]
        ]
        row.append(f"{sum(times) / len(times):.1f}" if times else None)
        rows.append(row)
    return ["blocks", *names, "total ms"], rows


def _summary(result: dict[str, Any], folder: Path) -> str:
    lines = ["", *_refusals(result)]
    for each in (*result.get("tasks", ()), result):
        headers, rows = _table(each)
        lines += [_headline(each), "", format_table(rows, headers), ""]
    marked = any(
        str(cell).endswith("*")
        for each in (*result.get("tasks", ()), result)
        for row in _table(each)[1]
        for cell in row
    )
    lines += [LEGEND] * marked + [remark for remark in [_latency_remark(result)] if remark]
    lines += [*_answers(result), *tie_sentences(result["importance"])]
    paths = [folder / RESULT, *sorted((folder / "figures").glob("*.png")), folder / "report.html"]
    return "\n".join([*lines, "", "written:", *(f"  {path}" for path in paths)])


def _headline(result: dict[str, Any]) -> str:
    full = result["full"]
    return (
        f"{result['metric']} on {result['task']}, {result['num_samples']} samples ({result['num_bad_samples']} bad), "
        f"{result['confidence']:.0%} intervals by image; full model {full['quality']:.3f} "
        f"[{full['quality_ci'][0]:.3f}, {full['quality_ci'][1]:.3f}].{describe_constant(result)}"
    )
