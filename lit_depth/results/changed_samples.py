"""Samples that a mask answers otherwise than the full model, from the records of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

MOST = 20  # changed samples that are shown of a mask
MOST_SAMPLES = 200  # different ones of a task
MOST_CHANGES = 6_000  # of all masks of a task together
MOST_MASKS = 400


class Change(NamedTuple):
    """The answers and scores of one sample, under the full model and under a mask."""

    sample: str
    full_answer: str
    answer: str
    full_score: float
    score: float


class MaskChanges(NamedTuple):
    """How a mask answers against the full model.

    Args:
        mask: Its id.
        num_samples: How many it answered.
        quality: Mean score.
        drop: The full model's mean score less that.
        worse: Samples of a lower score.
        better: Samples of a higher score.
        reworded: Samples of another answer and the same score.
        shown: Some of them all.
    """

    mask: str
    num_samples: int
    quality: float
    drop: float
    worse: int
    better: int
    reworded: int
    shown: list[Change]

    @property
    def changed(self) -> int:
        """Samples whose answer or score is another."""
        return self.worse + self.better + self.reworded


def find_changes(frame: pd.DataFrame, most: int = MOST) -> list[MaskChanges]:
    """What every mask changes, the masks with the most active blocks first; at most 400 masks.

    Samples that change under most masks are shown first, so that few are enough for all masks: at most 200 of them,
    and 6,000 changes in all. Without a record of the full model nothing can have changed, and nothing is returned.

    Args:
        frame: Records of one task and one split, one row for each mask and sample: columns ``mask``, ``sample``,
            ``score``, and where they are known ``prediction`` and ``weight``.
        most: Samples that are shown of a mask; 0 = none.
    """
    if frame.empty:
        return []
    full_id = "1" * len(frame["mask"].iloc[0])
    of_mask = {str(mask): own.set_index("sample") for mask, own in frame.groupby("mask")}
    full = of_mask.get(full_id)
    if full is None:
        return []
    masks = sorted(of_mask, key=lambda mask: (-mask.count("1"), mask))[:MOST_MASKS]
    changes = {mask: _changes(full, of_mask[mask]) for mask in masks}
    asked = _most_changed(changes)
    each = min(most, max(1, MOST_CHANGES // len(masks))) if most else 0
    return [_summary(mask, full, of_mask[mask], changes[mask], asked, each) for mask in masks]


def _changes(full: pd.DataFrame, own: pd.DataFrame) -> list[Change]:
    joined = full.join(own, how="inner", lsuffix="_full")
    scores = joined["score_full"].astype(float), joined["score"].astype(float)
    answers = (_texts(joined, "prediction_full"), _texts(joined, "prediction"))
    rows = zip(map(str, joined.index), *answers, *scores)
    return [Change(*row) for row in rows if row[1] != row[2] or row[3] != row[4]]


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    """Answers as text; none where there are none, as of options that are scored."""
    if column not in frame:
        return [""] * len(frame)
    return [text if isinstance(text, str) else "" for text in frame[column]]


def _most_changed(changes: Mapping[str, list[Change]]) -> dict[str, int]:
    """Place of each sample that may be shown: those that change under most masks first."""
    counts = Counter(change.sample for each in changes.values() for change in each)
    ordered = sorted(counts, key=lambda sample: (-counts[sample], sample))
    return {sample: place for place, sample in enumerate(ordered[:MOST_SAMPLES])}


def _summary(
    mask: str, full: pd.DataFrame, own: pd.DataFrame, changes: list[Change], places: Mapping[str, int], most: int
) -> MaskChanges:
    worse = sum(change.score < change.full_score for change in changes)
    better = sum(change.score > change.full_score for change in changes)
    candidates = [change for change in changes if change.sample in places]
    shown = sorted(candidates, key=lambda change: (change.score == change.full_score, places[change.sample]))[:most]
    quality, whole = _mean(own), _mean(full)
    return MaskChanges(mask, len(own), quality, whole - quality, worse, better, len(changes) - worse - better, shown)


def _mean(own: pd.DataFrame) -> float:
    """Mean score; of samples that count more, such as longer texts, the weighted one."""
    scores = own["score"].astype(float)
    if "weight" not in own:
        return float(scores.mean())
    weights: Any = own["weight"].astype(float)
    return float((scores * weights).sum() / weights.sum())
