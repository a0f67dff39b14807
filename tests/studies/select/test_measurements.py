"""Masks come from importance alone, from an earlier comparison, or are measured; times are those of whole requests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lit_depth.functional.latency.budget import percentile_bound
from lit_depth.studies.select import measurements
from lit_depth.studies.select.measurements import Earlier, describe_timing, read_comparison, read_latency


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


# as many requests are timed as the bound of the percentile needs


def test_the_fewest_requests_whose_largest_time_is_a_bound() -> None:
    enough = measurements.ENOUGH_REQUESTS
    # the largest of n times is too low if all n are within the percentile
    assert 0.95**enough <= 0.05 < 0.95 ** (enough - 1)
    assert percentile_bound(list(range(enough)), 0.95) == enough - 1


def test_all_masks_are_timed_on_as_many_requests_as_are_needed_or_given(monkeypatch):
    asked: list[Any] = []

    def time_masks(run, split, masks, path, *, num_requests, **_):
        asked.append((split, list(masks), num_requests))
        return pd.DataFrame([{"mask": mask, "total": 5} for mask in masks for _ in range(min(num_requests, 60))])

    monkeypatch.setattr(measurements, "time_masks", time_masks)
    clock = measurements.Clock(SimpleNamespace(folder=Path("folder")), new_tokens=4, threads=2)
    for given, most in ((None, 59), (7, 7), (100, 60)):
        times = clock.time_all(["10", "11"], SimpleNamespace(num_requests=given), None)
        assert asked.pop() == ("calibration", ["10", "11"], given or 59)
        assert times == {"10": [5.0] * most, "11": [5.0] * most}
    assert clock.time_all(["10"], SimpleNamespace(num_requests=7), {"11": [1.0]}) == {"11": [1.0]} and not asked
    options = [SimpleNamespace(mask_id=mask) for mask in ("10", "01", "11", "1110")]
    assert describe_timing(options, {"10": [5.0] * 59, "11": [5.0] * 59}, adapts=True) == {
        **{"adaptive": True, "num_requests": 118, "num_masks": 2, "depths_not_timed": [3]}
    }
