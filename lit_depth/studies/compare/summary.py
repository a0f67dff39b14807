"""A comparison in a few numbers for each policy, as the table of runs in a dashboard shows them."""

from collections.abc import Sequence
from typing import Any

from lit_depth.results.report import Scalar
from lit_depth.results.verdicts import refusal
from lit_depth.studies.compare.figures import by_policy, has_latency, limits, total_ms
from lit_depth.studies.shared.comparison_schema import Comparison, Strategy

SHARES = (0.99, 0.95)


def summarize_policies(comparison: Comparison) -> dict[str, Scalar]:
    """Area, fewest blocks and the best at half depth; time of a block where it was measured.

    | key | of |
    |---|---|
    | ``area/<policy>`` | mean quality over the numbers of blocks it was measured at (trapezoids), by `area` |
    | ``blocks_for_99/<policy>`` | fewest blocks that keep 99% of the full model's quality, None = none does |
    | ``blocks_for_99/<policy>/surely`` | the same by the lower end of the interval; ``/possibly``: by the upper end |
    | ``half_depth/...`` | the best ``policy`` at that many ``blocks``, its ``quality``, and what it is ``tied_with`` |
    | ``latency/total_ms_per_block``, ``.._fixed`` | slope and intercept of the line through all median times |
    """
    found: dict[str, Scalar] = {}
    for policy, strategies in by_policy(comparison).items():
        found[f"area/{policy}"] = area([(each["num_active_blocks"], each["quality"]) for each in strategies])
        for share in SHARES:
            found |= _fewest(f"blocks_for_{share:.0%}".rstrip("%") + f"/{policy}", strategies, comparison, share)
    return found | _half_depth(comparison) | _line(comparison)


def area(points: Sequence[tuple[float, float]]) -> float:
    """Area under a curve over the width of its axis: the mean height, by trapezoids; of one point its height.

    >>> area([(4, 0.5), (8, 1.0), (16, 1.0)])
    0.9166666666666666
    """
    ordered = sorted(points)
    width = ordered[-1][0] - ordered[0][0]
    if not width:
        return ordered[0][1]
    pieces = zip(ordered, ordered[1:])
    return sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pieces) / width


def _fewest(key: str, strategies: Sequence[Strategy], comparison: Comparison, share: float) -> dict[str, Scalar]:
    full = comparison["full"]["quality"]
    if full <= 0:  # a log-probability has no shares
        return {}
    heights = {
        key: [(each["num_active_blocks"], each["quality"]) for each in strategies],
        f"{key}/surely": [(each["num_active_blocks"], limits(each, comparison)[0]) for each in strategies],
        f"{key}/possibly": [(each["num_active_blocks"], limits(each, comparison)[1]) for each in strategies],
    }
    return {
        name: min((count for count, height in points if height >= share * full), default=None)
        for name, points in heights.items()
    }


def _half_depth(comparison: Comparison) -> dict[str, Scalar]:
    """At the number of blocks next to half of them at which several policies were measured; nothing if none is."""
    by_count: dict[int, list[Strategy]] = {}
    for strategy in comparison["strategies"]:
        by_count.setdefault(strategy["num_active_blocks"], []).append(strategy)
    counts = [count for count, here in by_count.items() if len(here) > 1 and count < comparison["num_blocks"]]
    if not counts or refusal(comparison):
        return {}
    count = min(counts, key=lambda count: (abs(count - comparison["num_blocks"] / 2), count))
    best = max(by_count[count], key=lambda strategy: strategy["quality"])
    worse = set()
    for entry in comparison["comparisons"]:
        pair = {entry["a"]: "a", entry["b"]: "b"}
        if entry["num_active_blocks"] == count and pair.get(best["policy"]) == entry["verdict"]:
            worse |= set(pair) - {best["policy"]}
    tied = [each["policy"] for each in by_count[count] if each is not best and each["policy"] not in worse]
    return {
        "half_depth/policy": best["policy"],
        "half_depth/blocks": count,
        "half_depth/quality": best["quality"],
        "half_depth/tied_with": ", ".join(tied) or "none",
    }


def _line(comparison: Comparison) -> dict[str, Scalar]:
    full = comparison["full"]["latency_ms"]
    if not has_latency(comparison) or full is None:
        return {}
    # brings torch along, which reading results does without
    from lit_depth.functional.latency.budget import fit_line

    times: list[tuple[int, Any]] = [
        (each["num_active_blocks"], each["latency_ms"]) for each in comparison["strategies"]
    ]
    counts, latencies = zip(*[*times, (comparison["num_blocks"], full)])
    if len(set(counts)) < 2:
        return {}
    line = fit_line(counts, [total_ms(each) for each in latencies])
    return {"latency/total_ms_per_block": line.slope, "latency/total_ms_fixed": line.intercept}
