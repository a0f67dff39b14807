"""From per-sample scores under many masks to the comparison of policies: intervals, tests, the four answers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lit_depth.functional.masks import full_id
from lit_depth.functional.statistics import (
    FamilyRow,
    Interval,
    holm,
    mean_intervals,
    paired_comparisons,
    paired_intervals,
)
from lit_depth.studies.shared.mask_grid import PlannedMask

Measure = Literal["quality", "reference_logprob"]


class Scores(NamedTuple):
    """Per-sample results of every mask on the same samples (M masks, N samples)."""

    mask_ids: list[str]
    quality: NDArray[np.float64]  # [M, N]
    reference_logprob: NDArray[np.float64]  # [M, N]
    images: list[str]  # [N], the clusters of the statistics
    sizes: tuple[int, ...] = ()  # samples of each task, where several are pooled
    max_scores: tuple[float, ...] = (1.0,)  # largest possible quality, the smallest being 0; of each task

    @classmethod
    def from_records(cls, records: pd.DataFrame, max_score: float = 1.0) -> Scores:
        """Pivot complete records (see `lit_depth.results.store.check_complete`)."""
        quality = records.pivot(index="mask", columns="sample", values="score")
        logprob = records.pivot(index="mask", columns="sample", values="reference_logprob")
        images = records.drop_duplicates("sample").set_index("sample")["image"].reindex(quality.columns)
        values = quality.to_numpy(float), logprob.to_numpy(float)
        return cls(list(quality.index), *values, list(images), max_scores=(max_score,))

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
        return cls(
            tasks[0].mask_ids,
            np.concatenate([weight * each.quality for weight, each in zip(weights, tasks)], axis=1),
            np.concatenate([weight * each.reference_logprob for weight, each in zip(weights, tasks)], axis=1),
            [f"{task}/{image}" for task, each in enumerate(tasks) for image in each.images],
            sizes,
            tuple(each.max_scores[0] for each in tasks),
        )

    def intervals(
        self, values: NDArray[np.float64], confidence: float, measure: Measure = "quality", terms: ArrayLike = 1
    ) -> list[Interval]:
        """Mean of each row of per-sample differences ``[rows, N]``, with an interval clustered by image.

        Args:
            values: Differences of scores, or sums of several such differences.
            confidence: Coverage of each interval.
            measure: What the values were computed from; its range is that of the scores.
            terms: How many differences were added in each row, ``[rows]``, where it is more than one.
        """
        return paired_intervals(**self._samples(values, measure, terms), confidence=confidence)

    def compare(
        self, values: NDArray[np.float64], confidence: float, measure: Measure = "quality", terms: ArrayLike = 1
    ) -> list[FamilyRow]:
        """`intervals` with tests, of each row alone and of all rows as one family."""
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

    def mean_logprob(self, ids: Sequence[str]) -> float:
        """Mean reference log-probability over some masks and all samples."""
        position = {name: row for row, name in enumerate(self.mask_ids)}
        return float(self.reference_logprob[[position[name] for name in ids]].mean())


def describe_masks(
    plan: Sequence[PlannedMask], scores: Scores, latency: Mapping[str, Any], num_blocks: int, confidence: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The ``full`` and ``strategies`` entries of the result."""
    full, grouped = full_id(num_blocks), _grouped(plan)
    ids = list(dict.fromkeys([full, *(planned.id for planned in plan)]))
    means = [scores.rows([planned.id for planned in group]).mean(axis=0) for group in grouped.values()]
    # all rows at once: where tests are sampled, they share the random signs
    described = _describe_rows(np.stack([*scores.rows(ids), *means]), scores, confidence)
    of_mask, of_strategy = dict(zip(ids, described)), described[len(ids) :]

    def entry(name: str, seed: int | None) -> dict[str, Any]:
        return {
            "mask_id": name,
            "seed": seed,
            "active_block_indices": [index for index, bit in enumerate(name) if bit == "1"],
            **of_mask[name],
            "reference_logprob": scores.mean_logprob([name]),
            "latency_ms": latency.get(name),
        }

    strategies = [
        {
            "policy": name,
            "num_active_blocks": count,
            "num_total_blocks": num_blocks,
            **numbers,
            "reference_logprob": scores.mean_logprob([planned.id for planned in group]),
            "latency_ms": _mean_latency([latency[planned.id] for planned in group if planned.id in latency]),
            "masks": [entry(planned.id, planned.seed) for planned in group],
        }
        for ((name, count), group), numbers in zip(grouped.items(), of_strategy)
    ]
    return entry(full, None), strategies


