"""From matched samples to the result: what exported models lose elsewhere, and whether they lost it here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_depth.functional.statistics import FamilyRow, mean_intervals, separate_comparisons
from lit_depth.results.verdicts import differs, refusal
from lit_depth.studies.confirm.pairing import Pair
from lit_depth.studies.shared.against_full import flips
from lit_depth.studies.shared.scores import interval_entry

CONFIRMED, SAME = "confirmed", "confirmed: the same on every sample"
CONTRADICTED, OPEN = "not confirmed: it differs", "not confirmed: too few samples"


def describe(
    pairs: Sequence[Pair],
    names: Sequence[str],
    entries: Sequence[Mapping[str, Any]],
    confidence: float,
    tolerance: float,
) -> dict[str, Any]:
    """The result: a row for each exported model and task.

    Drops are one family of tests, and their differences from ours another (Holm); every task has samples of its own.

    Args:
        pairs: Of the models and tasks.
        names: What each model is called.
        entries: What the result of our run says of each task; empty where nothing is known.
        confidence: Of all intervals.
        tolerance: Largest difference of two drops that still confirms.
    """
    lost = separate_comparisons(
        [pair.drop for pair in pairs],
        [pair.clusters for pair in pairs],
        confidence,
        score_ranges=[1.0 if pair.is_bounded else None for pair in pairs],
    )
    ours = [pair for pair in pairs if pair.ours is not None and len(set(pair.ours.images)) > 1]
    drops = [pair.drops_on_ours() for pair in ours]
    beyond = separate_comparisons(
        [theirs - mine for theirs, mine, _ in drops],
        [images for *_, images in drops],
        confidence,
        # two differences of shares are apart by 2 at most
        score_ranges=[2.0 if pair.is_bounded else None for pair in ours],
    )
    agreement = {id(pair): _agreement(pair, found, confidence, tolerance) for pair, found in zip(ours, beyond)}
    rows = [
        _row(pair, name, entry, found, confidence) | {"ours": agreement.get(id(pair))}
        for pair, name, entry, found in zip(pairs, names, entries, lost, strict=True)
    ]
    return {"command": "ingest", "confidence": confidence, "tolerance": tolerance, "rows": rows}


def _row(pair: Pair, name: str, entry: Mapping[str, Any], found: FamilyRow, confidence: float) -> dict[str, Any]:
    whole, exported = mean_intervals(
        [pair.whole, pair.exported], pair.clusters, confidence, score_range=1.0 if pair.is_bounded else None
    )
    changed = flips(pair.exported, pair.whole) if pair.is_bounded else {}
    shares = mean_intervals(list(changed.values()), pair.clusters, confidence) if changed else ()
    reason = refusal(entry, pair.log.task) if entry.get("full") else None
    return {
        "harness": pair.log.harness,
        "task": pair.log.task,
        "model": name,
        "mask_id": pair.mask,
        "metric": pair.metric,
        "num_samples": len(pair.samples),
        "num_images": len(set(pair.clusters)),
        "whole": {**interval_entry(whole, "quality"), "from": "our run" if pair.whole_is_ours else "their log"},
        "exported": interval_entry(exported, "quality"),
        **interval_entry(found.interval, "drop"),
        "drop_simultaneous_ci": [found.simultaneous.low, found.simultaneous.high],
        "drop_p_value": found.p_value,
        "drop_p_holm": found.p_holm,
        **{key: each for name, share in zip(changed, shares) for key, each in interval_entry(share, name).items()},
        "verdict": None if reason else _verdict(found, confidence),
        "withheld": reason,
        "bounded": pair.is_bounded,
        "matched_by": pair.matched_by,
        "unmatched": {side: {"number": len(some), "first": some[:3]} for side, some in pair.unmatched.items()},
    }


def _verdict(found: FamilyRow, confidence: float) -> str:
    if not differs(found.p_holm, confidence):
        return "tie"
    return "worse" if found.interval.estimate > 0 else "better"


def _agreement(pair: Pair, found: FamilyRow, confidence: float, tolerance: float) -> dict[str, Any]:
    """How the drop that was measured elsewhere stands to ours, on the samples of both."""
    theirs, mine, images = pair.drops_on_ours()
    (whole, scores), answers = pair.equal_scores(), pair.equal_answers()
    assert pair.ours is not None
    other = [sample for sample, equal in zip(pair.ours.samples, scores) if not equal]
    return {
        "num_samples": len(mine),
        "num_images": len(set(images)),
        "split": pair.ours.role,
        "their_drop": float(theirs.mean()),
        "our_drop": float(mine.mean()),
        **interval_entry(found.interval, "difference"),
        "difference_simultaneous_ci": [found.simultaneous.low, found.simultaneous.high],
        "p_value": found.p_value,
        "p_holm": found.p_holm,
        "equal_scores_whole": float(whole.mean()),
        "equal_scores": float(scores.mean()),
        "equal_answers": float(np.mean(answers)) if answers else None,
        "first_other_scores": other[:3],
        "verdict": confirmation(bool(np.allclose(theirs, mine, rtol=0, atol=1e-6)), found, confidence, tolerance),
    }


def confirmation(all_equal: bool, found: FamilyRow, confidence: float, tolerance: float) -> str:
    """Whether two drops are the same as far as it matters.

    They are where they agree on every sample, or the simultaneous interval of their difference lies within the
    tolerance. An interval that merely holds 0 confirms nothing: with few samples it always does.
    """
    low, high = found.simultaneous.low, found.simultaneous.high
    if all_equal:
        return SAME
    if -tolerance <= low and high <= tolerance:
        return CONFIRMED
    return CONTRADICTED if differs(found.p_holm, confidence) else OPEN
