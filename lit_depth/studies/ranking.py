"""From per-sample scores with each block skipped to importance: drops with intervals, and ranks that admit ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional import leave_one_out, mask_id
from lit_depth.functional.statistics import (
    Interval,
    holm,
    macro_intervals,
    paired_intervals,
    pairwise_sign_flip_tests,
    sign_flip_test,
)
from lit_depth.studies.comparison import Scores

Floats = NDArray[np.float64]
# fields of `Scores` and keys of the result
MEASURES = ("quality", "reference_logprob")


def drops(scores: Scores, blocks: Sequence[int], num_blocks: int, measure: str) -> Floats:
    """Per-sample score of the full model minus that with one block skipped, ``[blocks, samples]``."""
    skipped = leave_one_out(num_blocks)
    values = getattr(scores, measure)
    row = {name: index for index, name in enumerate(scores.mask_ids)}
    full = values[row["1" * num_blocks]]
    return full - values[[row[mask_id(skipped[block_idx])] for block_idx in blocks]]


def describe_blocks(scores: Scores, blocks: Sequence[int], num_blocks: int, confidence: float) -> list[dict[str, Any]]:
    """One entry per measured block: its drop in quality and in reference log-probability, intervals, p-value, ranks.

    p-values are sign-flip permutations clustered by image, corrected over the blocks (Holm).
    """
    found = {}
    for measure in MEASURES:
        values = drops(scores, blocks, num_blocks, measure)
        found[measure] = values, paired_intervals(values, scores.images, confidence)
    return _entries(blocks, found, scores.images, confidence)


def macro_average(
    scores: Sequence[Scores], blocks: Sequence[int], num_blocks: int, confidence: float
) -> list[dict[str, Any]]:
    """As `describe_blocks`, for the mean over tasks of each block's drops, every task with the same weight."""
    total = sum(len(each.images) for each in scores)
    images = [f"{task}/{image}" for task, each in enumerate(scores) for image in each.images]
    found = {}
    for measure in MEASURES:
        tasks = [(drops(each, blocks, num_blocks, measure), each.images) for each in scores]
        # weighted so that the mean over all samples is the mean over tasks
        values = np.concatenate([rows * (total / (len(tasks) * rows.shape[1])) for rows, _ in tasks], axis=1)
        found[measure] = values, macro_intervals(tasks, confidence)
    return _entries(blocks, found, images, confidence)


def _entries(
    blocks: Sequence[int],
    found: dict[str, tuple[Floats, list[Interval]]],
    images: Sequence[str],
    confidence: float,
) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = [{"block": block_idx} for block_idx in blocks]
    for measure, (values, intervals) in found.items():
        p_values = [sign_flip_test(row, images) for row in values]
        ranks = rank_ranges(values, images, confidence)
        estimates = [interval.estimate for interval in intervals]
        for entry, interval, p, adjusted, span in zip(entries, intervals, p_values, holm(p_values), ranks):
            entry[measure] = {
                "drop": interval.estimate,
                "drop_ci": [interval.low, interval.high],
                "p_value": p,
                "p_holm": float(adjusted),
                "rank": 1 + sum(estimate > interval.estimate for estimate in estimates),
                "rank_ci": list(span),
            }
    return entries


def describe_full(scores: Scores, num_blocks: int, confidence: float) -> dict[str, Any]:
    """Mean quality and reference log-probability of the full model, with intervals."""
    row = scores.mask_ids.index("1" * num_blocks)
    values = np.stack([getattr(scores, measure)[row] for measure in MEASURES])
    intervals = paired_intervals(values, scores.images, confidence)
    return {
        key: value
        for measure, interval in zip(MEASURES, intervals)
        for key, value in ((measure, interval.estimate), (f"{measure}_ci", [interval.low, interval.high]))
    }


def rank_ranges(values: Floats, clusters: Sequence[str], confidence: float) -> list[tuple[int, int]]:
    """Ranks that each row may truly have, 1 = largest mean; all of them hold together with this confidence.

    Every pair of rows is tested (`pairwise_sign_flip_tests`); a row's best rank is 1 + the number of rows significantly
    above it, its worst is the number of rows minus those significantly below it (Mogstad, Romano, Shaikh & Wilhelm
    2024, doi:10.1093/restud/rdad006).

    >>> rank_ranges(np.array([[1.0] * 12, [0.0] * 12, [0.0] * 12]), list("abcdefghijkl"), 0.95)
    [(1, 1), (2, 3), (2, 3)]
    """
    count = len(values)
    p_values = pairwise_sign_flip_tests(values, clusters)
    means = values.mean(axis=1)
    better, worse = [0] * count, [0] * count
    for (a, b), p in p_values.items():
        if p < 1 - confidence:
            high, low = (a, b) if means[a] > means[b] else (b, a)
            better[low] += 1
            worse[high] += 1
    return [(1 + above, count - below) for above, below in zip(better, worse)]
