"""From measurements of one task or several to importance by task, its mean, and the agreement of the tasks."""

import itertools
from collections.abc import Sequence
from typing import Any

from lit_depth.functional.masks import Granularity
from lit_depth.results.measures import shared_nouns
from lit_depth.studies.shared.block_ranks import (
    MOST_TASKS,
    describe_agreement,
    describe_blocks,
    describe_full,
    withhold_agreement,
)
from lit_depth.studies.shared.constant_answer import describe_baseline
from lit_depth.studies.shared.decisions import decide_blocks, pay_for_blocks
from lit_depth.studies.shared.evaluate import Measured
from lit_depth.studies.shared.importance_scores import task_entry
from lit_depth.studies.shared.question_types import describe_question_types
from lit_depth.studies.shared.scores import Scores

# rank correlation from which two orders of the blocks count as the same
THRESHOLD = 0.9


def describe(
    measured: Sequence[Measured], units: Sequence[int], granularity: Granularity, confidence: float
) -> dict[str, Any]:
    """Every task; of several also their mean, and of up to `MOST_TASKS` how closely each pair of them agrees."""
    tasks = [
        task_entry(each, units, confidence, granularity) | describe_question_types(each, _groups(each), confidence)
        for each in measured
    ]
    pairs = [
        {"a": a.task.name, "b": b.task.name} | describe_agreement(a.scores, b.scores, units, THRESHOLD, confidence)
        for a, b in itertools.combinations(measured if len(measured) <= MOST_TASKS else (), 2)
    ]
    withhold_agreement(pairs, tasks)
    if len(measured) == 1:
        return {"tasks": tasks, "macro": None, "agreement": pairs}
    few = measured if len(measured) <= MOST_TASKS else ()
    pooled = Scores.pooled([each.scores for each in measured])
    return {
        "tasks": tasks,
        **shared_nouns(tasks),
        "macro": describe_blocks(pooled, units, confidence, granularity),
        "decision": decide_blocks(pooled, units, confidence),
        "regret": pay_for_blocks({each.task.name: each.scores for each in few}, units, confidence),
        "full": describe_full(pooled, confidence),
        "baseline": describe_baseline(pooled, confidence),
        "agreement": pairs,
    }


def _groups(measured: Measured) -> dict[str, list[str]]:
    """The mask that skips each unit, by its index."""
    return {str(name.index("0")): [name] for name in measured.scores.mask_ids if "0" in name}
