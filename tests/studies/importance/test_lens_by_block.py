"""What is told of the logit lens follows from the records of the full model alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lit_depth.functional.statistics import mean_intervals
from lit_depth.studies.importance.figures import importance_figures
from lit_depth.studies.importance.lens_by_block import describe_lens, half_settled, settled
from lit_depth.studies.importance.report import report
from tests.studies.importance.test_figures import BLOCKS

RANKS = {"a": [9, 1, 1], "b": [4, 1, 2], "c": [1, 3, 1], "d": [1, 1, 1]}
IMAGES = {"a": "x", "b": "x", "c": "y", "d": "z"}


def measured(weight: dict[str, float] | None = None) -> SimpleNamespace:
    rows = []
    for sample, ranks in RANKS.items():
        lens = {"lens_rank": ranks, "lens_logprob": [-float(rank) for rank in ranks]}
        rows.append({"mask": "111", "sample": sample, "image": IMAGES[sample], **lens})
        rows.append({"mask": "101", "sample": sample, "image": IMAGES[sample]})
    records = pd.DataFrame(rows)
    if weight is not None:
        records["weight"] = records["sample"].map(weight)
    scores = SimpleNamespace(full_id="111", samples=tuple(RANKS), images=list(IMAGES.values()))
    return SimpleNamespace(sweep=SimpleNamespace(records=records), scores=scores)


def test_medians_quartiles_shares_and_intervals():
    lens = describe_lens(measured(), 0.95)
    ranks = np.array(list(RANKS.values()), dtype=float).T
    assert [entry["block"] for entry in lens] == [0, 1, 2]
    assert [entry["rank"] for entry in lens] == [2.5, 1.0, 1.0]
    assert lens[0]["rank_quartiles"] == np.quantile(ranks[0], [0.25, 0.75]).tolist()
    assert [entry["top"] for entry in lens] == [0.5, 0.75, 0.75]
    assert [entry["settled"] for entry in lens] == [0.25, 0.5, 0.75]
    assert [entry["logprob"] for entry in lens] == (-ranks.mean(axis=1)).tolist()
    expected = mean_intervals(settled(ranks).astype(float), list(IMAGES.values()))
    assert [entry["settled_ci"] for entry in lens] == [[each.low, each.high] for each in expected]
    assert half_settled(lens) == 1


def test_no_limit_of_a_log_probability_is_above_0():
    lens = describe_lens(measured(), 0.95)
    logprobs = -np.array(list(RANKS.values()), dtype=float).T
    limits = mean_intervals(logprobs, list(IMAGES.values()), 0.95, score_range=None)
    assert any(each.high > 0 for each in limits)
    assert [entry["logprob_ci"] for entry in lens] == [[each.low, min(each.high, 0.0)] for each in limits]


def test_longer_texts_count_more():
    lens = describe_lens(measured(dict.fromkeys("abc", 1.0) | {"d": 5.0}), 0.95)
    assert lens[0]["logprob"] == pytest.approx(-(9 + 4 + 1 + 5 * 1) / 8)


def test_the_report_has_a_table_and_a_figure_of_it():
    lens = describe_lens(measured(), 0.95)
    blocks = [
        {**entry, "num_distinct_answers": 5, "quality": {**entry["quality"], "rank": 1, "rank_ci": [1, 3]}}
        for entry in BLOCKS
    ]
    for entry in blocks:
        entry["reference_logprob"] = entry["quality"]
    task = {"task": "shapes", "metric": "ExactMatch", "num_samples": 4, "num_images": 3, "num_bad_samples": 0}
    task |= {"blocks": blocks, "lens": lens, "in_training_mixture": False}
    full = {"quality": 0.8, "quality_ci": [0.7, 0.9], "num_distinct_answers": 5}
    task |= {"full": full, "baseline": None}
    result = {"tasks": [task], "split": "calibration", "confidence": 0.95, "macro": None, "agreement": []}
    (section,) = [each for each in report(result).sections if each.heading == "Where answers come from"]
    assert section.table is not None and section.figures == ["logit_lens"]
    assert [row[0] for row in section.table.rows] == [0, 1, 2]
    assert [row[-1] for row in section.table.rows] == ["+0.500", None, "+0.010"]
    assert "settled behind block 1" in section.text
    figure = importance_figures(result)["logit_lens"]()
    assert list(figure.axes[0].lines[0].get_ydata()) == [2.5, 1.0, 1.0]
    assert figure.axes[3].get_ylabel().endswith("block skipped")
