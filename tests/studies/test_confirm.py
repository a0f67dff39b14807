"""From matched samples to verdicts: paired tests of all models and tasks as one family, and agreement with ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from lit_depth.functional.statistics import paired_comparisons
from lit_depth.integrations.sample_logs import LoggedSample, SampleLog
from lit_depth.studies.confirm.analysis import CONFIRMED, CONTRADICTED, OPEN, SAME, describe
from lit_depth.studies.confirm.pairing import Ours, Pair
from lit_depth.studies.confirm.report import report
from lit_depth.studies.shared.publish import as_text


def pair_of(whole: Any, exported: Any, ours: tuple[Any, Any] | None = None, task: str = "sums", **more: Any) -> Pair:
    names = [str(number) for number in range(len(whole))]
    samples = {name: LoggedSample(("", ""), None, None, "a", {"acc": 0.0}) for name in names}
    log = SampleLog("log", "lm_eval", task, "model", samples)  # type: ignore[arg-type]
    arrays = [np.asarray(each, float) for each in (whole, exported)]
    records = None
    if ours is not None:
        full, masked = (np.asarray(each, float) for each in ours)
        records = Ours(names[: len(full)], full, masked, "validation", ["a"] * len(full), names[: len(full)])
    given = {"mask": "1011", "clusters": names, **more}
    return Pair(log, "acc", given["mask"], names, given["clusters"], *arrays, records, {}, "id", False)


def described(*pairs: Pair, tolerance: float = 0.02, entries: Any = None) -> dict[str, Any]:
    names = [f"model {number}" for number in range(len(pairs))]
    return describe(pairs, names, entries or [{}] * len(pairs), 0.95, tolerance)


def test_one_comparison_is_mcnemars_exact_test():
    whole, exported = [1.0] * 30 + [0.0] * 10, [1.0] * 18 + [0.0] * 20 + [1.0] * 2
    (row,) = described(pair_of(whole, exported))["rows"]
    assert row["drop"] == pytest.approx((12 - 2) / 40) and row["num_samples"] == 40
    assert row["drop_p_holm"] == pytest.approx(stats.binomtest(2, 14).pvalue)
    assert row["verdict"] == "worse" and row["whole"]["quality"] == 0.75 and row["exported"]["quality"] == 0.5
    (back,) = described(pair_of(exported, whole))["rows"]
    assert back["verdict"] == "better" and back["drop"] == -row["drop"]


def test_all_models_and_tasks_are_one_family():
    pairs = [pair_of([1.0] * 20, [0.0] * lost + [1.0] * (20 - lost), task=f"t{lost}") for lost in (6, 7, 0)]
    pairs.append(pair_of([1.0] * 9, [0.0] * 9, task="small"))
    rows = described(*pairs)["rows"]
    alone = [2 * 0.5**6, 2 * 0.5**7, 1.0, 2 * 0.5**9]
    assert [row["drop_p_value"] for row in rows] == pytest.approx(alone)
    assert [row["drop_p_holm"] for row in rows] == pytest.approx([2 * alone[0], 3 * alone[1], 1.0, 4 * alone[3]])
    assert [row["verdict"] for row in rows] == ["tie", "worse", "tie", "worse"]
    for row in rows:
        low, high = row["drop_simultaneous_ci"]
        assert (low > 0 or high < 0) == (row["verdict"] != "tie") and low <= row["drop"] <= high


def test_rows_of_the_same_samples_are_the_family_that_they_are_elsewhere():
    generator = np.random.default_rng(0)
    whole, exports = generator.integers(2, size=60), generator.integers(2, size=(3, 60))
    clusters = [str(number // 2) for number in range(60)]
    rows = described(*(pair_of(whole, each, clusters=clusters) for each in exports))["rows"]
    for row, found in zip(rows, paired_comparisons(whole - exports, clusters)):
        assert (row["drop_p_holm"], row["drop"]) == pytest.approx((found.p_holm, found.interval.estimate))
        assert row["drop_simultaneous_ci"] == pytest.approx([found.simultaneous.low, found.simultaneous.high])
    assert rows[0]["num_images"] == 30


def test_what_was_measured_elsewhere_confirms_contradicts_or_leaves_open():
    ones, zeros = np.ones(400), np.zeros(400)
    same = pair_of(ones, np.r_[zeros[:40], ones[:360]], (ones, np.r_[zeros[:40], ones[:360]]))
    other = pair_of(ones, np.r_[zeros[:80], ones[:320]], (ones, np.r_[zeros[:40], ones[:360]]))
    few = pair_of(ones[:9], [0.0] + [1.0] * 8, (ones[:9], ones[:9]))
    rows = described(same, other, few)["rows"]
    assert [row["ours"]["verdict"] for row in rows] == [SAME, CONTRADICTED, OPEN]
    ours = rows[1]["ours"]
    assert (ours["their_drop"], ours["our_drop"], ours["difference"]) == pytest.approx((0.2, 0.1, 0.1))
    assert ours["equal_scores"] == pytest.approx(0.9) and ours["first_other_scores"] == ["40", "41", "42"]
    assert ours["equal_answers"] == 1.0 and rows[0]["ours"]["equal_scores"] == 1.0
    # one in 400 differs: within two points, whatever it is
    near = pair_of(ones, np.r_[zeros[:41], ones[:359]], (ones, np.r_[zeros[:40], ones[:360]]))
    assert described(near)["rows"][0]["ours"]["verdict"] == CONFIRMED
    assert described(near, tolerance=0.001)["rows"][0]["ours"]["verdict"] == OPEN


def test_an_offset_of_an_engine_that_moves_both_models_alike_is_no_difference_of_drops():
    ours_full, ours_masked = np.tile([1.0, 1.0, 0.0, 1.0], 50), np.tile([1.0, 0.0, 0.0, 1.0], 50)
    found = pair_of(ours_full - 0.25, ours_masked - 0.25, (ours_full, ours_masked))
    (row,) = described(found)["rows"]
    assert row["ours"]["verdict"] == SAME and row["ours"]["equal_scores"] == 0.0 and not row["bounded"]
    told = as_text(report(described(found) | {"remarks": [], "files": []}))
    assert "the whole model, too, scores otherwise there than here; 0.0% of its scores are equal" in told
    assert "leave 0 to 1, so intervals are Student's" in told


def test_no_verdict_where_the_full_model_does_no_better_than_a_constant():
    baseline = {"answer": "A", "quality": 0.4, "difference": 0.1, "difference_ci": [-0.1, 0.3], "beaten": False}
    entry = {"full": {"quality": 0.5}, "baseline": baseline}
    result = described(pair_of([1.0] * 20, [0.0] * 20), entries=[entry])
    (row,) = result["rows"]
    assert row["verdict"] is None and row["withheld"].startswith("No verdict on sums") and row["drop"] == 1.0
    told = as_text(report(result | {"remarks": [], "files": []}))
    assert told.strip().startswith("No verdict on sums") and "withheld" in told


def test_the_report_tells_all_of_it():
    result = described(pair_of(np.ones(40), np.zeros(40), (np.ones(40), np.zeros(40))))
    result["rows"][0]["unmatched"] = {"of the whole model alone": {"number": 4, "first": ["7", "8", "9"]}}
    file = {"of": "exported", "task": "sums", "path": "a.jsonl", "sha256": "0" * 64}
    told = as_text(report(result | {"remarks": ["sums: metric acc."], "files": [file]}))
    assert "1 of 1 drops that we measured are confirmed." in told
    assert "of 1 comparisons 1 are worse, 0 better, 0 tied" in told
    assert "samples that were left out: 4 of the whole model alone (7, 8, 9, ...)." in told and "metric acc." in told
    assert "+1.000 [" in told and "100.0%" in told and SAME in told
