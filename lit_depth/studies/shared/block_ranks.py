"""From per-sample scores with each block skipped to importance: drops with intervals, and ranks that admit ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional import leave_one_out, mask_id
from lit_depth.functional.masks import Granularity, full_id
from lit_depth.functional.statistics import pairwise_sign_flip_tests
from lit_depth.functional.statistics.agreement import rank_agreement
from lit_depth.studies.compare.analysis import Measure, Scores

Floats = NDArray[np.float64]
# fields of `Scores` and keys of the result
MEASURES: tuple[Measure, ...] = ("quality", "reference_logprob")


def drops(scores: Scores, blocks: Sequence[int], num_blocks: int, measure: str) -> Floats:
    """Per-sample score of the full model minus that with one block skipped, ``[blocks, samples]``.

    Of sublayers, here and below, ``blocks`` are the indices in the mask, and ``num_blocks`` is the length of the mask.
    """
    skipped = leave_one_out(num_blocks)
    values = getattr(scores, measure)
    row = {name: index for index, name in enumerate(scores.mask_ids)}
    full = values[row[full_id(num_blocks)]]
    return full - values[[row[mask_id(skipped[block_idx])] for block_idx in blocks]]


def describe_blocks(
    scores: Scores, blocks: Sequence[int], num_blocks: int, confidence: float, granularity: Granularity = "block"
) -> list[dict[str, Any]]:
    """One entry per measured block: its drop in quality and in reference log-probability, intervals, p-value, ranks.

    p-values are sign-flip permutations clustered by image, corrected over the blocks (Holm); simultaneous intervals
    exclude 0 where the corrected p-value is below ``1 - confidence``.
    """
    entries: list[dict[str, Any]] = [
        {"block": unit} if granularity == "block" else {"block": unit // 2, "sublayer": ("attn", "mlp")[unit % 2]}
        for unit in blocks
    ]
    for measure in MEASURES:
        values = drops(scores, blocks, num_blocks, measure)
        found = scores.compare(values, confidence, measure)
        ranks = rank_ranges(values, scores.images, confidence)
        estimates = [each.interval.estimate for each in found]
        for entry, (interval, p_value, p_holm, simultaneous), span in zip(entries, found, ranks):
            entry[measure] = {
                "drop": interval.estimate,
                "drop_ci": [interval.low, interval.high],
                "drop_simultaneous_ci": [simultaneous.low, simultaneous.high],
                "p_value": p_value,
                "p_holm": p_holm,
                "rank": 1 + sum(estimate > interval.estimate for estimate in estimates),
                "rank_ci": list(span),
            }
    return entries


def describe_agreement(
    first: Scores, second: Scores, blocks: Sequence[int], num_blocks: int, threshold: float, confidence: float
) -> dict[str, Any]:
    """Do two measurements order the blocks alike? One entry per measure, see `lit_depth.functional.rank_agreement`.

    Returns:
        ``{measure: {"spearman", "p_value", "ci", "samples_needed", "verdict"}}``: ``ci`` is of the rank correlation
        that measurements without noise would show, ``verdict`` "consistent", "not consistent" or "not shown",
        ``samples_needed`` of either measurement for its lower limit to pass the threshold (null: none would, as far as
        can be seen). All are null where the drops of one side are all equal, which is no order, or where there are
        fewer than 4 blocks or images.
    """
    entries: dict[str, Any] = {}
    for measure in MEASURES:
        values = [drops(each, blocks, num_blocks, measure) for each in (first, second)]
        entry: dict[str, Any] = dict.fromkeys(("spearman", "p_value", "ci", "samples_needed"))
        entry["verdict"] = "not shown"
        enough = len(blocks) >= 4 and all(len(set(each.images)) >= 4 for each in (first, second))
        if enough and all(np.ptp(each.mean(axis=1)) > 0 for each in values):
            found = rank_agreement(
                values[0], values[1], first.images, second.images, threshold=threshold, confidence=confidence
            )
            entry |= {
                "spearman": found.spearman,
                "p_value": found.p_value,
                "ci": [found.low, found.high],
                "samples_needed": found.factor and [found.factor * each.shape[1] for each in values],
            }
            if found.low >= threshold:
                entry["verdict"] = "consistent"
            elif found.high < threshold:
                entry["verdict"] = "not consistent"
        entries[measure] = entry
    return entries


def describe_full(scores: Scores, num_blocks: int, confidence: float) -> dict[str, Any]:
    """Mean quality and reference log-probability of the full model, with intervals."""
    row = scores.mask_ids.index(full_id(num_blocks))
    result: dict[str, Any] = {}
    for measure in MEASURES:
        (interval,) = scores.mean_intervals(getattr(scores, measure)[[row]], confidence, measure)
        result |= {measure: interval.estimate, f"{measure}_ci": [interval.low, interval.high]}
    return result


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
