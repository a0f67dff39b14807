"""Interactive charts as Vega-Lite specifications: one for each kind, drawn by dashboards and by the page alike."""

from lit_depth.results.charts.block_charts import Bar, HeatCell, heat_map, importance_bars
from lit_depth.results.charts.latency_chart import FittedLine, StageTime, latency_vs_blocks
from lit_depth.results.charts.quality_charts import Mark, TimedMark, quality_vs_blocks, quality_vs_latency
from lit_depth.results.charts.tree_chart import TreeNode, search_tree
from lit_depth.results.charts.vega_lite import preset, preset_names, vega_lite

__all__ = [
    "Bar",
    "FittedLine",
    "HeatCell",
    "Mark",
    "StageTime",
    "TimedMark",
    "TreeNode",
    "heat_map",
    "importance_bars",
    "latency_vs_blocks",
    "preset",
    "preset_names",
    "quality_vs_blocks",
    "quality_vs_latency",
    "search_tree",
    "vega_lite",
]
