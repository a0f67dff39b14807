"""A chart of each kind, and how far two colours are apart."""

from __future__ import annotations

from lit_depth.results.charts import (
    Bar,
    FittedLine,
    HeatCell,
    Mark,
    StageTime,
    TimedMark,
    TreeNode,
    heat_map,
    importance_bars,
    latency_vs_blocks,
    quality_vs_blocks,
    quality_vs_latency,
    search_tree,
)

LIGHT_AND_DARK = ("#FFFFFF", "#1B1B1B")
WORDS = {"title": "A title", "subtitle": "what the bars are", "x": "along", "y": "above", "drop": "colour"}
MARKS = [
    Mark(policy, blocks, best - 1 / blocks, (best - 1.25 / blocks, best - 0.75 / blocks), policy == "prefix")
    for policy, best in (("prefix", 0.75), ("importance", 1.0))
    for blocks in (4, 8, 12)
]
FULL = Mark("all 16 blocks", 16, 0.95, (0.9, 1.0))
CONSTANT = Mark('constant answer "no"', 0, 0.3, (0.2, 0.4), True)
TIMED = [TimedMark(mark, 10.0 * mark.blocks, (9.0 * mark.blocks, 11.0 * mark.blocks), True) for mark in MARKS]
TIMES = [
    StageTime(stage, blocks, 2.0 * blocks, (2.0 * blocks, 3.0 * blocks))
    for stage in ("total", "prefill")
    for blocks in (12, 4)
]
NODES = [
    TreeNode("nothing removed", 0, 0, 0.0, True),
    TreeNode("-1", 1, 0.5, 0.25, True, ["nothing removed"]),
    TreeNode("-2", 1, -0.5, None, False, ["nothing removed"]),
]
CHARTS = {
    "quality": quality_vs_blocks(MARKS, FULL, WORDS, CONSTANT),
    "quality without a constant": quality_vs_blocks(MARKS[:2], FULL, WORDS),
    "tradeoff": quality_vs_latency(TIMED, TimedMark(FULL, 200.0), WORDS),
    "importance": importance_bars([Bar("0", 0.5, (0.25, 0.75)), Bar("1", -0.125, (-0.25, 0.125), False)], WORDS),
    "tasks": heat_map([HeatCell("a", "0", -0.5), HeatCell("a", "1", 2.0, False), HeatCell("b", "0", None)], WORDS),
    "tokens": heat_map([HeatCell("vision", "0", 3.0), HeatCell("final", "0", 1.5)], WORDS, "token", limit=2.0),
    "latency": latency_vs_blocks(TIMES, [FittedLine("total", 10.0, 2.0)], 16, WORDS),
    "tree": search_tree(NODES, WORDS),
}


def contrast(color: str, background: str) -> float:
    """Contrast ratio of WCAG 2.1 (https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio).

    >>> contrast("#000000", "#FFFFFF"), contrast("#FFFFFF", "#FFFFFF")
    (21.0, 1.0)
    """
    high, low = sorted(map(_luminance, (color, background)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))
