"""From per-sample scores under many masks to the comparison of policies: intervals and tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional.statistics import FamilyRow
from lit_depth.results.verdicts import differs, refusal
from lit_depth.studies.compare.answers import answer_questions, withhold
from lit_depth.studies.shared.constant_answer import describe_baseline
from lit_depth.studies.shared.importance_scores import Measured
from lit_depth.studies.shared.mask_grid import PlannedMask
from lit_depth.studies.shared.scores import Scores, family_entry, no_difference


def describe(
    measured: Sequence[Measured],
    plan: Sequence[PlannedMask],
    latency: Mapping[str, Any],
    shared: dict[str, Any],
    num_blocks: int,
    confidence: float,
) -> dict[str, Any]:
    """The result: that of the one task, or the mean over several, with each task's own under ``tasks``.

    Args:
        measured: Answers under the planned masks and the full one.
        latency: Percentiles of the masks that were timed.
        shared: What is the same of every task.
    """
    tasks = [
        _task_entry(each) | shared | _describe_policies(plan, each.scores, latency, num_blocks, confidence)
        for each in measured
    ]
    if len(tasks) == 1:
        return tasks[0]
    pooled = Scores.pooled([each.scores for each in measured])
    return _over_tasks(tasks) | shared | _describe_policies(plan, pooled, latency, num_blocks, confidence)


def _task_entry(measured: Measured) -> dict[str, Any]:
    task, _, scores, sweep = measured
    entry = {
        "command": "compare",
        "task": task.name,
        "metric": task.metric,
        "in_training_mixture": task.in_training_mixture,
        "num_samples": len(scores.images),
        "num_bad_samples": len(sweep.bad_samples),
        "bad_samples": sweep.bad_samples,
    }
    return entry | ({"parse_failed": sweep.parse_failed} if sweep.parse_failed else {})


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


def _describe_policies(
    plan: Sequence[PlannedMask], scores: Scores, latency: Mapping[str, Any], num_blocks: int, confidence: float
) -> dict[str, Any]:
    """Every policy, their comparisons and the answers; no verdict where a constant answer does as well."""
    full, strategies = describe_masks(plan, scores, latency, num_blocks, confidence)
    comparisons = compare_policies(plan, scores, confidence)
    answers = answer_questions(comparisons, strategies, confidence)
    baseline = describe_baseline(scores, full["mask_id"], confidence)
    result = {"full": full, "baseline": baseline, "strategies": strategies}
    reason = refusal(result)
    if reason is not None:
        comparisons, answers = withhold(comparisons, answers, reason)
    return result | {"comparisons": comparisons, "answers": answers}


def describe_masks(
    plan: Sequence[PlannedMask], scores: Scores, latency: Mapping[str, Any], num_blocks: int, confidence: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The ``full`` and ``strategies`` entries of the result.

    Drops from the full model are one family: all masks, and the means of policies that have several at one count.
    """
    full_id, grouped = "1" * num_blocks, _grouped(plan)
    ids = [name for name in dict.fromkeys(planned.id for planned in plan) if name != full_id]
    several = {key: group for key, group in grouped.items() if len({planned.id for planned in group}) > 1}
    means = [scores.rows([planned.id for planned in group]).mean(axis=0) for group in several.values()]
    full, *described = _describe_rows(np.stack([*scores.rows([full_id, *ids]), *means]), scores, confidence)
    of_mask = {full_id: full, **dict(zip(ids, described))}
    of_mean = dict(zip(several, described[len(ids) :]))

    def entry(name: str, seed: int | None) -> dict[str, Any]:
        return {
            "mask_id": name,
            "seed": seed,
            "active_block_indices": [index for index, bit in enumerate(name) if bit == "1"],
            **of_mask[name],
            "num_distinct_answers": scores.distinct_answers(name),
            "reference_logprob": scores.mean_logprob([name]),
            "latency_ms": latency.get(name),
        }

    strategies = [
        {
            "policy": name,
            "num_active_blocks": count,
            "num_total_blocks": num_blocks,
            **(of_mean[name, count] if (name, count) in of_mean else of_mask[group[0].id]),
            "reference_logprob": scores.mean_logprob([planned.id for planned in group]),
            "latency_ms": _mean_latency([latency[planned.id] for planned in group if planned.id in latency]),
            "masks": [entry(planned.id, planned.seed) for planned in group],
        }
        for (name, count), group in grouped.items()
    ]
    return entry(full_id, None), strategies


