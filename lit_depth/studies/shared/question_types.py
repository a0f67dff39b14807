"""Quality by type of question, where the data name one (``question_type``): in results, and as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_depth.results.report import Section, Table
from lit_depth.results.table import Cell, format_interval
from lit_depth.studies.shared.evaluate import Measured
from lit_depth.studies.shared.scores import Scores, interval_entry

COLUMN = "question_type"  # of the records; in a sample's ``meta``
_MOST_PRINTED = 12


def describe_question_types(
    measured: Measured, groups: Mapping[str, Sequence[str]], confidence: float
) -> dict[str, Any]:
    """The result's ``question_types`` entry; nothing where questions have no types, or all have the same.

    Of each type: ``num_samples``, and under ``quality`` the mean score of the full model and of each group of masks,
    with intervals clustered by image; of a single image there is none. Types are not compared: nothing is tested.

    Args:
        measured: Of one task.
        groups: Ids of masks by what they are called, such as ``prefix_8``; their scores are averaged.
        confidence: Coverage of each interval.
    """
    records = measured.sweep.records
    if records is None or COLUMN not in records or records[COLUMN].isna().any() or not measured.scores.is_bounded:
        return {}  # some may have been recorded by an earlier version
    types = sorted(records[COLUMN].astype(str).unique())
    if len(types) < 2:
        return {}
    named = {"full": [measured.scores.full_id], **groups}
    found = {}
    for kind in types:
        scores = Scores.from_records(records[records[COLUMN].astype(str) == kind], measured.scores.max_scores[0])
        rows = np.stack([scores.rows(ids).mean(axis=0) for ids in named.values()])
        if len(set(scores.images)) > 1:
            entries = [interval_entry(each, "quality") for each in scores.mean_intervals(rows, confidence)]
        else:
            entries = [{"quality": float(row.mean()), "quality_ci": None} for row in rows]
        found[kind] = {"num_samples": len(scores.images), "quality": dict(zip(named, entries))}
    return {"question_types": found}


def question_type_sections(entry: Mapping[str, Any], shown: Mapping[str, str], several: bool = False) -> list[Section]:
    """Quality of some groups of masks by type; nothing where there are no types.

    Args:
        entry: Of one task, with `describe_question_types`.
        shown: Groups to show, and the header of each.
        several: Whether the result has several tasks.
    """
    types = entry.get("question_types")
    if not types:
        return []
    names = {"full": "full model", **shown}
    rows: list[Sequence[Cell]] = [
        [kind, each["num_samples"], *(_cell(each["quality"].get(name)) for name in names)]
        for kind, each in types.items()
    ]
    table = Table(["type", "questions", *names.values()], rows)
    title = f"Quality by type of question{', ' + entry['task'] if several else ''}"
    text = "Each interval stands alone: no two types or masks were tested against each other here."
    return [Section(title, text, table, printed=len(types) <= _MOST_PRINTED and len(names) <= 8)]


def _cell(found: Mapping[str, Any] | None) -> str | None:
    if found is None:
        return None
    limits = format_interval(found["quality_ci"], sign="")
    return f"{found['quality']:.3f}" + (f" {limits}" if limits else "")
