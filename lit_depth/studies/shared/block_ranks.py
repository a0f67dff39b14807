"""From per-sample scores with each block skipped to importance: drops with intervals, and ranks that admit ties."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional.masks import Granularity
from lit_depth.functional.statistics import pairwise_sign_flip_tests
from lit_depth.functional.statistics.agreement import rank_agreement
from lit_depth.results.verdicts import WITHHELD, differs, refusal
from lit_depth.studies.shared.scores import Measure, Scores, describe_with_full, family_entry, interval_entry

Floats = NDArray[np.float64]
# fields of `Scores` and keys of the result
MEASURES: tuple[Measure, ...] = ("quality", "reference_logprob")
MOST_TASKS = 20  # of which all pairs are compared: each pair takes up to a second


def drops(scores: Scores, units: Sequence[int], measure: Measure) -> Floats:
    """Per-sample score of the full model minus that with one unit skipped, ``[units, samples]``.

    ``units`` are indices in the mask, of blocks or of their halves, here and below.
    """
    return scores.rows([scores.full_id], measure) - scores.rows([_without(scores, unit) for unit in units], measure)


def _without(scores: Scores, unit: int) -> str:
    """Id of the mask that skips one unit."""
    return scores.full_id[:unit] + "0" + scores.full_id[unit + 1 :]


def describe_blocks(
    scores: Scores, units: Sequence[int], confidence: float, granularity: Granularity = "block"
) -> list[dict[str, Any]]:
    """One entry per measured unit: its drop in quality and in reference log-probability, intervals, p-value, ranks.

    p-values are sign-flip permutations clustered by image, corrected over the units (Holm); simultaneous intervals
    exclude 0 where the corrected p-value is below ``1 - confidence``.
    """
    names = [_without(scores, unit) for unit in units]
    entries: list[dict[str, Any]] = [
        ({"block": unit} if granularity == "block" else {"block": unit // 2, "sublayer": ("attn", "mlp")[unit % 2]})
        | {"num_distinct_answers": scores.distinct_answers(name), "agreement": agreement}
        for unit, name, agreement in zip(
            units, names, describe_with_full(scores, [[name] for name in names], confidence)
        )
    ]
    for measure in MEASURES:
        values = drops(scores, units, measure)
        found = scores.compare(values, confidence, measure)
        different = find_different(values, scores.images, confidence)
        # equal estimates share the better rank
        estimates = [each.interval.estimate for each in found]
        for index, (entry, row, span) in enumerate(zip(entries, found, rank_ranges(different))):
            ties = (unit for unit, other in zip(units, different[index]) if not other and unit != units[index])
            entry[measure] = {
                **family_entry(row, "drop"),
                "p_value": row.p_value,
                "p_holm": row.p_holm,
                "rank": 1 + sum(estimate > row.interval.estimate for estimate in estimates),
                "rank_ci": list(span),
                "tied_with": list(ties),
            }
    return entries


def describe_agreement(
    first: Scores, second: Scores, units: Sequence[int], threshold: float, confidence: float
) -> dict[str, Any]:
    """Do two measurements order the units alike? One entry per measure, see `lit_depth.functional.rank_agreement`.

    Returns:
        ``{measure: {"spearman", "p_value", "ci", "samples_needed", "verdict"}}``: ``ci`` is of the rank correlation
        that measurements without noise would show, ``verdict`` "consistent", "not consistent" or "not shown",
        ``samples_needed`` of either measurement for its lower limit to pass the threshold (null: none would, as far as
        can be seen). All are null where the drops of one side are all equal, which is no order, or where there are
        fewer than 4 units or images.
    """
    entries: dict[str, Any] = {}
    for measure in MEASURES:
        values = [drops(each, units, measure) for each in (first, second)]
        entry: dict[str, Any] = dict.fromkeys(("spearman", "p_value", "ci", "samples_needed"))
        entry["verdict"] = "not shown"
        enough = len(units) >= 4 and all(len(set(each.images)) >= 4 for each in (first, second))
        if enough and all(np.ptp(each.mean(axis=1)) > 0 for each in values):
            a, b = values
            found = rank_agreement(a, b, first.images, second.images, threshold=threshold, confidence=confidence)
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


def withhold_agreement(pairs: Sequence[dict[str, Any]], measurements: Sequence[Mapping[str, Any]]) -> None:
    """Take the verdict from every pair of which one side was measured on a task that the model does not do."""
    refused = {entry.get("name", entry["task"]) for entry in measurements if refusal(entry)}
    for pair in pairs:
        if {pair["a"], pair["b"]} & refused:
            for name in MEASURES:
                pair[name]["verdict"] = WITHHELD


def describe_full(scores: Scores, confidence: float) -> dict[str, Any]:
    """Mean quality and reference log-probability of the full model, with intervals; its number of distinct answers."""
    result: dict[str, Any] = {}
    for measure in MEASURES:
        (interval,) = scores.mean_intervals(scores.rows([scores.full_id], measure), confidence, measure)
        result |= interval_entry(interval, measure)
    return result | {"num_distinct_answers": scores.distinct_answers(scores.full_id)}


def find_different(values: Floats, clusters: Sequence[str], confidence: float) -> NDArray[np.int_]:
    """Which rows of ``[rows, samples]`` differ: all pairs are tested together (`pairwise_sign_flip_tests`).

    Gives ``[rows, rows]``: 1 where the row's mean is significantly larger than the column's, -1 where it is smaller, 0
    where the two are tied.
    """
    different = np.zeros((len(values), len(values)), dtype=int)
    means = values.mean(axis=1)
    for (a, b), p in pairwise_sign_flip_tests(values, clusters).items():
        if differs(p, confidence):
            different[a, b] = 1 if means[a] > means[b] else -1
            different[b, a] = -different[a, b]
    return different


def rank_ranges(different: NDArray[np.int_]) -> list[tuple[int, int]]:
    """Ranks that each row may truly have, 1 = largest mean; all of them hold together with the confidence of the tests.

    A row's best rank is 1 + the number of rows significantly above it, its worst is the number of rows minus those
    significantly below it (Mogstad, Romano, Shaikh & Wilhelm 2024, doi:10.1093/restud/rdad006).

    >>> rows = np.array([[1.0] * 12, [0.0] * 12, [0.0] * 12])
    >>> rank_ranges(find_different(rows, list("abcdefghijkl"), 0.95))
    [(1, 1), (2, 3), (2, 3)]
    """
    count = len(different)
    return [(1 + int((row < 0).sum()), count - int((row > 0).sum())) for row in different]


def tied_at_cut(scores: Sequence[float], tied_with: Mapping[int, Sequence[int]], kept: Sequence[int]) -> list[int]:
    """Blocks on either side of a policy's cut whose order is noise: each is tied with one on the other side.

    A block that is not in ``tied_with`` was not ranked.

    >>> tied_at_cut([0.9, 0.2, 0.1], {0: [], 1: [2], 2: [1]}, kept=[0, 1])
    [1, 2]
    >>> tied_at_cut([0.9, 0.2, 0.1], {0: [], 1: [2], 2: [1]}, kept=[0])
    []
    """
    active = set(kept)
    return [
        block
        for block in range(len(scores))
        if any((block in active) != (other in active) for other in tied_with.get(block, ()))
    ]