def _describe_rows(rows: NDArray[np.float64], scores: Scores, confidence: float) -> list[dict[str, Any]]:
    """Quality of each row, and its drop from the first, which is the full model's."""
    qualities, drops = scores.mean_intervals(rows, confidence), scores.intervals(rows[0] - rows, confidence)
    return [
        {
            "quality": quality.estimate,
            "quality_ci": [quality.low, quality.high],
            "drop": drop.estimate,
            "drop_ci": [drop.low, drop.high],
        }
        for quality, drop in zip(qualities, drops)
    ]


def compare_policies(plan: Sequence[PlannedMask], scores: Scores, confidence: float) -> list[dict[str, Any]]:
    """Every pair of policies at every number of active blocks where their masks differ, and over all of these.

    The tests are sign-flip permutations clustered by image. Holm's correction, and simultaneous intervals that agree
    with it, are over the numbers of blocks of one pair, and for the means over them over all pairs.
    """
    grouped = _grouped(plan)
    names = list(dict.fromkeys(name for name, _ in grouped))
    result: list[dict[str, Any]] = []
    means = {}
    for a, b in itertools.combinations(names, 2):
        counts = [count for name, count in grouped if name == a and (b, count) in grouped]
        counts = [k for k in counts if {p.id for p in grouped[a, k]} != {p.id for p in grouped[b, k]}]
        if not counts:
            continue
        differences = {
            k: scores.rows([p.id for p in grouped[a, k]]).mean(axis=0)
            - scores.rows([p.id for p in grouped[b, k]]).mean(axis=0)
            for k in counts
        }
        for count, found in zip(counts, scores.compare(np.stack(list(differences.values())), confidence)):
            result.append(_comparison_entry(a, b, count, found, confidence))
        means[a, b] = np.mean(list(differences.values()), axis=0)
        result.append({"a": a, "b": b, "num_active_blocks": None})
    overall = [entry for entry in result if entry["num_active_blocks"] is None]
    if overall:
        for entry, found in zip(overall, scores.compare(np.stack(list(means.values())), confidence)):
            entry |= _comparison_entry(entry["a"], entry["b"], None, found, confidence)
    return result


def _comparison_entry(a: str, b: str, count: int | None, found: FamilyRow, confidence: float) -> dict[str, Any]:
    better = "a" if found.interval.estimate > 0 else "b"
    return {
        "a": a,
        "b": b,
        "num_active_blocks": count,
        "difference": found.interval.estimate,
        "ci": [found.interval.low, found.interval.high],
        "simultaneous_ci": [found.simultaneous.low, found.simultaneous.high],
        "p_value": found.p_value,
        "p_holm": found.p_holm,
        "verdict": better if found.p_holm < 1 - confidence else "tie",
    }


def answer_questions(
    comparisons: Sequence[dict[str, Any]], strategies: Sequence[dict[str, Any]], confidence: float = 0.95
) -> dict[str, Any]:
    """The four questions the comparison is run for, answered with numbers; "not shown" is an answer.

    The first two are asked of one pair each, whatever else is compared: Holm's correction is over these two tests.
    """
    asked = [
        next((c for c in comparisons if {c["a"], c["b"]} == pair and c["num_active_blocks"] is None), None)
        for pair in ({"importance", "prefix"}, {"prefix", "random"})
    ]
    adjusted = iter(holm([entry["p_value"] for entry in asked if entry]).tolist())
    first, second = (next(adjusted) if entry else None for entry in asked)
    alpha = 1 - confidence
    return {
        "importance_beats_prefix": _beats(comparisons, "importance", "prefix", "Importance", first, alpha),
        "random_worse_than_prefix": _beats(
            comparisons, "prefix", "random", "Prefix", second, alpha, versus="random (mean of its seeds)"
        ),
        "choice_of_blocks_matters": _choice_matters(comparisons, strategies, 1 - confidence),
        "depth_is_a_scalar": _is_scalar(comparisons, strategies, 1 - confidence),
    }


