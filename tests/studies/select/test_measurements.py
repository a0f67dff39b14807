"""Masks come from importance alone, from an earlier comparison, or are measured; times are those of whole requests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lit_depth.functional.latency.budget import percentile_bound
from lit_depth.functional.latency.planned_looks import planned_looks
from lit_depth.studies.select import measurements
from lit_depth.studies.select.measurements import Earlier, read_comparison, read_latency


def test_of_importance_alone_every_depth_has_its_most_important_blocks():
    arguments = SimpleNamespace(keep=[0], estimate_depth=True)
    run = SimpleNamespace(model=SimpleNamespace(num_blocks=3))
    earlier = Earlier(importance=[0.1, 0.2, 0.9])
    options, beside, scores = measurements.find_options(run, arguments, earlier, [], [])
    assert [option.mask_id for option in options] == ["100", "101", "111"]
    assert (beside, scores) == ({"baseline": None}, None)


def test_an_earlier_comparison_is_taken_as_it_is():
    arguments, options = SimpleNamespace(keep=[], estimate_depth=False), [object()]
    earlier = Earlier(options=options, beside={"baseline": {"answer": "yes"}})
    run = SimpleNamespace(model=SimpleNamespace(num_blocks=3))
    found = measurements.find_options(run, arguments, earlier, [], [])
    assert found == (options, {"baseline": {"answer": "yes"}}, None)


def test_times_are_totals_by_mask(tmp_path, monkeypatch):
    asked = {}

    def time_masks(run, split, masks, path, **options):
        asked.update(options, split=split, masks=masks, path=path)
        return pd.DataFrame({"mask": ["10", "11", "10"], "total": [1, 2.5, 3]})

    monkeypatch.setattr(measurements, "time_masks", time_masks)
    clock = measurements.Clock(SimpleNamespace(folder=tmp_path), new_tokens=4, threads=2)
    assert clock.time(["10", "11"], "validation", 2) == {"10": [1.0, 3.0], "11": [2.5]}
    assert asked["path"] == tmp_path / "latency" / "validation.jsonl"
    assert (asked["num_requests"], asked["new_tokens"], asked["threads"]) == (2, 4, 2)


# files of earlier runs are read as they were measured, or refused by what differs


def request(active: list[int], total: float, **changes: Any) -> dict[str, Any]:
    row = {"active_block_indices": active, "num_total_blocks": 3, "T_total": total, "num_output_tokens": 4}
    return {**row, **changes}


def written(folder: Path, samples: Any, **details: Any) -> str:
    (folder / "latency.json").write_text(json.dumps({"summary": [], "all_samples": samples}))
    if details:
        (folder / "latency_details.json").write_text(json.dumps(details))
    return str(folder / "latency.json")


def test_times_are_read_by_mask(tmp_path):
    path = written(
        tmp_path, [request([0, 2], 7.0), request([0, 1, 2], 9), request([2, 0], 8.0)], batch_size=1, device="x"
    )
    assert read_latency(path, 3, 4, "x") == {"101": [7.0, 8.0], "111": [9.0]}


@pytest.mark.parametrize(
    ("samples", "details", "message"),
    [
        ([request([0], 7.0, num_total_blocks=4)], {}, "4 new tokens and 4 blocks, this run has 4 and 3"),
        ([request([0], 7.0, num_output_tokens=5)], {}, "5 new tokens and 3 blocks"),
        ([request([0], 7.0)], {"batch_size": 2}, "measured with batch_size 2, this run has 1"),
        ([request([0], 7.0)], {"device": "other"}, "measured with device other, this run has x"),
        ([request([0], 7.0)], {"decoding": "static"}, "measured with decoding static, this run has dynamic"),
        ([], {}, "holds no request"),
        ([{}], {}, "expected the latency.json that `lit-depth latency` writes"),
        (None, {}, "expected the latency.json that `lit-depth latency` writes"),
    ],
)
def test_other_requests_are_refused(tmp_path, samples, details, message):
    with pytest.raises(ValueError, match=message):
        read_latency(written(tmp_path, samples, **details), 3, 4, "x")


def test_a_comparison_brings_its_masks_and_its_constant_answer(tmp_path, comparison):
    path = tmp_path / "m5.json"
    path.write_text(json.dumps(comparison))
    options, beside = read_comparison(str(path), 16, comparison["task"])
    assert {option.mask_id for option in options} == {
        mask["mask_id"]
        for each in (*comparison["strategies"], {"masks": [comparison["full"]]})
        for mask in each["masks"]
    }
    assert all(option.expected is None for option in options) and beside["baseline"] == comparison.get("baseline")
    readings = {"multiple_choice": {"1" * 16: {"quality": 0.5, "quality_ci": [0.25, 0.75], "parse_failed": 0.125}}}
    path.write_text(json.dumps({**comparison, "readings": readings}))
    assert "readings" not in beside and read_comparison(str(path), 16, comparison["task"])[1]["readings"] == readings
    for num_blocks, task in ((15, comparison["task"]), (16, "another")):
        with pytest.raises(ValueError, match="was measured with"):
            read_comparison(str(path), num_blocks, task)
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected the JSON file that `lit-depth compare` writes"):
        read_comparison(str(path), 16, "shapes")


# as many requests are timed as the percentile needs


def clock_of(monkeypatch: pytest.MonkeyPatch, times: dict[str, list[float]]) -> tuple[measurements.Clock, list[Any]]:
    """A clock that reads given times, and what it was asked for."""
    asked: list[Any] = []

    def time_masks(run, split, masks, path, *, num_requests, **_):
        asked.append((sorted(masks), num_requests))
        return pd.DataFrame([{"mask": mask, "total": time} for mask in masks for time in times[mask][:num_requests]])

    monkeypatch.setattr(measurements, "time_masks", time_masks)
    return measurements.Clock(SimpleNamespace(folder=Path("folder")), new_tokens=4, threads=2), asked


def test_a_mask_is_timed_until_it_is_known_whether_it_keeps_the_limit(monkeypatch):
    steady, spiky = [10.0 + 0.001 * index for index in range(200)], [10.0, *[20.0] * 3, *[10.0] * 196]
    options = [SimpleNamespace(mask_id=mask) for mask in ("10", "01", "11", "1110")]
    # 10 ms is below all times of a steady mask; 20 ms, the largest of them, is kept by the spiky one
    for limit_ms, more in ((None, []), (9.0, []), (12.0, [(["01"], 122)]), (20.0, [])):
        clock, asked = clock_of(monkeypatch, {"10": steady, "01": spiky, "11": steady})
        timed = clock.time_until_known(["10", "01", "11"], "calibration", limit_ms, tolerance=0.1)
        assert asked == [(["01", "10", "11"], 65), *more]
        most = 122 if more else 65
        assert {mask: len(found) for mask, found in timed.times.items()} == {"10": 65, "01": most, "11": 65}
        assert timed.confidence["10"] == timed.confidence["11"] == planned_looks()[0].confidence
        assert timed.confidence["01"] == planned_looks()[bool(more)].confidence
        assert timed.describe(options) == {
            **{"adaptive": True, "num_requests": 130 + most, "num_masks": 3, "num_settled": 2, "most_requests": 122},
            **{"tolerance": 0.1, "depths_not_timed": [3]},
        }


def test_a_second_look_that_the_split_cuts_short_errs_no_more_than_planned(monkeypatch):
    """Of 110 requests the second largest would be the bound at the first look's confidence: 3.6% + 2.4% is over 5%."""
    clock, _ = clock_of(monkeypatch, {"01": [*[20.0] * 3, *[10.0] * 107]})
    timed = clock.time_until_known(["01"], "calibration", limit_ms=15.0)
    assert len(timed.times["01"]) == 110 and timed.num_settled == 0
    first, second = planned_looks(0.95)
    assert timed.confidence == {"01": second.confidence}
    missed = [1 - look.confidence for look in (first, second)]
    assert missed[0] == pytest.approx(0.95**65) and missed[0] + 0.95**110 < 0.05
    assert percentile_bound(list(range(110)), 0.95, second.confidence) == 109
    assert percentile_bound(list(range(110)), 0.95, first.confidence) == 108


def test_a_small_split_and_a_given_number_end_it_too(monkeypatch):
    clock, asked = clock_of(monkeypatch, {"10": [5.0] * 24, "11": [6.0] * 24})
    timed = clock.time_until_known(["10", "11"], "calibration", limit_ms=5.5)
    assert len(asked) == 1 and timed.num_settled == 0 and timed.confidence == {}
    given = SimpleNamespace(num_requests=7)
    fixed = clock.time_all(["10"], given, None)
    assert asked[1:] == [(["10"], 7)] and fixed.num_settled is None and not fixed.describe([])["adaptive"]
    assert clock.time_all(["10"], given, {"11": [1.0]}).times == {"11": [1.0]}
