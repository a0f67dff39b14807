"""Which mask, or how many blocks, a latency budget affords: for a model, and for a single request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.stats import binom

from lit_depth.functional.arguments import MAX_UNITS, check_share, checked, fits, shorten

Anything = TypeVar("Anything")

# how much quality a request may lose, by its complexity: the upper end of the interval of the drop
TOLERANCES: Mapping[str, float] = MappingProxyType({"simple": 0.10, "medium": 0.05, "complex": 0.01})


class Line(NamedTuple):
    """Time as a line in the number of active blocks, see `fit_line`."""

    slope: float  # ms per block
    intercept: float  # ms that no skipped block saves
    r2: float | None  # share of the variance of the times that the line explains; None of two, which it always meets

    def time_ms(self, num_active_blocks: int) -> float:
        """Estimated time in ms.

        >>> Line(slope=2.0, intercept=5.0, r2=1.0).time_ms(8)
        21.0
        """
        return self.intercept + self.slope * num_active_blocks


@checked
@dataclass(frozen=True)
class Candidate:
    """A mask with what was measured under it.

    Args:
        mask_id: Bit string of the mask, block 0 first.
        latency_ms: Upper percentile of the time per request: what has to meet the budget.
        quality: Mean score.
        quality_ci: Lower and upper end of its interval.
        drop_ci: Lower and upper end of the interval of quality(full) - quality(mask); one that holds together with
            those of all other candidates, because the best of several looks better than it is.

    Raises:
        ValueError: A number that is not finite, a latency that is not positive, or an interval that is not (low, high).
    """

    mask_id: str
    latency_ms: float
    quality: float
    quality_ci: tuple[float, float]
    drop_ci: tuple[float, float]

    @classmethod
    @checked
    def from_result(cls, entry: Mapping[str, Any]) -> Candidate:
        """A candidate of ``selection.json``, as `lit-depth select` writes it, by what the choice looked at.

        >>> measured = {"quality": 0.7, "quality_ci": [0.66, 0.74], "drop_ci": [0.08, 0.15]}
        >>> Candidate.from_result({"mask_id": "10", "latency_ms": {"bound": 12.0}, "chosen_by": measured}).drop_ci
        (0.08, 0.15)

        Raises:
            ValueError: A run with ``--estimate_depth``, which measures no quality.
        """
        try:
            mask_id, time_ms, measured = entry["mask_id"], entry["latency_ms"]["bound"], entry["chosen_by"]
            if measured is None:
                raise ValueError(f"mask {mask_id}: expected a candidate of measured quality, got one without")
            quality, drops = measured["quality"], measured.get("drop_simultaneous_ci") or measured["drop_ci"]
            intervals = tuple(measured["quality_ci"]), tuple(drops)
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected an entry of candidates of selection.json, got {shorten(entry)}") from error
        return cls(mask_id, time_ms, quality, *intervals)

    def __post_init__(self) -> None:
        _check_positive(f"latency_ms of mask {self.mask_id}", self.latency_ms)
        if not math.isfinite(self.quality):
            raise ValueError(f"expected a finite quality of mask {self.mask_id}, got {self.quality}")
        for name, limits in (("quality_ci", self.quality_ci), ("drop_ci", self.drop_ci)):
            if not all(map(math.isfinite, limits)) or limits[0] > limits[1]:
                raise ValueError(f"expected {name} of mask {self.mask_id} as finite (low, high), got {limits}")


@checked
def fit_line(counts: Sequence[int], times_ms: Sequence[float]) -> Line:
    """Fit time against the number of active blocks by least squares.

    The slope is what one block costs; the intercept is the fixed cost (vision tower, embedding, head), for which the
    plain ratio k / num_blocks has no place: it promises more than skipping blocks can save.

    Args:
        counts: Active blocks of each measurement, ``[measurements]``.
        times_ms: Its time in ms, ``[measurements]``.

    Returns:
        The line; its ``r2`` is 1 where all times are equal, as nothing is left to explain, and None of two times.

    Raises:
        ValueError: Lists of different lengths, numbers that are not finite, or fewer than two distinct counts.

    >>> fit_line([4, 8, 16], [13.0, 21.0, 37.0])
    Line(slope=2.0, intercept=5.0, r2=1.0)
    """
    x, y = np.asarray(counts, dtype=float), np.asarray(times_ms, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"expected as many times as counts, got shapes {list(y.shape)} and {list(x.shape)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("expected finite counts and times, got one that is not")
    distinct = np.unique(x).tolist()
    if len(distinct) < 2:
        raise ValueError(f"expected at least two distinct numbers of active blocks, got {distinct}")
    x_mean, y_mean = x.mean(), y.mean()
    slope = float(((x - x_mean) * (y - y_mean)).sum() / ((x - x_mean) ** 2).sum())
    intercept = float(y_mean - slope * x_mean)
    total = float(((y - y_mean) ** 2).sum())
    residual = float(((y - intercept - slope * x) ** 2).sum())
    # any two times lie on a line, which says nothing about a third
    if len(x) == 2:
        return Line(slope, intercept, None)
    return Line(slope, intercept, 1.0 - residual / total if total > 0 else 1.0)


@checked
def percentile_bound(times_ms: Sequence[float], share: float = 0.95, confidence: float = 0.95) -> float:
    """Upper confidence bound of a percentile, free of any distribution: what ``share`` of all requests stay within.

    The r-th smallest of n times is at least the percentile with probability P(Binomial(n, share) < r) (Wilks 1941,
    tolerance limits); the smallest such r with at least the given confidence is taken. Fewer than
    log(1 - confidence) / log(share) times (59 by default) cannot give it: then it is the largest time.

    Args:
        times_ms: Times of single requests, in ms.
        share: The percentile, between 0 and 1.
        confidence: Probability that the bound is none too low.

    Raises:
        ValueError: No times, one that is not finite, or shares that are none.

    >>> percentile_bound(list(range(1, 101)))
    99.0
    >>> percentile_bound([3.0, 1.0, 2.0])
    3.0
    """
    check_share(share=share, confidence=confidence)
    ordered = np.sort(np.asarray(times_ms, dtype=float))
    if not len(ordered) or not np.isfinite(ordered).all():
        raise ValueError("expected at least one finite time, got none or one that is not finite")
    covered = binom.cdf(np.arange(len(ordered)), len(ordered), share)  # P(fewer than r) for r = 1..n
    enough = np.flatnonzero(covered >= confidence)
    return float(ordered[enough[0] if len(enough) else -1])


@checked
def depth_under_budget(line: Line, budget_ms: float, num_blocks: int, fewest: int = 1) -> int:
    """Most active blocks whose estimated time meets the budget, where only importance was measured for each block.

    Args:
        line: Time by the number of active blocks, in ms.
        budget_ms: Longest time in ms.
        num_blocks: Most blocks that may be active.
        fewest: Fewest, such as those that are always kept.

    Raises:
        ValueError: A budget that is not positive and finite, or below what the cheapest depth takes (the
            fewest blocks, unless the fitted line falls); no blocks; a line that is not finite.

    >>> depth_under_budget(Line(slope=2.0, intercept=5.0, r2=1.0), budget_ms=22.0, num_blocks=16)
    8
    """
    _check_positive("budget_ms", budget_ms)
    if not 1 <= fewest <= num_blocks <= MAX_UNITS:
        raise ValueError(
            f"expected at least one block, got num_blocks={shorten(num_blocks)} and fewest={shorten(fewest)}"
        )
    if not (math.isfinite(line.slope) and math.isfinite(line.intercept)):
        raise ValueError(f"expected a finite line, got {line}")
    times = {count: line.time_ms(count) for count in range(fewest, num_blocks + 1)}
    affordable = [count for count, time in times.items() if time <= budget_ms]
    if not affordable:
        cheapest = min(times, key=times.__getitem__)
        raise ValueError(
            f"expected a budget of at least {round_up(times[cheapest])} ms, which {cheapest} of {num_blocks} blocks "
            f"{'takes' if cheapest == 1 else 'take'} by estimate, got {budget_ms} ms"
        )
    return max(affordable)


@checked
def select_for_budget(candidates: Sequence[Candidate], budget_ms: float) -> Candidate:
    """The candidate of the highest quality whose latency meets the budget; of equally good ones the fastest.

    Raises:
        ValueError: No candidates, or a budget that is not positive and finite or that no candidate meets.

    >>> small = Candidate("1100", 12.0, 0.70, (0.66, 0.74), (0.08, 0.15))
    >>> large = Candidate("1110", 17.0, 0.79, (0.75, 0.83), (0.01, 0.05))
    >>> select_for_budget([small, large], budget_ms=15.0).mask_id
    '1100'
    """
    return max(_affordable(candidates, budget_ms), key=lambda candidate: (candidate.quality, -candidate.latency_ms))


@checked
def request_mask(
    candidates: Sequence[Candidate], complexity: str, budget_ms: float, tolerances: Mapping[str, float] = TOLERANCES
) -> Candidate:
    """Choose the mask of one request: the fastest that loses little enough, or the best that is fast enough.

    Args:
        candidates: Measured masks.
        complexity: Name of a tolerance: how hard the request is.
        budget_ms: Longest time for the request in ms.
        tolerances: By complexity, the largest drop in quality that may be risked. It is compared with the upper end of
            the drop's interval, so a mask that was measured on few samples has to be better to be chosen.

    Returns:
        The fastest candidate within budget and tolerance (of equally fast ones the best); where no mask within the
        budget is within the tolerance, `select_for_budget`.

    Raises:
        ValueError: An unknown complexity, a tolerance that is negative or not a number, and as `select_for_budget`.

    >>> small = Candidate("1100", 12.0, 0.70, (0.66, 0.74), (0.08, 0.15))
    >>> large = Candidate("1110", 17.0, 0.79, (0.75, 0.83), (0.01, 0.05))
    >>> request_mask([small, large], "simple", budget_ms=20.0).mask_id
    '1110'
    >>> request_mask([small, large], "simple", budget_ms=20.0, tolerances={"simple": 0.2}).mask_id
    '1100'
    """
    if complexity not in tolerances:
        raise ValueError(f"expected complexity to be one of {', '.join(tolerances)}, got {complexity!r}")
    tolerance = tolerances[complexity]
    if not fits(tolerance, float) or not tolerance >= 0:
        raise ValueError(f"expected a tolerance of at least 0 for {complexity!r}, got {shorten(tolerance)}")
    within = [candidate for candidate in _affordable(candidates, budget_ms) if candidate.drop_ci[1] <= tolerance]
    if not within:
        return select_for_budget(candidates, budget_ms)
    return min(within, key=lambda candidate: (candidate.latency_ms, -candidate.quality))


@checked
def pareto_frontier(points: Sequence[tuple[float, float, Anything]]) -> list[tuple[float, float, Anything]]:
    """Points that no other point beats: for each, nothing is at least as fast and better, or faster and as good.

    Args:
        points: (time, quality, anything) each.

    Returns:
        The frontier by increasing time (and so by strictly increasing quality).

    >>> pareto_frontier([(3.0, 0.9, 8), (1.0, 0.5, 4), (2.0, 0.4, 6), (4.0, 0.9, 10)])
    [(1.0, 0.5, 4), (3.0, 0.9, 8)]
    """
    frontier: list[tuple[float, float, Anything]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not frontier or point[1] > frontier[-1][1]:
            frontier.append(point)
    return frontier


def _affordable(candidates: Sequence[Candidate], budget_ms: float) -> list[Candidate]:
    _check_positive("budget_ms", budget_ms)
    if not len(candidates):
        raise ValueError("expected at least one candidate mask, got none")
    affordable = [candidate for candidate in candidates if candidate.latency_ms <= budget_ms]
    if not affordable:
        fastest = min(candidates, key=lambda candidate: candidate.latency_ms)
        active = " ".join(str(block_idx) for block_idx, bit in enumerate(fastest.mask_id) if bit == "1")
        raise ValueError(
            f"expected a budget of at least {round_up(fastest.latency_ms)} ms, which the fastest mask (active blocks "
            f"{active}) needs, got {budget_ms} ms"
        )
    return affordable


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected {name} to be positive and finite, got {value}")


def round_up(time_ms: float) -> float:
    """To microseconds, so that a minimum that is printed is itself enough.

    >>> round_up(1.2341)
    1.235
    """
    return math.ceil(time_ms * 1000) / 1000
