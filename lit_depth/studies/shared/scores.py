"""Per-sample scores of many masks on the same samples, the statistics of their differences, and entries of results."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lit_depth.functional.masks import full_id
from lit_depth.functional.statistics import (
    FamilyRow,
    Interval,
    Stability,
    Winner,
    decision_stability,
    mean_intervals,
    paired_comparisons,
    winner_interval,
)
from lit_depth.functional.statistics.median import clustered_median
from lit_depth.functional.statistics.stability import Rule
from lit_depth.studies.shared.against_full import FIRST, NUM_DRAFT, agreement_columns, pooled_columns
from lit_depth.studies.shared.mask_grid import PlannedMask

# a share lies between 0 and 1 whatever the score
Measure = Literal["quality", "reference_logprob", "share"]


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
    # largest possible quality, the smallest being 0; of each task; infinite = a log-probability, of no known range
    max_scores: tuple[float, ...] = (1.0,)
    samples: tuple[str, ...] = ()  # [N] ids, of one task as read from its records
    num_distinct_answers: tuple[int, ...] = ()  # [M]; of several tasks the most on any
    constant: ConstantAnswer | None = None
    # agreement with the full model by name, see `lit_depth.studies.shared.against_full`; [M, N]
    agreement: Mapping[str, NDArray[np.float64]] = MappingProxyType({})

    @classmethod
    def from_records(cls, records: pd.DataFrame, max_score: float = 1.0, with_flips: bool = True) -> Self:
        """Pivot complete records (see `lit_depth.results.store.check_complete`).

        ``with_flips`` is whether scores say that an answer is right: not those of agreement itself.
        """
        quality, logprob = (
            records.pivot(index="mask", columns="sample", values=name) for name in ("score", "reference_logprob")
        )
        agreement = agreement_columns(records, quality, with_flips and bool(np.isfinite(max_score)))
        if "weight" in records:  # samples that count more, such as longer texts; the mean is then the weighted one
            weight = records.drop_duplicates("sample").set_index("sample")["weight"].reindex(quality.columns)
            quality, logprob = (table * (weight / weight.mean()) for table in (quality, logprob))
        images = records.drop_duplicates("sample").set_index("sample")["image"].reindex(quality.columns)
        distinct: Sequence[Any] = ()
        if "prediction" in records and records["prediction"].notna().any():
            distinct = records.groupby("mask")["prediction"].nunique(dropna=False).reindex(quality.index)
        return cls(
            list(quality.index),
            *(quality.to_numpy(float), logprob.to_numpy(float)),
            list(images),
            max_scores=(max_score,),
            samples=tuple(quality.columns),
            num_distinct_answers=tuple(map(int, distinct)),
            agreement=agreement,
        )

    @classmethod
    def pooled(cls, tasks: Sequence[Self]) -> Self:
        """Several tasks as one: scores are weighted so that the mean over all samples is the mean over tasks.

        Raises:
            ValueError: If the tasks were not evaluated under the same masks.
        """
        if any(each.mask_ids != tasks[0].mask_ids for each in tasks):
            raise ValueError("the mean over tasks needs the same masks on every task")
        if len({each.is_bounded for each in tasks}) > 1:
            raise ValueError("there is no mean of log-probabilities and other scores: evaluate next_token alone")
        sizes = tuple(len(each.images) for each in tasks)
        # a sample of a small task counts for more, so that each task counts alike
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
            agreement=pooled_columns([each.agreement for each in tasks], weights),
        )

    def compare(
        self, values: NDArray[np.float64], confidence: float, measure: Measure = "quality", terms: ArrayLike = 1
    ) -> list[FamilyRow]:
        """Mean of each row of per-sample differences ``[rows, N]``: alone, and with all rows as one family.

        Intervals and tests are clustered by image.

        The range of the values is that of the scores that they were computed from (``measure``), times the number of
        differences that were added in each row (``terms``).
        """
        return paired_comparisons(**self._samples(values, measure, terms), confidence=confidence)

    def mean_intervals(
        self, values: NDArray[np.float64], confidence: float, measure: Measure = "quality"
    ) -> list[Interval]:
        """Mean of each row of per-sample scores ``[rows, N]``, with an interval clustered by image."""
        samples = self._samples(values, measure, 1)
        return mean_intervals(samples.pop("differences"), **samples, confidence=confidence)

    def stability(self, values: NDArray[np.float64], rule: Rule) -> Stability:
        """How firmly ``rule`` chooses among rows of per-sample scores or differences ``[rows, N]``, by image."""
        samples = self._samples(values, "quality", 1)
        return decision_stability(samples["differences"], rule, self.images, samples["tasks"])

    def winner(self, values: NDArray[np.float64], confidence: float) -> Winner:
        """The best of rows of per-sample differences ``[rows, N]``, corrected for the choice, clustered by image."""
        samples = self._samples(values, "quality", 1)
        return winner_interval(samples.pop("differences"), **samples, confidence=confidence)

    def _samples(self, values: NDArray[np.float64], measure: Measure, terms: ArrayLike) -> dict[str, Any]:
        """Arguments of the statistics: what `pooled` weighted as it was, and the task of each sample."""
        sizes = np.array(self.sizes or (len(self.images),))
        tasks = np.repeat(np.arange(len(sizes)), sizes)
        score_range = None
        if measure == "share":
            score_range = np.ones((1, 1))
        elif measure == "quality" and self.is_bounded:
            score_range = np.reshape(terms, (-1, 1)) * np.array(self.max_scores)[tasks]
        return {
            "differences": values * (len(sizes) * sizes / sizes.sum())[tasks],
            "clusters": self.images,
            "score_range": score_range,
            # the tasks are given, not drawn: only samples within a task vary
            "tasks": tasks if self.sizes else None,
        }

    @property
    def is_bounded(self) -> bool:
        """Whether quality has a known range, as a share has; a log-probability has none."""
        return bool(np.isfinite(self.max_scores).all())

    @property
    def full_id(self) -> str:
        """Id of the full model's mask."""
        return full_id(len(self.mask_ids[0]))

    def rows(self, ids: Sequence[str], measure: Measure = "quality") -> NDArray[np.float64]:
        """Scores of some masks, ``[len(ids), N]``."""
        position = {name: row for row, name in enumerate(self.mask_ids)}
        return getattr(self, measure)[[position[name] for name in ids]]

    def distinct_answers(self, name: str) -> int | None:
        """Number of different answers that a mask gave; None where answers are not known."""
        return self.num_distinct_answers[self.mask_ids.index(name)] if self.num_distinct_answers else None

    def mean_logprob(self, ids: Sequence[str]) -> float:
        """Mean reference log-probability over some masks and all samples."""
        return float(self.rows(ids, "reference_logprob").mean())


