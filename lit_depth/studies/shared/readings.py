"""The same answers read in two ways, as results hold them: each reading's score, and what it could not parse."""

from collections.abc import Mapping
from typing import Any

from lit_depth.studies.shared.evaluate import Measured
from lit_depth.studies.shared.scores import Scores, interval_entry


def describe_readings(measured: Measured, confidence: float) -> dict[str, Any]:
    """The result's ``readings`` entry, by metric and mask, the task's own metric first; nothing of a single reading.

    Each has its ``quality`` with interval, where answers are scored, and ``parse_failed``, the share of answers in
    which it finds no option, null where the metric looks for none.
    """
    records, sweep = measured.sweep.records, measured.sweep
    columns = {measured.task.metric: ("score", "parse_failed")}
    columns |= {name: (name, f"{name}_parse_failed") for name in sweep.also}
    if records is None or not any(column in records for name in sweep.also for column in columns[name]):
        return {}
    is_scored = not getattr(sweep.metric, "against_full", False)
    if not is_scored:
        del columns[measured.task.metric]
    elif any(records[name].isna().any() for name in sweep.also if name in records):
        return {}  # a part was recorded by an earlier version, which read answers once
    found = {}
    for name, (score, failed) in columns.items():
        metric = sweep.also.get(name, sweep.metric)
        qualities = _qualities(measured, score, metric.max_score, confidence) if is_scored else {}
        shares: Mapping[str, float] = {}
        if failed in records:
            known = records.dropna(subset=[failed])
            shares = known[failed].astype(float).groupby(known["mask"]).mean().to_dict()
        found[name] = {
            mask: {**qualities.get(mask, {}), "parse_failed": shares.get(mask)} for mask in measured.scores.mask_ids
        }
    return {"readings": found}


def _qualities(measured: Measured, column: str, max_score: float, confidence: float) -> dict[str, dict[str, Any]]:
    """Mean of a column of scores, with interval, by mask."""
    records = measured.sweep.records
    assert records is not None
    scores = Scores.from_records(records.assign(score=records[column]), max_score)
    intervals = scores.mean_intervals(scores.quality, confidence)
    return {mask: interval_entry(each, "quality") for mask, each in zip(scores.mask_ids, intervals)}
