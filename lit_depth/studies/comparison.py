"""From per-sample scores under many masks to the comparison of policies: intervals, tests, the four answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_depth.functional import from_indices, mask_id, policies
from lit_depth.functional.statistics import Interval, holm, macro_intervals, paired_intervals, sign_flip_test

POLICIES = ("prefix", "importance", "random", "suffix", "uniform")


@dataclass(frozen=True)
class PlannedMask:
    """One mask to evaluate, and why."""

    policy: str
    mask: Tensor
    seed: int | None = None

    @property
    def id(self) -> str:
        return mask_id(self.mask)

    @property
    def count(self) -> int:
        return int(self.mask.sum())


def plan_masks(
    names: Sequence[str],
    counts: Sequence[int],
    num_blocks: int,
    importance: Sequence[float] | None = None,
    num_seeds: int = 5,
    keep: Sequence[int] = (),
) -> list[PlannedMask]:
    """Masks of every policy at every number of active blocks.

    Args:
        names: Policies, see :data:`POLICIES`.
        counts: Numbers of active blocks.
        num_blocks: Blocks of the model.
        importance: One score per block, for the importance policy.
        num_seeds: Masks that the random policy draws at each count.
        keep: Blocks that are active in every mask.

    >>> [(planned.policy, planned.id) for planned in plan_masks(["prefix", "suffix"], [1, 2], 3)]
    [('prefix', '100'), ('prefix', '110'), ('suffix', '001'), ('suffix', '011')]
    """
    plan = []
    for name in names:
        for count in counts:
            if name == "random":
                seeds = range(num_seeds)
                plan += [PlannedMask(name, policies.random(num_blocks, count, seed, keep=keep), seed) for seed in seeds]
            elif name == "importance":
                assert importance is not None
                plan.append(PlannedMask(name, policies.top_k(importance, count, keep=keep)))
            else:
                plan.append(PlannedMask(name, getattr(policies, name)(num_blocks, count, keep=keep)))
    return plan


def plan_indices(index_lists: Sequence[Sequence[int]], num_blocks: int) -> list[PlannedMask]:
    """Masks given by their active blocks; each is a policy of its own, named by its blocks.

    >>> [planned.policy for planned in plan_indices([[0, 2], [1], [2, 0]], 3)]
    ['blocks 0 2', 'blocks 1', 'blocks 0 2 (2)']
    """
    masks = [from_indices(num_blocks, indices) for indices in index_lists]
    plan: list[PlannedMask] = []
    for mask in masks:
        name = "blocks " + " ".join(map(str, mask.nonzero().flatten().tolist()))
        # a mask given twice is reported twice (and evaluated once)
        given = sum(torch.equal(mask, planned.mask) for planned in plan)
        plan.append(PlannedMask(f"{name} ({given + 1})" if given else name, mask))
    return plan


class Scores(NamedTuple):
    """Per-sample results of every mask on the same samples (M masks, N samples)."""

    mask_ids: list[str]
    quality: NDArray[np.float64]  # [M, N]
    reference_logprob: NDArray[np.float64]  # [M, N]
    images: list[str]  # [N], the clusters of the statistics
    sizes: tuple[int, ...] = ()  # samples of each task, where several are pooled

    @classmethod
    def from_records(cls, records: pd.DataFrame) -> Scores:
        """Pivot complete records (see `lit_depth.results.store.check_complete`)."""
        quality = records.pivot(index="mask", columns="sample", values="score")
        logprob = records.pivot(index="mask", columns="sample", values="reference_logprob")
        images = records.drop_duplicates("sample").set_index("sample")["image"].reindex(quality.columns)
        return cls(list(quality.index), quality.to_numpy(float), logprob.to_numpy(float), list(images))

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
        )

    def intervals(self, values: NDArray[np.float64], confidence: float) -> list[Interval]:
        """Mean of each row of per-sample values ``[rows, N]``, with an interval clustered by image."""
        if not self.sizes:
            return paired_intervals(values, self.images, confidence)
        ends = np.cumsum(self.sizes)
        parts = [
            # what `pooled` weighted; the tasks are given, not drawn: only samples within a task vary
            (values[:, end - size : end] * (len(self.sizes) * size / ends[-1]), self.images[end - size : end])
            for end, size in zip(ends, self.sizes)
        ]
        return macro_intervals(parts, confidence)

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
    full_id = "1" * num_blocks
    full = scores.rows([full_id])[0]
    strategies = []
    for (name, count), group in _grouped(plan).items():
        ids = [planned.id for planned in group]
        entries = [_mask_entry(planned.id, planned.seed, scores, latency, full, confidence) for planned in group]
        mean = scores.rows(ids).mean(axis=0)
        quality, drop = scores.intervals(np.stack([mean, full - mean]), confidence)
        strategies.append(
            {
                "policy": name,
                "num_active_blocks": count,
                "num_total_blocks": num_blocks,
                "quality": quality.estimate,
                "quality_ci": [quality.low, quality.high],
                "drop": drop.estimate,
                "drop_ci": [drop.low, drop.high],
                "reference_logprob": scores.mean_logprob(ids),
                "latency_ms": _mean_latency([latency[name] for name in ids if name in latency]),
                "masks": entries,
            }
        )
    return _mask_entry(full_id, None, scores, latency, full, confidence), strategies


def compare_policies(plan: Sequence[PlannedMask], scores: Scores, confidence: float) -> list[dict[str, Any]]:
    """Every pair of policies at every number of active blocks where their masks differ, and over all of these.

    The tests are sign-flip permutations clustered by image. Holm's correction is over the numbers of blocks of one
    pair, and for the means over them over all pairs.
    """
    grouped = _grouped(plan)
    names = list(dict.fromkeys(name for name, _ in grouped))
    result = []
    for a, b in itertools.combinations(names, 2):
        counts = [count for name, count in grouped if name == a and (b, count) in grouped]
        counts = [k for k in counts if {p.id for p in grouped[a, k]} != {p.id for p in grouped[b, k]}]
        if not counts:
            continue
        differences: dict[int | None, NDArray[np.float64]] = {
            k: scores.rows([p.id for p in grouped[a, k]]).mean(axis=0)
            - scores.rows([p.id for p in grouped[b, k]]).mean(axis=0)
            for k in counts
        }
        tested = {**differences, None: np.mean(list(differences.values()), axis=0)}
        p_values = [sign_flip_test(values, scores.images) for values in tested.values()]
        # of the last one below, when all pairs are there
        family = [*holm(p_values[:-1]).tolist(), p_values[-1]]
        for (count, values), p, adjusted in zip(tested.items(), p_values, family):
            (interval,) = scores.intervals(values[None], confidence)
            better = "a" if interval.estimate > 0 else "b"
            result.append(
                {
                    "a": a,
                    "b": b,
                    "num_active_blocks": count,
                    "difference": interval.estimate,
                    "ci": [interval.low, interval.high],
                    "p_value": p,
                    "p_holm": adjusted,
                    "verdict": better if adjusted < 1 - confidence else "tie",
                }
            )
    overall = [entry for entry in result if entry["num_active_blocks"] is None]
    for entry, adjusted in zip(overall, holm([entry["p_value"] for entry in overall])):
        entry["p_holm"] = float(adjusted)
        if adjusted >= 1 - confidence:
            entry["verdict"] = "tie"
    return result


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


def _mask_entry(
    name: str,
    seed: int | None,
    scores: Scores,
    latency: Mapping[str, Any],
    full: NDArray[np.float64],
    confidence: float,
) -> dict[str, Any]:
    row = scores.rows([name])[0]
    quality, drop = scores.intervals(np.stack([row, full - row]), confidence)
    return {
        "mask_id": name,
        "seed": seed,
        "active_block_indices": [index for index, bit in enumerate(name) if bit == "1"],
        "quality": quality.estimate,
        "quality_ci": [quality.low, quality.high],
        "drop": drop.estimate,
        "drop_ci": [drop.low, drop.high],
        "reference_logprob": scores.mean_logprob([name]),
        "latency_ms": latency.get(name),
    }


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


def to_importance(scores: Mapping[str, float], num_blocks: int, source: str, keep: Sequence[int] = ()) -> list[float]:
    """Scores of a ``{"0": 0.6, ...}`` file as a list, checked.

    Args:
        keep: Blocks that stay active whatever their score; these may be missing, and count as most important.

    >>> to_importance({"1": 0.5, "0": 2}, 2, "file.json")
    [2.0, 0.5]
    >>> to_importance({"1": 0.5}, 2, "file.json", keep=[0])
    [0.5, 0.5]

    Raises:
        ValueError: If a block is missing, unknown, or has no finite number.
    """
    expected = {str(block_idx) for block_idx in range(num_blocks)}
    known = isinstance(scores, Mapping) and bool(scores) and not set(scores) - expected
    missing = sorted(int(b) for b in expected - set(scores) if int(b) not in keep) if known else []
    if not known or missing:
        given = sorted(scores, key=str)[:5] if isinstance(scores, Mapping) else type(scores).__name__
        raise ValueError(
            f"{source}: expected one score for each of the blocks 0..{num_blocks - 1}, got {given}"
            + (f"; without one, give --keep for blocks {missing}" if missing else "")
        )
    for block_idx, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{source}: expected a finite score, got {value!r} for block {block_idx}")
    return [float(scores.get(str(block_idx), max(scores.values()))) for block_idx in range(num_blocks)]