def interval_entry(interval: Interval, key: str) -> dict[str, Any]:
    """An estimate and its limits, as results hold them.

    >>> interval_entry(Interval(0.5, 0.4, 0.6), "quality")
    {'quality': 0.5, 'quality_ci': [0.4, 0.6]}
    """
    return {key: interval.estimate, f"{key}_ci": [interval.low, interval.high]}


def family_entry(found: FamilyRow | None, key: str) -> dict[str, Any]:
    """A difference with the interval of its own, and the one that goes with ``found.p_holm``.

    None is a mask against itself: 0 by definition, so nothing is estimated or tested.
    """
    interval = Interval(0.0, 0.0, 0.0) if found is None else found.interval
    together = None if found is None else [found.simultaneous.low, found.simultaneous.high]
    return interval_entry(interval, key) | {f"{key}_simultaneous_ci": together}


def describe_with_full(
    scores: Scores, groups: Sequence[Sequence[str]], confidence: float
) -> list[dict[str, Any] | None]:
    """How each group of masks, such as those of one policy, agrees with the full model; the mean over its masks.

    Every share stands with its interval, clustered by image. ``first_difference`` is the median over the answers that
    differ, of which there are ``num_different``. None for the full model itself, and where nothing is known.
    """
    found: list[dict[str, Any] | None] = [
        {} if scores.agreement and scores.full_id not in ids else None for ids in groups
    ]
    places = {name: row for row, name in enumerate(scores.mask_ids)}
    rows = [[places[name] for name in ids] for ids in groups]
    known = [place for place, entry in enumerate(found) if entry is not None]
    for name, values in scores.agreement.items():
        if not known or name == FIRST:
            continue
        means = np.stack([values[rows[place]].mean(axis=0) for place in known])
        for place, interval in zip(known, _share_intervals(scores, name, means, confidence)):
            found[place] |= interval_entry(interval, name)  # type: ignore[operator]
    for place in known if FIRST in scores.agreement else ():
        found[place] |= _first_differences(scores, rows[place], confidence)  # type: ignore[operator]
    return found


