"""Time of each stage against the number of active blocks, and the line through it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_depth.results.charts.vega_lite import COUNTS, NEUTRAL, axis, frame, hint, legend_switch, role_is, shown
from lit_depth.results.report import Chart, Table
from lit_depth.results.style import COLORS, STAGES, Stage

_MEASURED, _FITTED = "measured", "fitted"
# the stages' own, but for the total: its black is lost on black
_COLORS: dict[str, str] = {label: color for label, color, _ in STAGES.values()} | {STAGES["total"][0]: COLORS[3]}


class StageTime(NamedTuple):
    """Milliseconds of one stage under one mask, and the limits of its bar."""

    stage: Stage
    blocks: int
    ms: float
    limits: Sequence[float]


class FittedLine(NamedTuple):
    """``intercept + slope * blocks`` milliseconds."""

    stage: Stage
    intercept: float
    slope: float


def latency_vs_blocks(
    times: Sequence[StageTime], lines: Sequence[FittedLine], num_blocks: int, words: Mapping[str, str]
) -> Chart:
    """Points with bars, and the fitted line from no block to all."""
    rows: list[list[Any]] = [
        [STAGES[each.stage][0], each.blocks, each.ms, *each.limits, _MEASURED]
        for each in sorted(times, key=lambda each: each.blocks)
    ]
    rows += [
        [STAGES[line.stage][0], end, line.intercept + line.slope * end, None, None, _FITTED]
        for line in lines
        for end in (0, num_blocks)
    ]
    table = Table(("stage", "blocks", "ms", "low", "high", "role"), rows)
    there = dict.fromkeys(row[0] for row in rows)
    return Chart("latency_vs_blocks", _SPEC, table, words, {stage: _COLORS[stage] for stage in there})


_STAGE = {
    **{"field": "stage", "type": "nominal", "title": None, "sort": None},
    "scale": {"range": list(_COLORS.values())},
}
_X = axis("x", "blocks", axis=COUNTS)
_Y = axis("y", "ms")
_TOLD = hint("stage", "blocks", "ms", "low", "high")
_SPEC: dict[str, Any] = frame(
    layer=[
        {
            "params": [legend_switch("stage")],
            "transform": [role_is(_FITTED)],
            "mark": {"type": "line", "strokeDash": [6, 4], "color": NEUTRAL},
            "encoding": {"x": _X, "y": _Y, "color": _STAGE, "opacity": shown(0.8)},
        },
        {
            "transform": [role_is(_MEASURED)],
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {
                **{"x": _X, "y": axis("y", "low"), "y2": {"field": "high"}},
                **{"color": _STAGE, "opacity": shown(0.6)},
            },
        },
        {
            "transform": [role_is(_MEASURED)],
            "mark": {"type": "point", "filled": True, "size": 55},
            "encoding": {"x": _X, "y": _Y, "color": _STAGE, "opacity": shown(1), "tooltip": _TOLD},
        },
    ]
)