def _describe_rows(rows: NDArray[np.float64], scores: Scores, confidence: float) -> list[dict[str, Any]]:
    """Quality of each row, and its drop from the first, which is the full model's; the others are one family."""
    drops = rows[0] - rows
    family = [None, *(scores.compare(drops[1:], confidence) if len(rows) > 1 else ())]
    return [
        {
            "quality": quality.estimate,
            "quality_ci": [quality.low, quality.high],
            **(family_entry(found, "drop") if found else no_difference("drop")),
            "drop_p_holm": found and found.p_holm,
        }
        for quality, found in zip(scores.mean_intervals(rows, confidence), family)
    ]


def compare_policies(plan: Sequence[PlannedMask], scores: Scores, confidence: float) -> list[dict[str, Any]]:
    """Every pair of policies at every number of active blocks where their masks differ, and over all of these.

    The tests are sign-flip permutations clustered by image. Holm's correction, and simultaneous intervals that agree
    with it, are over the numbers of blocks of one pair, and for the means over them over all pairs.
    """
    grouped = _grouped(plan)
    names = list(dict.fromkeys(name for name, _ in grouped))
    result: list[dict[str, Any]] = []
    means = {}
    for a, b in itertools.combinations(names, 2):
        counts = [count for name, count in grouped if name == a and (b, count) in grouped]
        counts = [k for k in counts if {p.id for p in grouped[a, k]} != {p.id for p in grouped[b, k]}]
        if not counts:
            continue
        differences = {
            k: scores.rows([p.id for p in grouped[a, k]]).mean(axis=0)
            - scores.rows([p.id for p in grouped[b, k]]).mean(axis=0)
            for k in counts
        }
        for count, found in zip(counts, scores.compare(np.stack(list(differences.values())), confidence)):
            result.append(_comparison_entry(a, b, count, found, confidence))
        means[a, b] = np.mean(list(differences.values()), axis=0)
        result.append({"a": a, "b": b, "num_active_blocks": None})
    overall = [entry for entry in result if entry["num_active_blocks"] is None]
    if overall:
        for entry, found in zip(overall, scores.compare(np.stack(list(means.values())), confidence)):
            entry |= _comparison_entry(entry["a"], entry["b"], None, found, confidence)
    return result


def _comparison_entry(a: str, b: str, count: int | None, found: FamilyRow, confidence: float) -> dict[str, Any]:
    better = "a" if found.interval.estimate > 0 else "b"
    return {
        "a": a,
        "b": b,
        "num_active_blocks": count,
        "difference": found.interval.estimate,
        "ci": [found.interval.low, found.interval.high],
        "simultaneous_ci": [found.simultaneous.low, found.simultaneous.high],
        "p_value": found.p_value,
        "p_holm": found.p_holm,
        "verdict": better if differs(found.p_holm, confidence) else "tie",
    }


def _grouped(plan: Sequence[PlannedMask]) -> dict[tuple[str, int], list[PlannedMask]]:
    grouped: dict[tuple[str, int], list[PlannedMask]] = {}
    for planned in plan:
        grouped.setdefault((planned.policy, planned.count), []).append(planned)
    return grouped


def _mean_latency(entries: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, Any] | None:
    """Average each number over the masks of one strategy."""
    if not entries:
        return None
    result: dict[str, Any] = {}
    for stage in entries[0]:
        names = entries[0][stage]
        columns = {name: [entry[stage][name] for entry in entries] for name in names}
        result[stage] = {name: None if None in column else float(np.mean(column)) for name, column in columns.items()}  # type: ignore[arg-type]
    return result