def _beats(
    comparisons: Sequence[dict[str, Any]],
    winner: str,
    loser: str,
    name: str,
    p_value: float | None,
    alpha: float,
    versus: str | None = None,
) -> dict[str, Any]:
    mine = [c for c in comparisons if {c["a"], c["b"]} == {winner, loser}]
    if p_value is None:
        text = f"{winner} and {loser} were not compared: one was not run, or their masks do not differ."
        return {"answer": "not shown", "text": text}
    sign = 1.0 if mine[0]["a"] == winner else -1.0
    overall = next(c for c in mine if c["num_active_blocks"] is None)
    difference = sign * overall["difference"]
    low, high = sorted(sign * bound for bound in overall["ci"])
    won, lost = (
        [
            c["num_active_blocks"]
            for c in mine
            if c["num_active_blocks"] and c["verdict"] != "tie" and direction * sign * c["difference"] > 0
        ]
        for direction in (1, -1)
    )
    tied = len(mine) - 1 - len(won) - len(lost)
    answer = "not shown" if p_value >= alpha else ("yes" if difference > 0 else "no")
    text = (
        f"{name} minus {versus or loser}, averaged over {len(mine) - 1} numbers of blocks: {difference:+.3f} "
        f"[{low:+.3f}, {high:+.3f}], p = {_p(p_value)} (Holm). "
        f"Better at {_list(won)}, worse at {_list(lost)}, tied at {tied} of them."
    )
    return {"answer": answer, "text": text, "difference": difference, "ci": [low, high], "p_holm": p_value,
            "better_at": won, "worse_at": lost, "num_tied": tied}  # fmt: skip


def _all_pairs(comparisons: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[float]]:
    """Comparisons at equal counts with p-values corrected over all of them together."""
    at_count = [c for c in comparisons if c["num_active_blocks"] is not None]
    return at_count, holm([c["p_value"] for c in at_count]).tolist() if at_count else []


def _choice_matters(
    comparisons: Sequence[dict[str, Any]], strategies: Sequence[dict[str, Any]], alpha: float
) -> dict[str, Any]:
    at_count, adjusted = _all_pairs(comparisons)
    if not at_count:
        return {"answer": "not shown", "text": "No two policies gave different masks of equal size."}
    frame = pd.DataFrame(strategies)[["policy", "num_active_blocks", "quality"]]
    compared = {c["num_active_blocks"] for c in at_count}
    spread = frame.groupby("num_active_blocks")["quality"].agg(lambda values: values.max() - values.min())
    spread = spread[[count in compared for count in spread.index]]
    widest = int(spread.idxmax())
    here = frame[frame["num_active_blocks"] == widest].set_index("policy")["quality"]
    different = sorted({c["num_active_blocks"] for c, p in zip(at_count, adjusted) if p < alpha})
    text = (
        f"Range of quality over policies at equal count: median {spread.median():.3f}, largest {spread.max():.3f} at "
        f"{widest} blocks ({here.idxmax()} {here.max():.3f}, {here.idxmin()} {here.min():.3f}). Some pair differs "
        f"significantly at {_list(different)} ({len(at_count)} tests, smallest p = {_p(min(adjusted))}, Holm). "
        "The range of several noisy values is never below zero: trust the tests, not the range alone."
    )
    return {"answer": "yes" if different else "not shown", "text": text, "significant_at": different,
            "range": {str(k): float(v) for k, v in spread.items()}, "smallest_p_holm": min(adjusted)}  # fmt: skip


def _is_scalar(
    comparisons: Sequence[dict[str, Any]], strategies: Sequence[dict[str, Any]], alpha: float
) -> dict[str, Any]:
    at_count, adjusted = _all_pairs(comparisons)
    different = sorted({c["num_active_blocks"] for c, p in zip(at_count, adjusted) if p < alpha})
    frame = pd.DataFrame(strategies)[["num_active_blocks", "quality"]]
    # where all masks are the same (all blocks active) there is nothing to explain
    compared = frame["num_active_blocks"].isin([c["num_active_blocks"] for c in at_count])
    frame = frame[compared] if compared.any() else frame
    within = frame.groupby("num_active_blocks")["quality"].transform("mean")
    total = float(((frame["quality"] - frame["quality"].mean()) ** 2).sum())
    varies = total > 1e-12  # means of equal scores can differ in their last bits
    share = 1.0 - float(((frame["quality"] - within) ** 2).sum()) / total if varies else 1.0
    head = (
        f"The number of active blocks alone explains {share:.0%} of the variance of quality between policies and counts"
        if varies
        else "Quality is the same under every policy and count"
    )
    if different:
        text = f"{head}; at {_list(different)} two policies with equally many blocks differ significantly."
        return {"answer": "no", "text": text, "variance_explained": share, "counterexamples_at": different}
    text = f"{head}; no two policies with equally many blocks differ significantly on these samples."
    return {"answer": "not shown", "text": text, "variance_explained": share, "counterexamples_at": []}


def _grouped(plan: Sequence[PlannedMask]) -> dict[tuple[str, int], list[PlannedMask]]:
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


def _p(value: float) -> str:
    return f"{value:.1g}" if value < 0.001 else f"{value:.3f}"


def _list(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts)) if counts else "none"
