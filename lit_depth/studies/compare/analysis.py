"""From per-sample scores under many masks to the comparison of policies: intervals and tests."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_depth.functional.statistics import FamilyRow
from lit_depth.results.measures import shared_nouns
from lit_depth.results.verdicts import differs, refusal
from lit_depth.studies.compare.answers import answer_questions, withhold
from lit_depth.studies.shared.constant_answer import describe_baseline
from lit_depth.studies.shared.decisions import decide_masks, pay_for_masks
from lit_depth.studies.shared.evaluate import Measured
from lit_depth.studies.shared.importance_scores import describe_task
from lit_depth.studies.shared.mask_grid import PlannedMask, mask_names
from lit_depth.studies.shared.question_types import describe_question_types
from lit_depth.studies.shared.readings import describe_readings
from lit_depth.studies.shared.scores import Scores, describe_masks, group_plan

_MOST_NAMES = 8  # of tasks in one line; all stand in the result


def describe(
    measured: Sequence[Measured],
    plan: Sequence[PlannedMask],
    latency: Mapping[str, Any],
    shared: dict[str, Any],
    confidence: float,
) -> dict[str, Any]:
    """The result: that of the one task, or the mean over several, with each task's own under ``tasks``."""
    tasks = [
        _task_entry(each, plan, confidence) | shared | _describe_policies(plan, each.scores, latency, confidence)
        for each in measured
    ]
    if len(tasks) == 1:
        return tasks[0]
    pooled = Scores.pooled([each.scores for each in measured])
    regrets = pay_for_masks(
        {each.task.name: each.scores for each in measured}, masks_by_size(plan).values(), confidence
    )
    return _over_tasks(tasks) | shared | _describe_policies(plan, pooled, latency, confidence) | {"regret": regrets}


def _task_entry(measured: Measured, plan: Sequence[PlannedMask], confidence: float) -> dict[str, Any]:
    sweep = measured.sweep
    return {
        "command": "compare",
        **describe_task(measured),
        "num_samples": len(measured.scores.images),
        "num_bad_samples": len(sweep.bad_samples),
        "bad_samples": sweep.bad_samples,
        **sweep.told,
        **describe_readings(measured, confidence),
        **describe_question_types(measured, mask_names(plan), confidence),
    }


def _over_tasks(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a result says of its tasks together; every task's own result is kept under ``tasks``."""
    return {
        "command": "compare",
        "task": f"mean of {_list_tasks([task['task'] for task in tasks])}",
        "metric": " / ".join(dict.fromkeys(task["metric"] for task in tasks)),
        "max_score": _mean_max_score([task["max_score"] for task in tasks]),
        **shared_nouns(tasks),
        "num_samples": sum(task["num_samples"] for task in tasks),
        "num_bad_samples": sum(task["num_bad_samples"] for task in tasks),
        "bad_samples": {
            f"{task['task']}/{sample}": reason for task in tasks for sample, reason in task["bad_samples"].items()
        },
        "tasks": list(tasks),
    }


def _mean_max_score(scores: Sequence[float | None]) -> float | None:
    """Largest mean over tasks; None where one of them has no largest score."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None


def _list_tasks(names: Sequence[str]) -> str:
    """
    >>> _list_tasks(["a", "b"]), _list_tasks(list("abcdefghijkl"))
    ('a, b', '12 tasks (a, b, c, ...)')
    """
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{len(names)} tasks ({', '.join(names[:3])}, ...)"


def _describe_policies(
    plan: Sequence[PlannedMask], scores: Scores, latency: Mapping[str, Any], confidence: float
) -> dict[str, Any]:
    """Every policy, their comparisons and the answers; no verdict where a constant answer does as well."""
    full, strategies = describe_masks(plan, scores, latency, confidence)
    comparisons = compare_policies(plan, scores, confidence)
    answers = answer_questions(comparisons, strategies, confidence)
    baseline = describe_baseline(scores, confidence)
    result = {"full": full, "baseline": baseline, "strategies": strategies}
    reason = refusal(result)
    if reason is not None:
        comparisons, answers = withhold(comparisons, answers, reason)
    decided = decide_masks(masks_by_size(plan), scores, confidence)
    return result | {"comparisons": comparisons, "answers": answers, **decided}


def masks_by_size(plan: Sequence[PlannedMask]) -> dict[str, list[str]]:
    """Ids of all masks of each number of active blocks but the full model's, whichever policy made them.

    >>> from lit_depth.studies.shared.mask_grid import plan_masks
    >>> masks_by_size(plan_masks(["prefix", "suffix"], [1, 2], 2))
    {'1 block': ['10', '01']}
    """
    groups: dict[str, list[str]] = {}
    for planned in sorted(plan, key=lambda planned: planned.count):
        if planned.count < len(planned.mask):
            ids = groups.setdefault(f"{planned.count} block{'s' if planned.count > 1 else ''}", [])
            if planned.id not in ids:
                ids.append(planned.id)
    return groups


def compare_policies(plan: Sequence[PlannedMask], scores: Scores, confidence: float) -> list[dict[str, Any]]:
    """Every pair of policies at every number of active blocks where their masks differ, and over all of these.

    The tests are sign-flip permutations clustered by image. Holm's correction, and simultaneous intervals that agree
    with it, are over the numbers of blocks of one pair, and for the means over them over all pairs. A pair compared at
    one number alone is tested once: that number's entry is the mean's.
    """
    grouped = group_plan(plan)
    names = list(dict.fromkeys(name for name, _ in grouped))
    quality = {key: scores.rows([p.id for p in group]).mean(axis=0) for key, group in grouped.items()}
    result: list[dict[str, Any]] = []
    # of the entries over all counts, which are tested together at the end, and the entry of a pair's only count
    overall: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
    means: list[np.ndarray] = []
    for a, b in itertools.combinations(names, 2):
        # policies that keep the same blocks have nothing to be tested for
        both = [count for name, count in grouped if name == a and (b, count) in grouped]
        counts = [k for k in both if {p.id for p in grouped[a, k]} != {p.id for p in grouped[b, k]}]
        if not counts:
            continue
        differences = np.stack([quality[a, count] - quality[b, count] for count in counts])
        for count, found in zip(counts, scores.compare(differences, confidence)):
            result.append(_comparison_entry(a, b, count, found, confidence))
        result.append({"a": a, "b": b})
        overall.append((result[-1], result[-2] if len(counts) == 1 else None))
        means.append(differences.mean(axis=0))
    tested = scores.compare(np.stack(means), confidence) if means else ()
    for (entry, alone), found in zip(overall, tested):
        entry |= _comparison_entry(entry["a"], entry["b"], None, found, confidence)
        if alone is not None:
            alone |= {**entry, "num_active_blocks": alone["num_active_blocks"]}
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
