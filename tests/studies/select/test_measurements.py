"""Masks come from importance alone, from an earlier comparison, or are measured; times are those of whole requests."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd

from lit_depth.studies.select import measurements
from lit_depth.studies.select.earlier_results import Earlier


def test_of_importance_alone_every_depth_has_its_most_important_blocks():
    arguments = SimpleNamespace(keep=[0], estimate_depth=True)
    model = SimpleNamespace(num_blocks=3)
    earlier = Earlier(importance=[0.1, 0.2, 0.9])
    options, baseline = measurements.find_options(None, model, None, arguments, earlier, [], [], None)
    assert [option.mask_id for option in options] == ["100", "101", "111"] and baseline is None


def test_an_earlier_comparison_is_taken_as_it_is():
    arguments, options = SimpleNamespace(keep=[], estimate_depth=False), [object()]
    earlier = Earlier(options=options, baseline={"answer": "yes"})
    found = measurements.find_options(None, None, None, arguments, earlier, [], [], None)
    assert found == (options, {"answer": "yes"})


def test_times_are_totals_by_mask(tmp_path, monkeypatch):
    asked = {}

    def time_masks(trainer, model, datamodule, split, masks, path, **options):
        asked.update(options, split=split, masks=masks, path=path)
        return pd.DataFrame({"mask": ["10", "11", "10"], "total": [1, 2.5, 3]})

    monkeypatch.setattr(measurements, "time_masks", time_masks)
    clock = measurements.Clock(None, None, None, tmp_path, new_tokens=4, threads=2)
    assert clock.time(["10", "11"], "validation", 2) == {"10": [1.0, 3.0], "11": [2.5]}
    assert asked["path"] == tmp_path / "latency" / "validation.jsonl" and asked["batch_size"] == 1
    assert (asked["num_requests"], asked["new_tokens"], asked["threads"]) == (2, 4, 2)