def _share_intervals(scores: Scores, name: str, means: NDArray[np.float64], confidence: float) -> list[Interval]:
    """Intervals of shares; tokens per check are at least 1, and one more than are drafted at most."""
    if name != "tokens_per_check":
        return scores.mean_intervals(means, confidence, "share")
    weights = scores.agreement["same_answer"][scores.mask_ids.index(scores.full_id)]  # 1 times that of each task
    intervals = scores.mean_intervals((means - weights) / NUM_DRAFT, confidence, "share")
    return [Interval(*(1 + NUM_DRAFT * limit for limit in each)) for each in intervals]


def _first_differences(scores: Scores, rows: Sequence[int], confidence: float) -> dict[str, Any]:
    values = scores.agreement[FIRST][rows]
    is_known = ~np.isnan(values)
    images = np.broadcast_to(np.array(scores.images, dtype=object), values.shape)[is_known].tolist()
    if not images:
        return {"num_different": 0, FIRST: None, f"{FIRST}_ci": None}
    found = clustered_median(values[is_known], images, confidence)
    return {"num_different": len(images), **interval_entry(found, FIRST)}


def describe_masks(
    plan: Sequence[PlannedMask], scores: Scores, latency: Mapping[str, Any], confidence: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The ``full`` and ``strategies`` entries of the result.

    Drops from the full model are one family: all masks, and the means of policies that have several at one count.
    """
    full_id, grouped = scores.full_id, group_plan(plan)
    ids = [name for name in dict.fromkeys(planned.id for planned in plan) if name != full_id]
    several = {key: group for key, group in grouped.items() if len({planned.id for planned in group}) > 1}
    # a mean over masks is tested sample by sample, as one mask is
    means = [scores.rows([planned.id for planned in group]).mean(axis=0) for group in several.values()]
    full, *described = _describe_rows(np.stack([*scores.rows([full_id, *ids]), *means]), scores, confidence)
    of_mask = {full_id: full, **dict(zip(ids, described))}
    of_mean = dict(zip(several, described[len(ids) :]))
    names = [[full_id], *([name] for name in ids), *([p.id for p in group] for group in several.values())]
    agreements = describe_with_full(scores, names, confidence)
    full["agreement"] = None
    for entry_of_row, agreement in zip(described, agreements[1:]):
        entry_of_row["agreement"] = agreement

    def entry(name: str, seed: int | None) -> dict[str, Any]:
        return {
            "mask_id": name,
            "seed": seed,
            "active_block_indices": [index for index, bit in enumerate(name) if bit == "1"],
            **of_mask[name],
            "num_distinct_answers": scores.distinct_answers(name),
            "reference_logprob": scores.mean_logprob([name]),
            "latency_ms": latency.get(name),
        }

    strategies = [
        {
            "policy": name,
            "num_active_blocks": count,
            "num_total_blocks": len(full_id),
            **(of_mean[name, count] if (name, count) in of_mean else of_mask[group[0].id]),
            "reference_logprob": scores.mean_logprob([planned.id for planned in group]),
            "latency_ms": _mean_latency([latency[planned.id] for planned in group if planned.id in latency]),
            "masks": [entry(planned.id, planned.seed) for planned in group],
        }
        for (name, count), group in grouped.items()
    ]
    return entry(full_id, None), strategies


def _describe_rows(rows: NDArray[np.float64], scores: Scores, confidence: float) -> list[dict[str, Any]]:
    """Quality of each row, and its drop from the first, which is the full model's; the others are one family."""
    drops = rows[0] - rows
    family = [None, *(scores.compare(drops[1:], confidence) if len(rows) > 1 else ())]
    return [
        {**interval_entry(quality, "quality"), **family_entry(found, "drop"), "drop_p_holm": found and found.p_holm}
        for quality, found in zip(scores.mean_intervals(rows, confidence), family)
    ]


def group_plan(plan: Sequence[PlannedMask]) -> dict[tuple[str, int], list[PlannedMask]]:
    """The masks of each policy at each number of active blocks."""
    grouped: dict[tuple[str, int], list[PlannedMask]] = {}
    for planned in plan:
        grouped.setdefault((planned.policy, planned.count), []).append(planned)
    return grouped


def _mean_latency(entries: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, Any] | None:
    """Average each number over the masks of one strategy."""
    if not entries:
        return None
    result: dict[str, Any] = {}
    for stage in entries[0]:
        names = entries[0][stage]
        columns = {name: [entry[stage][name] for entry in entries] for name in names}
        result[stage] = {name: None if None in column else float(np.mean(column)) for name, column in columns.items()}  # type: ignore[arg-type]
    return result
