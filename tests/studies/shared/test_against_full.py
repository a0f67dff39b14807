"""Columns of agreement from records, and their entries, against loops over the records."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from lit_depth.functional.statistics import mean_intervals
from lit_depth.functional.token_agreement import tokens_per_check
from lit_depth.studies.shared.against_full import NUM_DRAFT
from lit_depth.studies.shared.scores import Scores, describe_with_full

MASKS = ("011", "101", "111")


def records(num_images: int = 6, seed: int = 0, prefix: str = "s") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for image, question, mask in itertools.product(range(num_images), range(3), MASKS):
        first = -1 if mask == "111" else int(rng.integers(-1, 3))
        share = 1.0 if mask == "111" else float(rng.integers(0, 3)) / 2
        accepted = "1" * 5 if mask == "111" else "".join(rng.choice(["0", "1"], 5))
        rows.append(
            {
                **{"mask": mask, "sample": f"{prefix}{image}-{question}", "image": f"i{image}"},
                **{"score": float(rng.integers(0, 3)) / 2, "prediction": str(rng.integers(2))},
                **{"reference_logprob": -1.0, "first_difference": first, "reference_agreement": share},
                "accepted": accepted,
            }
        )
    return pd.DataFrame(rows)


def by_sample(frame: pd.DataFrame, mask: str) -> list[tuple]:
    pairs = frame[frame["mask"] == mask].merge(frame[frame["mask"] == "111"], on="sample", suffixes=("", "_full"))
    return list(pairs.sort_values("sample").itertuples(index=False))


def test_entries_by_loops():
    frame = records()
    (entry, whole) = describe_with_full(Scores.from_records(frame), [["101"], ["111"]], 0.95)
    assert whole is None
    rows = by_sample(frame, "101")
    images = [row.image for row in rows]
    expected = {
        "same_answer": [row.first_difference == -1 for row in rows],
        "right_to_wrong": [row.score < row.score_full for row in rows],
        "wrong_to_right": [row.score > row.score_full for row in rows],
        "flips": [row.score != row.score_full for row in rows],
        "reference_agreement": [row.reference_agreement for row in rows],
        "acceptance": [row.accepted.count("1") / 5 for row in rows],
    }
    for name, values in expected.items():
        (interval,) = mean_intervals([np.array(values, dtype=float)], images)
        assert entry[name] == pytest.approx(interval.estimate) and entry[f"{name}_ci"] == pytest.approx(interval[1:])
    lengths = [tokens_per_check([char == "1" for char in row.accepted], NUM_DRAFT) for row in rows]
    assert entry["tokens_per_check"] == pytest.approx(np.mean(lengths))
    firsts = [row.first_difference for row in rows if row.first_difference >= 0]
    assert entry["num_different"] == len(firsts) and entry["first_difference"] == np.median(firsts)
    low, high = entry["first_difference_ci"]
    assert low <= entry["first_difference"] <= high


def test_a_group_is_the_mean_over_its_masks():
    scores = Scores.from_records(records())
    one, other, both = describe_with_full(scores, [["101"], ["011"], ["101", "011"]], 0.95)
    for name in ("same_answer", "flips", "reference_agreement", "acceptance", "tokens_per_check"):
        assert both[name] == pytest.approx((one[name] + other[name]) / 2)
    assert both["num_different"] == one["num_different"] + other["num_different"]


def test_of_several_tasks_each_counts_alike():
    tasks = [Scores.from_records(records(6)), Scores.from_records(records(20, seed=1))]
    (pooled,) = describe_with_full(Scores.pooled(tasks), [["101"]], 0.95)
    each = [describe_with_full(task, [["101"]], 0.95)[0] for task in tasks]
    for name in ("same_answer", "right_to_wrong", "flips", "reference_agreement", "acceptance", "tokens_per_check"):
        assert pooled[name] == pytest.approx(np.mean([entry[name] for entry in each]))
        assert pooled[f"{name}_ci"][0] <= pooled[name] <= pooled[f"{name}_ci"][1]
    assert pooled["num_different"] == sum(entry["num_different"] for entry in each)


def test_records_of_earlier_versions():
    frame = records()
    older = frame.drop(columns=["first_difference", "reference_agreement", "accepted"])
    (entry,) = describe_with_full(Scores.from_records(older), [["101"]], 0.95)
    assert entry["same_answer"] == np.mean([row.prediction == row.prediction_full for row in by_sample(frame, "101")])
    assert "flips" in entry and not {"first_difference", "reference_agreement", "acceptance"} & set(entry)
    # a part alone is nothing
    half = frame.copy()
    half.loc[:10, ["first_difference", "reference_agreement"]] = np.nan
    (part,) = describe_with_full(Scores.from_records(half), [["101"]], 0.95)
    assert part["same_answer"] == entry["same_answer"] and "reference_agreement" not in part and "acceptance" in part


def test_what_is_not_known_is_left_out():
    frame = records()
    (entry,) = describe_with_full(Scores.from_records(frame, with_flips=False), [["101"]], 0.95)
    assert "flips" not in entry and "same_answer" in entry
    (unbounded,) = describe_with_full(Scores.from_records(frame, float("inf")), [["101"]], 0.95)
    assert "flips" not in unbounded
    without = frame[frame["mask"] != "111"]
    assert describe_with_full(Scores.from_records(without), [["101"]], 0.95) == [None]
    same = frame.assign(first_difference=-1)
    (entry,) = describe_with_full(Scores.from_records(same), [["101"]], 0.95)
    assert entry["num_different"] == 0 and entry["first_difference"] is None
