"""What patching does to the order of the masks: the ``healing`` section of ``search.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional import ablation_masks, mask_id
from lit_depth.functional.search.ablations import Removed
from lit_depth.functional.search.racing import RankBy
from lit_depth.functional.statistics import paired_comparisons
from lit_depth.functional.statistics.agreement import rank_agreement_on_same_samples
from lit_depth.results.verdicts import differs
from lit_depth.studies.search.arguments import SearchArguments
from lit_depth.studies.search.healing import (
    LEAST_MASKS,
    REPORT_SPLIT,
    SPLIT,
    HealArguments,
    PatchedMask,
    patch_each,
    split_in_parts,
)
from lit_depth.studies.search.score_cache import ScoreCache
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.scores import Scores, family_entry, interval_entry

Rows = NDArray[np.float64]
_NO_GAIN = ("gain", "gain_ci", "gain_simultaneous_ci", "gain_p_holm")


def rank_after_healing(
    run: Run,
    cache: ScoreCache,
    levels: Sequence[Sequence[Removed]],
    before: Scores,
    healing: HealArguments,
    arguments: SearchArguments,
) -> dict[str, Any]:
    """Patch the masks of all levels one after another, and `describe_healing`."""
    ablations = [removed for level in levels for removed in level]
    patched = patch_each(run, healing, cache.clusters, ablations)
    names = [name for name, _ in run.datamodule.eval_dataset(SPLIT).recorded_ids()]
    fitted = [position for position in split_in_parts(cache.clusters).fit if names[position] not in cache.bad_samples]
    return {
        "fit": {"split": SPLIT, "num_questions": len(fitted)},
        **describe_healing(before, patched, levels, arguments.rank_by, arguments.confidence),
    }


def describe_healing(
    before: Scores,
    patched: Sequence[PatchedMask],
    levels: Sequence[Sequence[Removed]],
    rank_by: RankBy,
    confidence: float,
) -> dict[str, Any]:
    """Every patched mask before and after, and of each size how alike the two orders are and which mask is best.

    The mask that is best after patching is chosen on calibration questions that no patch was fitted on; all that is
    told of it, and both orders, are those of the report split. What is regained by all masks is one family, the drops
    that are left are another, and the gains of the sizes a third.

    Args:
        before: Of all masks as they are, on the report split.
        patched: Of all levels.
        levels: The masks of each size, the best before patching first.

    Raises:
        ValueError: If masks and patched ones answered other questions.
    """
    if any(each.report.samples != before.samples for each in patched):
        raise ValueError("expected the patched masks' answers to the same questions as before, got others")
    by_removed = {each.removed: each for each in patched}
    masks = _describe_masks(before, patched, confidence)
    sizes = [
        _describe_size([by_removed[removed] for removed in level], before, rank_by, confidence) for level in levels
    ]
    _add_gains(sizes, by_removed, before, confidence)
    first = patched[0]
    return {
        "choice": {
            "split": SPLIT,
            "num_samples": len(first.choice.samples),
            "num_images": len(set(first.choice.images)),
        },
        "report": {"split": REPORT_SPLIT, "num_samples": len(before.samples), "num_images": len(set(before.images))},
        "masks": masks,
        "levels": sizes,
        "mean": _mean(sizes),
    }


def _id(num_units: int, removed: Removed) -> str:
    return mask_id(ablation_masks(num_units, [removed])[0])


def _row(scores: Scores, removed: Removed) -> Rows:
    """Quality of each sample of one mask."""
    (row,) = scores.rows([_id(len(scores.mask_ids[0]), removed)])
    return row


def _ranked(scores: Scores, removed: Removed, rank_by: RankBy) -> Rows:
    """What ranks one mask, of each sample, as the search has it: quality from 0 to 1, or reference probability."""
    name = _id(len(scores.mask_ids[0]), removed)
    if rank_by == "reference_logprob":
        return np.exp(scores.rows([name], "reference_logprob")[0])
    return scores.rows([name])[0] / scores.max_scores[0]


def _describe_masks(before: Scores, patched: Sequence[PatchedMask], confidence: float) -> list[dict[str, Any]]:
    old = np.stack([_row(before, each.removed) for each in patched])
    new = np.stack([_row(each.report, each.removed) for each in patched])
    full = before.rows([before.full_id])
    families = zip(before.compare(new - old, confidence), before.compare(full - new, confidence))
    qualities = zip(before.mean_intervals(old, confidence), before.mean_intervals(new, confidence))
    return [
        {
            "removed": each.removed,
            "mask_id": _id(len(before.full_id), each.removed),
            **interval_entry(masked, "quality"),
            **interval_entry(mended, "healed_quality"),
            **family_entry(regained, "regained"),
            "regained_p_holm": regained.p_holm,
            **family_entry(left, "healed_drop"),
            "healed_drop_p_holm": left.p_holm,
            "num_distinct_answers": each.report.distinct_answers(each.report.mask_ids[0]),
            "spans": each.spans,
        }
        for each, (masked, mended), (regained, left) in zip(patched, qualities, families)
    ]


def _describe_size(
    patched: Sequence[PatchedMask], before: Scores, rank_by: RankBy, confidence: float
) -> dict[str, Any]:
    """The two orders of the masks of one size, and the best of either."""
    choice = np.stack([_ranked(each.choice, each.removed, rank_by) for each in patched])
    means = choice.mean(axis=1).round(12).tolist()  # equal ones stay ties
    # stable: of equal ones that which was better before
    order = sorted(range(len(patched)), key=lambda index: -means[index])
    return {
        "num_removed": len(patched[0].removed),
        "num_masks": len(patched),
        **_correlation(patched, before, rank_by, confidence),
        "order": [{"removed": patched[index].removed, "choice_score": means[index]} for index in order],
        "best_before": patched[0].removed,
        "best_after": patched[order[0]].removed,
        "tied_after": _tied(choice[order], patched[0].choice.images, [patched[i].removed for i in order], confidence),
    }


def _correlation(patched: Sequence[PatchedMask], before: Scores, rank_by: RankBy, confidence: float) -> dict[str, Any]:
    found: dict[str, Any] = {"spearman": None, "spearman_ci": None, "p_value": None, "reason": None}
    if len(patched) < LEAST_MASKS:
        return found | {"reason": f"fewer than {LEAST_MASKS} masks"}
    full = _ranked(before, (), rank_by)
    old, new = (
        full - np.stack([_ranked(scores, each.removed, rank_by) for each, scores in pairs])
        for pairs in ([(each, before) for each in patched], [(each, each.report) for each in patched])
    )
    for rows, when in ((old, "before"), (new, "after")):
        # by rounding alone no order
        if np.ptp(rows.mean(axis=1)) < 1e-12:
            return found | {"reason": f"all masks score alike {when} patching"}
    try:
        interval, p_value = rank_agreement_on_same_samples(old, new, before.images, confidence=confidence)
    except ValueError as error:  # too few images
        return found | {"reason": str(error)}
    return {
        "spearman": interval.estimate,
        "spearman_ci": [interval.low, interval.high],
        "p_value": p_value,
        "reason": None,
    }


def _tied(rows: Rows, images: Sequence[str], removed: Sequence[Removed], confidence: float) -> list[Removed]:
    """The first mask, and those that are not proven worse on the questions to choose by."""
    worse = paired_comparisons(rows[:1] - rows[1:], images, confidence) if len(rows) > 1 else []
    return [removed[0], *(each for each, row in zip(removed[1:], worse) if not differs(row.p_holm, confidence))]


def _add_gains(
    sizes: Sequence[dict[str, Any]], by_removed: Mapping[Removed, PatchedMask], before: Scores, confidence: float
) -> None:
    """What choosing after patching gives: quality of the best after, less that of the patched best before."""
    changed = [size for size in sizes if size["best_before"] != size["best_after"]]
    rows = [
        _row(by_removed[size["best_after"]].report, size["best_after"])
        - _row(by_removed[size["best_before"]].report, size["best_before"])
        for size in changed
    ]
    for size in sizes:
        size |= dict.fromkeys(_NO_GAIN)
    for size, found in zip(changed, before.compare(np.stack(rows), confidence) if rows else []):
        size |= {**family_entry(found, "gain"), "gain_p_holm": found.p_holm}


def _mean(sizes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Mean correlation over the sizes that have one; its limits are the means of theirs."""
    known = [size for size in sizes if size["spearman"] is not None]
    if not known:
        return None
    low, high = np.mean([size["spearman_ci"] for size in known], axis=0).tolist()
    return {
        "spearman": float(np.mean([size["spearman"] for size in known])),
        "spearman_ci": [low, high],
        "sizes": [size["num_removed"] for size in known],
    }
