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


def error_rows(errors: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    """What `describe_errors` found, under `ERROR_HEADERS`."""
    keys = ("num_removed", "num_masks", "mean_drop", "additive_mean_absolute_error", "predicted_mean_absolute_error")
    return [[*(row[key] for key in keys), f"{row['predicted_bias']:+.3f}"] for row in errors]
