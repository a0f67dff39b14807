"""From two measurements of the same blocks to how closely they agree."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lit_depth.functional.masks import Granularity
from lit_depth.studies.shared.block_ranks import MOST_TASKS, describe_agreement, withhold_agreement
from lit_depth.studies.shared.decisions import pay_for_blocks
from lit_depth.studies.shared.evaluate import Measured
from lit_depth.studies.shared.importance_scores import task_entry


def check_comparable(splits: Sequence[str], num_tasks: int, num_units: int, granularity: str, threshold: float) -> None:
    """Raise ValueError where there is nothing to compare, or too little."""
    if num_units < 4:
        raise ValueError(
            f"expected at least 4 {granularity}s, got {num_units}; skip fewer, a rank correlation needs them"
        )
    if not -1 < threshold < 1:
        raise ValueError(f"expected a threshold between -1 and 1, got {threshold}")
    if len(splits) not in (1, 2) or len(set(splits)) < len(splits):
        raise ValueError(f"splits: expected one or two different ones, got {splits}")
    if len(splits) == 1 and num_tasks > MOST_TASKS:
        raise ValueError(
            f"expected at most {MOST_TASKS} tasks with one split, whose pairs are compared, got {num_tasks}"
        )
    if len(splits) == 1 and num_tasks < 2:
        raise ValueError("expected two or more tasks with one split, got one; give --data.tasks a b, or --splits a b")


def describe(
    measured: Sequence[Measured],
    splits: Sequence[str],
    units: Sequence[int],
    granularity: Granularity,
    threshold: float,
    confidence: float,
) -> dict[str, Any]:
    """Every measurement, and the agreement of both splits of each task, or of every pair of tasks."""
    by_name: Mapping[str, Measured] = {
        each.task.name if len(splits) == 1 else f"{each.task.name}, {each.split}": each for each in measured
    }
    names = list(by_name)
    entries = [
        {"name": name, "split": each.split} | task_entry(each, units, confidence, granularity)
        for name, each in by_name.items()
    ]
    pairs = [
        {"a": a, "b": b} | describe_agreement(by_name[a].scores, by_name[b].scores, units, threshold, confidence)
        for a, b in (zip(names[::2], names[1::2]) if len(splits) == 2 else itertools.combinations(names, 2))
    ]
    withhold_agreement(pairs, entries)
    groups = [names[place : place + 2] for place in range(0, len(names), 2)] if len(splits) == 2 else [names]
    regrets = [
        each
        for group in groups
        for each in pay_for_blocks({name: by_name[name].scores for name in group}, units, confidence)
    ]
    return {"measurements": entries, "pairs": pairs, "regret": regrets}
