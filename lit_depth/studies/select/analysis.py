"""From quality and times of masks to the choice under a latency budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np

from lit_depth.functional import mask_id, top_k
from lit_depth.functional.latency.budget import (
    TOLERANCES,
    Candidate,
    Line,
    depth_under_budget,
    fit_line,
    pareto_frontier,
    percentile_bound,
    request_mask,
    round_up,
    select_for_budget,
)
from lit_depth.studies.select.arguments import SelectArguments

SHARE = 0.95  # of the requests that have to stay within the budget
Times = Mapping[str, Sequence[float]]  # by mask, in ms of each request


class Option(NamedTuple):
    """A mask that may be chosen, and how good it is (``quality``, ``quality_ci``, ``drop``, ``drop_ci``)."""

    mask_id: str
    policies: list[str]
    chosen_by: dict[str, Any] | None  # on the questions that the choice looks at
    expected: dict[str, Any] | None  # on others, where there are others

    @property
    def chosen_quality(self) -> float:
        """The quality that the choice looks at."""
        assert self.chosen_by is not None
        return self.chosen_by["quality"]


class Bounds(NamedTuple):
    """Time in ms that `SHARE` of the requests stay within, with the margin on top."""

    by_mask: Mapping[str, float]
    line: Line | None  # by the number of active blocks; None of one number only

    @classmethod
    def from_times(cls, times: Times, arguments: SelectArguments) -> Self:
        """Bounds of the masks that were timed, each with a confidence of 95%.

        Raises:
            ValueError: If the depth is to be estimated from times of one number of active blocks.
        """
        by_mask = {mask: percentile_bound(each, SHARE) / (1 - arguments.margin) for mask, each in times.items()}
        counts = [mask.count("1") for mask in by_mask]
        if len(set(counts)) > 1:
            return cls(by_mask, fit_line(counts, list(by_mask.values())))
        if arguments.estimate_depth:
            advice = "keep fewer blocks" if arguments.latency is None else f"{arguments.latency} has one"
            raise ValueError(
                f"estimate_depth draws a line through the times of two numbers of active blocks or more: {advice}"
            )
        return cls(by_mask, None)

    def of(self, mask: str) -> float:
        """Bound of any mask: from its own times, those of its depth, or the line.

        >>> bounds = Bounds({"1100": 20.0, "1111": 30.0}, Line(5.0, 10.0, None))
        >>> bounds.of("1100"), bounds.of("0011"), bounds.of("0111")
        (20.0, 20.0, 25.0)
        """
        count = mask.count("1")
        same = [bound for other, bound in self.by_mask.items() if other.count("1") == count]
        if same:
            return self.by_mask.get(mask, max(same))
        if self.line is None:
            raise ValueError(
                f"expected times of {count} active blocks, or of two other numbers to draw a line through, got none: "
                "leave out --latency, or time more masks"
            )
        return self.line.time_ms(count)


def order_by_importance(importance: Sequence[float], num_blocks: int, keep: Sequence[int]) -> list[Option]:
    """The most important blocks at every number of blocks; nothing is known of their quality."""
    return [
        Option(mask_id(top_k(importance, count, keep=keep)), ["importance"], None, None)
        for count in range(max(1, len(keep)), num_blocks + 1)
    ]


def best_of_each_count(options: Sequence[Option]) -> list[Option]:
    """Of equally many blocks the best mask: which of them run hardly matters to the clock."""
    best: dict[int, Option] = {}
    for option in options:
        count = option.mask_id.count("1")
        if count not in best or option.chosen_quality > best[count].chosen_quality:
            best[count] = option
    return [best[count] for count in sorted(best)]


def worth_timing(options: Sequence[Option]) -> list[Option]:
    """Of the best masks of each depth those that are better than every one of fewer blocks, and the full model.

    A mask that is no better than a faster one is never the best within a budget: its own times would decide nothing.
    """
    kept: list[Option] = []
    for option in best_of_each_count(options):
        is_better = all(option.chosen_quality > each.chosen_quality for each in kept)
        if is_better or "0" not in option.mask_id:
            kept.append(option)
    return kept


def masks_to_time(options: Sequence[Option], for_line: bool) -> list[str]:
    """The best mask of each depth; for a line five depths, the smallest and the largest among them."""
    if not for_line:
        return [option.mask_id for option in best_of_each_count(options)]
    by_count = {option.mask_id.count("1"): option.mask_id for option in options}
    counts = sorted(by_count)
    chosen = [by_count[counts[round(share * (len(counts) - 1))]] for share in (0, 0.25, 0.5, 0.75, 1)]
    return list(dict.fromkeys(chosen))


def describe(arguments: SelectArguments, options: Sequence[Option], times: Times) -> dict[str, Any]:
    """The part of the result that follows from the arguments, the masks and their times; nothing is chosen yet.

    The best masks of each depth are candidates; of an estimated depth, which knows no best, all.
    """
    estimated, bounds = arguments.estimate_depth, Bounds.from_times(times, arguments)
    candidates = [
        _describe_candidate(option, times.get(option.mask_id, ()), bounds.of(option.mask_id))
        for option in (options if estimated else best_of_each_count(options))
    ]
    full = next((each for each in options if "0" not in each.mask_id), None)
    return {
        "confidence": arguments.confidence,
        "share_within_budget": SHARE,
        "margin": arguments.margin,
        "budget_ms": arguments.budget_ms,
        "complexity": arguments.complexity,
        "quality": "not measured" if estimated else (arguments.comparison or "measured"),
        "full": full and (full.expected or full.chosen_by),
        "line": None if bounds.line is None else bounds.line._asdict(),
        "candidates": candidates,
        "frontier": [] if estimated else _frontier(candidates),
        **{"selected": None, "rejected": [], "requests": {}},
    }


def _describe_candidate(option: Option, times: Sequence[float], bound: float) -> dict[str, Any]:
    return {
        "mask_id": option.mask_id,
        "policies": option.policies,
        "num_active_blocks": option.mask_id.count("1"),
        "active_block_indices": [index for index, bit in enumerate(option.mask_id) if bit == "1"],
        "latency_ms": {"num_requests": len(times), "P50": float(np.median(times)) if times else None, "bound": bound},
        "chosen_by": option.chosen_by,
        "expected": option.expected,
    }


def _frontier(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    points = [(entry["latency_ms"]["bound"], entry["chosen_by"]["quality"], entry["mask_id"]) for entry in candidates]
    return [mask for _, _, mask in pareto_frontier(points)]


def choose(
    result: Mapping[str, Any], arguments: SelectArguments, measure: Callable[[Sequence[str]], Times]
) -> dict[str, Any]:
    """The best mask within the budget, timed again; one that does not surely keep the budget gives way to the next.

    Returns the result's ``selected``, ``rejected`` and ``requests``; of an estimated depth ``depth_by_plain_ratio``
    too.

    Raises:
        ValueError: If no mask keeps the budget.
    """
    assert arguments.budget_ms is not None
    budget_ms, by_id = arguments.budget_ms, {entry["mask_id"]: entry for entry in result["candidates"]}
    rejected: dict[str, dict[str, Any]] = {}

    def pick(complexity: str | None) -> str:
        # what was measured again takes that long, which is more than the budget
        again = {mask: entry["measured_again"]["bound"] for mask, entry in rejected.items()}
        if arguments.estimate_depth:
            return _pick_by_line(list(by_id), Line(**result["line"]), budget_ms, again)
        return _pick_by_quality(result["candidates"], complexity, budget_ms, again)

    while True:
        mask = pick(arguments.complexity)
        selected = {**by_id[mask], "measured_again": _check_again(measure([mask])[mask], budget_ms)}
        if selected["measured_again"]["bound"] <= budget_ms:
            break
        rejected[mask] = selected
    choice = {"selected": selected, "rejected": list(rejected.values()), "requests": {}}
    if not arguments.estimate_depth:
        return choice | {"requests": {each: pick(each) for each in TOLERANCES}}
    full = max(by_id, key=lambda mask: mask.count("1"))
    by_ratio = int(len(full) * budget_ms / by_id[full]["latency_ms"]["bound"])
    return choice | {"depth_by_plain_ratio": min(len(full), by_ratio)}


def _check_again(times: Sequence[float], budget_ms: float) -> dict[str, Any]:
    return {
        "num_requests": len(times),
        "share_within_budget": float(np.mean([time <= budget_ms for time in times])),
        "P50": float(np.median(times)),
        "P95": float(np.percentile(times, 95)),
        # what decides: the share itself is above its true value half of the time
        "bound": percentile_bound(times, SHARE),
    }


def _pick_by_quality(
    candidates: Sequence[Mapping[str, Any]], complexity: str | None, budget_ms: float, again: Mapping[str, float]
) -> str:
    known = [Candidate.from_result(entry) for entry in candidates]
    known = [replace(each, latency_ms=again.get(each.mask_id, each.latency_ms)) for each in known]
    try:
        if complexity is None:
            return select_for_budget(known, budget_ms).mask_id
        return request_mask(known, complexity, budget_ms).mask_id
    except ValueError as error:
        tried = f"; measured again, {len(again)} masks took longer than before" if again else ""
        raise ValueError(f"budget_ms: {error}{tried}") from error


def _pick_by_line(masks: Sequence[str], line: Line, budget_ms: float, again: Mapping[str, float]) -> str:
    """Most blocks within the budget by the line, but fewer than those that took longer when measured again."""
    by_count = {mask.count("1"): mask for mask in masks}
    slower = {mask.count("1"): time for mask, time in again.items()}
    fewest, num_blocks = min(by_count), max(by_count)
    most = min(slower, default=num_blocks + 1) - 1
    if most < fewest:
        raise ValueError(
            f"budget_ms: expected a budget of at least {round_up(slower[fewest])} ms, which {fewest} of {num_blocks} "
            f"blocks took when measured again, got {budget_ms} ms"
        )
    return by_count[depth_under_budget(line, budget_ms, most, fewest)]
