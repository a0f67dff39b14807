"""Runs of one model whose masks other tokens skip: which has the higher quality where both cost the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional.statistics import FamilyRow, separate_comparisons
from lit_depth.results.flop_shares import share_of_full
from lit_depth.results.measures import metric_label
from lit_depth.studies.compare.figures import has_latency, limits, time_limits, total_ms
from lit_depth.studies.overview.analysis import RunScores, images_of, score_table, shared_split
from lit_depth.studies.overview.folders import Stored
from lit_depth.studies.shared.comparison_schema import Comparison, Strategy

COSTS = {"flops": "FLOPs", "time": "time"}
ANY_POLICY = "best mask of any policy"
_LEAST = 2  # clusters in each half
_SEED = 0


class CostPoint(NamedTuple):
    """A policy at a number of active blocks: what it costs relative to all blocks, and its quality."""

    policy: str
    blocks: int
    masks: Sequence[str]
    cost: float
    cost_limits: Sequence[float]
    quality: float
    quality_limits: Sequence[float]


class CostCurve(NamedTuple):
    """The points of one run on one task under one of `COSTS`; the last point is the full model."""

    label: str
    task: str
    cost: str
    metric: str
    confidence: float
    points: Sequence[CostPoint]


class CostPair(NamedTuple):
    """Quality of run ``a`` less that of run ``b`` at equal cost, averaged over the costs that both have.

    Attributes:
        what: `ANY_POLICY`, or the one policy whose masks are looked at.
        low: Least of these costs, relative to all blocks; the greatest is 1.
        found: None where one of the two has no mask that costs less than all blocks.
    """

    a: str
    b: str
    task: str
    cost: str
    what: str
    low: float
    num_samples: int
    found: FamilyRow | None


def read_curves(run: Stored, label: str) -> list[CostCurve]:
    """What a comparison tells of quality and cost, by task; nothing of other commands."""
    if run.command != "compare":
        return []
    result: Any = run.result
    return [
        CostCurve(label, entry["task"], cost, metric_label(entry["metric"]), entry["confidence"], points)
        for entry in result.get("tasks") or [result]
        for cost in COSTS
        if (points := _points(entry, cost))
    ]


def _points(comparison: Comparison, cost: str) -> list[CostPoint]:
    full = comparison["full"]
    known = bool(comparison.get("flops")) if cost == "flops" else has_latency(comparison) and full["latency_ms"]
    if not known:
        return []
    points = [
        CostPoint(
            each["policy"], each["num_active_blocks"], [mask["mask_id"] for mask in each["masks"]],
            *_cost(each, comparison, cost), each["quality"], limits(each, comparison),
        )
        for each in comparison["strategies"]
        if each["num_active_blocks"] < comparison["num_blocks"]
    ]  # fmt: skip
    whole = "all blocks", comparison["num_blocks"], [full["mask_id"]], 1.0, [1.0, 1.0]
    return [*points, CostPoint(*whole, full["quality"], full["quality_ci"])]


def _cost(strategy: Strategy, comparison: Comparison, cost: str) -> tuple[float, Sequence[float]]:
    """Relative to all blocks of the same run, and its limits; a count of operations has no error."""
    if cost == "flops":
        shares = [share_of_full(comparison.get("flops"), mask["mask_id"]) for mask in strategy["masks"]]
        mean = sum(filter(None, shares)) / len(shares)
        return mean, [mean, mean]
    whole = total_ms(comparison["full"]["latency_ms"])
    ends = time_limits(strategy["latency_ms"], strategy["masks"], "total", comparison)
    return total_ms(strategy["latency_ms"]) / whole, [end / whole for end in ends]


def compare_at_equal_cost(
    runs: Sequence[RunScores], curves: Sequence[Sequence[CostCurve]], confidence: float
) -> list[CostPair]:
    """Every pair of runs of one model whose masks other tokens skip, on every task that both answered.

    At each cost a run has its best mask of at most that cost. The mask is chosen by the scores of one half of the
    images and read by those of the other half, and the other way round, so that being the best of many is no advantage.
    The difference between two runs is averaged over all costs from the least that both have up to that of all blocks;
    samples are matched by id and clustered by image, and all tests together are one family (Holm).

    Args:
        runs: Their scores.
        curves: Of each run, as `read_curves` gives them.
        confidence: Of the intervals.
    """
    found: list[CostPair] = []
    tested: list[tuple[NDArray[np.float64], list[str]]] = []
    for (a, curves_a), (b, curves_b) in itertools.combinations(zip(runs, curves), 2):
        if a.model != b.model or a.skip_tokens == b.skip_tokens:
            continue
        for first in curves_a:
            second = next((each for each in curves_b if (each.task, each.cost) == (first.task, first.cost)), None)
            if second is None or a.metrics.get(first.task) != b.metrics.get(first.task):
                continue
            for row in _rows(a, b, first, second):
                found.append(row.pair)
                tested += [(row.differences, row.images)] if row.differences is not None else []
    tests = iter(
        separate_comparisons(
            [differences for differences, _ in tested],
            [images for _, images in tested],
            confidence,
            score_ranges=[None] * len(tested),
        )
    )
    return [pair if pair.low >= 1 else pair._replace(found=next(tests)) for pair in found]


class _Row(NamedTuple):
    pair: CostPair
    differences: NDArray[np.float64] | None
    images: list[str]


def _rows(a: RunScores, b: RunScores, first: CostCurve, second: CostCurve) -> list[_Row]:
    task = first.task
    if task not in a.frames or task not in b.frames:
        return []
    both = a.frames[task], b.frames[task]
    split = shared_split(both)
    if split is None or any("weight" in frame for frame in both):
        return []
    tables = [score_table(frame[frame["role"] == split]) for frame in both]
    samples = tables[0].columns.intersection(tables[1].columns)
    images = images_of(both[0], split, samples)
    half = halves(images)
    if min(len({image for image, is_in in zip(images, half) if is_in == side}) for side in (True, False)) < _LEAST:
        return []
    policies = [name for name in dict.fromkeys(point.policy for point in first.points[:-1])]
    shared = [name for name in policies if any(point.policy == name for point in second.points[:-1])]
    rows = []
    for what in [ANY_POLICY, *(shared if len(shared) > 1 else [])]:
        sides = [_of_policy(curve.points, what) for curve in (first, second)]
        low = max(min(point.cost for point in points) for points in sides)
        pair = CostPair(a.label, b.label, task, first.cost, what, low, len(images), None)
        if low >= 1:
            rows.append(_Row(pair, None, images))
            continue
        scores = [_scores(points, table[samples]) for points, table in zip(sides, tables)]
        costs = [np.array([point.cost for point in points]) for points in sides]
        means = [quality_at_cost(*each, half, low) for each in zip(costs, scores)]
        rows.append(_Row(pair, means[0] - means[1], images))
    return rows


def _of_policy(points: Sequence[CostPoint], what: str) -> list[CostPoint]:
    return [point for point in points if what == ANY_POLICY or point.policy == what or point is points[-1]]


def _scores(points: Sequence[CostPoint], table: Any) -> NDArray[np.float64]:
    """Of each point and sample; several masks of a point are averaged."""
    return np.stack([table.loc[list(point.masks)].to_numpy(float).mean(axis=0) for point in points])


def halves(images: Sequence[str]) -> NDArray[np.bool_]:
    """Which samples are of the first half of the images; the same images fall alike wherever they are.

    >>> halves(["a", "b", "a", "c", "d"]).tolist()
    [True, False, True, True, False]
    """
    names = sorted(set(images))
    random.Random(_SEED).shuffle(names)
    first = set(names[: len(names) // 2])
    return np.array([image in first for image in images])


def quality_at_cost(
    costs: NDArray[np.float64], scores: NDArray[np.float64], half: NDArray[np.bool_], low: float, high: float = 1.0
) -> NDArray[np.float64]:
    """Score of each sample under the best mask of at most a cost, averaged over all costs from ``low`` to ``high``.

    The best one is found by the samples of the other half; of equally good ones it is the cheapest.

    Args:
        costs: ``[masks]``, one of them at most ``low``.
        scores: ``[masks, samples]``.
        half: ``[samples]``, which half each is of.
        low: Where the average begins, below ``high``.

    >>> costs, scores = np.array([0.5, 0.75, 1.0]), np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    >>> quality_at_cost(costs, scores, np.array([True, False]), low=0.5)
    array([0.5, 0.5])
    """
    edges = np.unique(np.concatenate([[low, high], costs[(costs > low) & (costs < high)]]))
    result = np.zeros(scores.shape[1])
    cheapest_first = np.argsort(costs, kind="stable")
    for side in (True, False):
        means = scores[:, half != side].mean(axis=1)
        for begin, end in itertools.pairwise(edges):
            affordable = cheapest_first[costs[cheapest_first] <= begin]
            best = affordable[np.argmax(means[affordable])]
            result[half == side] += (end - begin) / (high - low) * scores[best, half == side]
    return result
