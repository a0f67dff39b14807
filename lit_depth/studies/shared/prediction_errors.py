"""How far drops that singles and pairs predict are off, by number of removed units: of the sum of singles, and of both.

A prediction is a mapping with the ablation's ``removed`` units, its measured ``drop``, and what was predicted of it:
``additive`` (the sum of its units' own drops) and ``predicted`` (with the interactions of all its pairs).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_depth.results.table import Cell

ERROR_HEADERS = ("removed", "masks", "mean drop", "error, sum of singles", "error, with pairs", "bias")


def describe_errors(predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per number of removed units: mean absolute errors of both models, and their mean signed ones.

    >>> found = describe_errors([{"removed": [0, 1, 2], "drop": 0.5, "additive": 0.25, "predicted": 0.625}])
    >>> found[0]["additive_mean_absolute_error"], found[0]["additive_bias"], found[0]["predicted_bias"]
    (0.25, -0.25, 0.125)
    """
    rows = []
    for size in sorted({len(each["removed"]) for each in predictions}):
        of_size = [each for each in predictions if len(each["removed"]) == size]
        row: dict[str, Any] = {
            "num_removed": size,
            "num_masks": len(of_size),
            "mean_drop": float(np.mean([each["drop"] for each in of_size])),
        }
        for name in ("additive", "predicted"):
            errors = np.array([each[name] - each["drop"] for each in of_size])
            row |= {f"{name}_mean_absolute_error": float(np.abs(errors).mean()), f"{name}_bias": float(errors.mean())}
        rows.append(row)
    return rows


def describe_skill(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Are predictions with pairs closer to the measured drops than one number for all masks of a size would be?

    That number is, for each mask, the mean drop of the others of its size; a mask without others does not count.
    ``is_useful`` is whether the mean absolute error of the predictions is smaller, or 0; None where there is nothing to
    compare with.

    >>> pairs = [(0.1, 0.2), (0.5, 0.4)]
    >>> describe_skill([{"removed": [0, 1, 2], "drop": drop, "predicted": guess} for drop, guess in pairs])
    {'num_masks': 2, 'error': 0.1, 'error_of_mean': 0.4, 'is_useful': True}
    """
    errors, of_mean = [], []
    for size in sorted({len(each["removed"]) for each in predictions}):
        drops, predicted = np.array([[e["drop"], e["predicted"]] for e in predictions if len(e["removed"]) == size]).T
        if len(drops) > 1:
            errors += np.abs(predicted - drops).tolist()
            of_mean += np.abs((drops.sum() - drops) / (len(drops) - 1) - drops).tolist()
    if not errors:
        return {"num_masks": 0, "error": None, "error_of_mean": None, "is_useful": None}
    # sums in another order differ in their last bits
    error, error_of_mean = (round(float(np.mean(each)), 9) for each in (errors, of_mean))
    return {
        "num_masks": len(errors),
        "error": error,
        "error_of_mean": error_of_mean,
        "is_useful": error < error_of_mean or error == 0,
    }


def skill_sentence(skill: Mapping[str, Any] | None, of: str) -> str:
    """Whether predictions of ``of`` are worth anything; empty for results of earlier versions."""
    if skill is None:
        return ""
    if skill["is_useful"] is None:
        return f"Too few held-out masks of one size to tell whether singles and pairs predict {of}."
    errors = f"error {skill['error']:.3f}, that of the mean drop of the others of its size {skill['error_of_mean']:.3f}"
    if skill["is_useful"]:
        return f"Singles and pairs predict {of}: {errors}."
    return f"SINGLES AND PAIRS DO NOT PREDICT {of}: {errors}. No larger mask follows from them."


def error_rows(errors: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    """What `describe_errors` found, under `ERROR_HEADERS`."""
    keys = ("num_removed", "num_masks", "mean_drop", "additive_mean_absolute_error", "predicted_mean_absolute_error")
    return [[*(row[key] for key in keys), f"{row['predicted_bias']:+.3f}"] for row in errors]
