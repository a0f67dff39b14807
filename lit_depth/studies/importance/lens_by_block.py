"""The part of ``lit-depth importance --lens``: what the full model would answer behind each of its blocks.

A block behind which most answers are settled already changes few of them, so that it can go.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lit_depth.functional.statistics import Interval, mean_intervals
from lit_depth.studies.shared.evaluate import Measured
from lit_depth.studies.shared.scores import interval_entry


def describe_lens(measured: Measured, confidence: float) -> list[dict[str, Any]]:
    """One entry per block: where the reference answers stand behind it, see `lit_depth.functional.logit_lens`.

    Returns:
        ``block``; ``rank`` (median over the samples) and ``rank_quartiles``; ``logprob``, ``top`` and ``settled``, each
        with an interval ``..._ci`` clustered by image. ``top`` is the share of samples whose every answer token is the
        most likely one, ``settled`` that of samples where it stays so behind all later blocks.
    """
    records = measured.sweep.records
    assert records is not None
    full = records[records["mask"] == measured.scores.full_id].set_index("sample").loc[list(measured.scores.samples)]
    ranks, logprobs = _columns(full, "lens_rank"), _columns(full, "lens_logprob")
    if "weight" in full:  # as `Scores` weighs the log-probability
        logprobs = logprobs * (full["weight"] / full["weight"].mean()).to_numpy(float)
    images = measured.scores.images
    quartiles = np.quantile(ranks, [0.25, 0.5, 0.75], axis=1)
    intervals = {
        # no probability is above 1, though Student's limit may be
        "logprob": [
            each._replace(high=min(each.high, 0.0))
            for each in mean_intervals(logprobs, images, confidence, score_range=None)
        ],
        "top": mean_intervals((ranks == 1).astype(float), images, confidence),
        "settled": mean_intervals(settled(ranks).astype(float), images, confidence),
    }
    return [_entry(block, quartiles[:, block], intervals) for block in range(len(ranks))]


def settled(ranks: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where an answer of rank 1 keeps it behind all later blocks; ranks are ``[num_blocks, samples]``.

    >>> settled(np.array([[1, 1, 2], [4, 1, 3], [1, 1, 1]])).tolist()
    [[False, True, False], [False, True, False], [True, True, True]]
    """
    return np.logical_and.accumulate((ranks == 1)[::-1])[::-1]


def _columns(full: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Values of a column of lists, ``[num_blocks, samples]``."""
    return np.array(full[name].to_list(), dtype=float).T


def _entry(block: int, quartiles: NDArray[np.float64], intervals: dict[str, list[Interval]]) -> dict[str, Any]:
    low, median, high = map(float, quartiles)
    entry = {"block": block, "rank": median, "rank_quartiles": [low, high]}
    for name, found in intervals.items():
        entry |= interval_entry(found[block], name)
    return entry


def half_settled(lens: list[dict[str, Any]]) -> int | None:
    """The first block behind which half of the answers are settled that the last block gives; None if it gives none.

    >>> half_settled([{"block": 0, "settled": 0.1}, {"block": 1, "settled": 0.4}, {"block": 2, "settled": 0.8}])
    1
    """
    most = lens[-1]["settled"]
    return next((entry["block"] for entry in lens if entry["settled"] >= most / 2), None) if most else None
