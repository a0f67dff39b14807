"""Per-sample scores of many masks on the same samples, and the statistics of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lit_depth.functional.statistics import (
    FamilyRow,
    Interval,
    mean_intervals,
    paired_comparisons,
)

Measure = Literal["quality", "reference_logprob"]


class FoundAnswer(NamedTuple):
    """The constant answer of one task, and where it was found."""

    text: str
    split: str
    num_samples: int
    num_candidates: int
    reason: str | None = None  # why it was found on the questions that are reported on


class ConstantAnswer(NamedTuple):
    """What is known of the constant answer on the samples of a split; of several tasks one answer for each."""

    found: tuple[FoundAnswer, ...]
    scores: NDArray[np.float64]  # [num_samples]


class Scores(NamedTuple):
    """Per-sample results of every mask on the same samples (M masks, N samples)."""

    mask_ids: list[str]
    quality: NDArray[np.float64]  # [M, N]
    reference_logprob: NDArray[np.float64]  # [M, N]
    images: list[str]  # [N], the clusters of the statistics
    sizes: tuple[int, ...] = ()  # samples of each task, where several are pooled
    max_scores: tuple[float, ...] = (1.0,)  # largest possible quality, the smallest being 0; of each task
    samples: tuple[str, ...] = ()  # [N] ids, of one task as read from its records
    num_distinct_answers: tuple[int, ...] = ()  # [M]; of several tasks the most on any
    constant: ConstantAnswer | None = None

    @classmethod
    def from_records(cls, records: pd.DataFrame, max_score: float = 1.0) -> Scores:
        """Pivot complete records (see `lit_depth.results.store.check_complete`)."""
        quality = records.pivot(index="mask", columns="sample", values="score")
        logprob = records.pivot(index="mask", columns="sample", values="reference_logprob")
        images = records.drop_duplicates("sample").set_index("sample")["image"].reindex(quality.columns)
        values = quality.to_numpy(float), logprob.to_numpy(float)
        distinct: tuple[int, ...] = ()
        if "prediction" in records:
            distinct = tuple(records.groupby("mask")["prediction"].nunique(dropna=False).reindex(quality.index))
        return cls(
            list(quality.index),
            *values,
            list(images),
            max_scores=(max_score,),
            samples=tuple(quality.columns),
            num_distinct_answers=tuple(map(int, distinct)),
        )

    @classmethod
    def pooled(cls, tasks: Sequence[Scores]) -> Scores:
        """Several tasks as one: scores are weighted so that the mean over all samples is the mean over tasks.

        Raises:
            ValueError: If the tasks were not evaluated under the same masks.
        """
        if any(each.mask_ids != tasks[0].mask_ids for each in tasks):
            raise ValueError("the mean over tasks needs the same masks on every task")
        sizes = tuple(len(each.images) for each in tasks)
        weights = [sum(sizes) / (len(sizes) * size) for size in sizes]
        known = [each.constant for each in tasks if each.constant is not None]
        return cls(
            tasks[0].mask_ids,
            np.concatenate([weight * each.quality for weight, each in zip(weights, tasks)], axis=1),
            np.concatenate([weight * each.reference_logprob for weight, each in zip(weights, tasks)], axis=1),
            [f"{task}/{image}" for task, each in enumerate(tasks) for image in each.images],
            sizes,
            tuple(each.max_scores[0] for each in tasks),
            num_distinct_answers=tuple(map(max, zip(*(each.num_distinct_answers for each in tasks)))),
            constant=ConstantAnswer(
                tuple(found for each in known for found in each.found),
                np.concatenate([weight * each.scores for weight, each in zip(weights, known)]),
            )
            if len(known) == len(tasks)
            else None,
        )

    def compare(
        self, values: NDArray[np.float64], confidence: float, measure: Measure = "quality", terms: ArrayLike = 1
    ) -> list[FamilyRow]:
        """Mean of each row of per-sample differences ``[rows, N]``: alone, and with all rows as one family.

        Intervals and tests are clustered by image.

        Args:
            values: Differences of scores, or sums of several such differences.
            confidence: Coverage of each interval, and of the simultaneous ones together.
            measure: What the values were computed from; its range is that of the scores.
            terms: How many differences were added in each row, ``[rows]``, where it is more than one.
        """
        return paired_comparisons(**self._samples(values, measure, terms), confidence=confidence)

    def mean_intervals(
        self, values: NDArray[np.float64], confidence: float, measure: Measure = "quality"
    ) -> list[Interval]:
        """Mean of each row of per-sample scores ``[rows, N]``, with an interval clustered by image."""
        samples = self._samples(values, measure, 1)
        return mean_intervals(samples.pop("differences"), **samples, confidence=confidence)

    def _samples(self, values: NDArray[np.float64], measure: Measure, terms: ArrayLike) -> dict[str, Any]:
        """Arguments of the statistics: what `pooled` weighted as it was, and the task of each sample."""
        sizes = np.array(self.sizes or (len(self.images),))
        tasks = np.repeat(np.arange(len(sizes)), sizes)
        score_range = None
        if measure == "quality":
            score_range = np.reshape(terms, (-1, 1)) * np.array(self.max_scores)[tasks]
        return {
            "differences": values * (len(sizes) * sizes / sizes.sum())[tasks],
            "clusters": self.images,
            "score_range": score_range,
            # the tasks are given, not drawn: only samples within a task vary
            "tasks": tasks if self.sizes else None,
        }

    def rows(self, ids: Sequence[str]) -> NDArray[np.float64]:
        """Quality of some masks, ``[len(ids), N]``."""
        position = {name: row for row, name in enumerate(self.mask_ids)}
        return self.quality[[position[name] for name in ids]]

    def distinct_answers(self, name: str) -> int | None:
        """Number of different answers that a mask gave; None where answers are not known."""
        return self.num_distinct_answers[self.mask_ids.index(name)] if self.num_distinct_answers else None

    def mean_logprob(self, ids: Sequence[str]) -> float:
        """Mean reference log-probability over some masks and all samples."""
        position = {name: row for row, name in enumerate(self.mask_ids)}
        return float(self.reference_logprob[[position[name] for name in ids]].mean())


def no_difference(key: str) -> dict[str, Any]:
    """A mask against itself: 0 by definition, so nothing is estimated or tested."""
    return {key: 0.0, f"{key}_ci": [0.0, 0.0], f"{key}_simultaneous_ci": None}


def family_entry(found: FamilyRow, key: str) -> dict[str, Any]:
    """A difference with the interval of its own, and the one that goes with ``found.p_holm``."""
    return {
        key: found.interval.estimate,
        f"{key}_ci": [found.interval.low, found.interval.high],
        f"{key}_simultaneous_ci": [found.simultaneous.low, found.simultaneous.high],
    }
