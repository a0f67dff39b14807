"""What skipping each block costs: bars with intervals, and maps of blocks against tasks or tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lit_depth.results.charts.vega_lite import NEUTRAL, axis, frame, hint
from lit_depth.results.report import Chart, Table
from lit_depth.results.style import COLORS


class Bar(NamedTuple):
    """The drop when one block, or half a block, is skipped; ``differs``: it was shown to be none by chance."""

    block: str
    drop: float
    limits: Sequence[float]
    differs: bool = True


class HeatCell(NamedTuple):
    """A cell of a map; ``differs``: its value was shown to be none by chance. None is not known."""

    row: str
    column: str
    value: float | None
    differs: bool = True


def importance_bars(bars: Sequence[Bar], words: Mapping[str, str]) -> Chart:
    """One bar for each block, in their order; pale where no difference was shown."""
    rows: list[list[Any]] = [[bar.block, bar.drop, *bar.limits, bar.differs] for bar in bars]
    table = Table(("block", "drop", "low", "high", "differs"), rows)
    return Chart("importance_bars", _BARS, table, words)


def heat_map(
    cells: Sequence[HeatCell],
    words: Mapping[str, str],
    kind: Literal["task", "token"] = "task",
    limit: float | None = None,
) -> Chart:
    """Values in coloured cells, in the order of the cells' rows and columns.

    Of tasks blue below zero and red above, of tokens (which are distances) from white to blue.

    Args:
        cells: Cells that are not there stay empty.
        words: ``title``, ``subtitle``, and the titles of the axes ``x`` and ``y``.
        kind: What the rows are.
        limit: Value at which the colours end, on either side; None = the largest.
    """
    known = [abs(cell.value) for cell in cells if cell.value is not None]
    most = limit or max(known, default=0.0) or 1.0
    rows: list[list[Any]] = [
        [cell.row, cell.column, cell.value, max(-1.0, min(1.0, cell.value / most)), cell.differs]
        for cell in cells
        if cell.value is not None
    ]
    headers = ("row", "column", "value", "shade", "differs")
    return Chart(f"{kind}_heat_map", _MAPS[kind], Table(headers, rows), words)


def _differs(sure: float, unsure: float) -> dict[str, Any]:
    return {"condition": {"test": "datum['differs']", "value": sure}, "value": unsure}


_BLOCK = {**axis("x", "block", "ordinal"), "sort": None, "axis": {"labelAngle": 0, "labelOverlap": True}}
_HINT = hint("block", "drop", "low", "high", "differs")
_BARS: dict[str, Any] = frame(
    layer=[
        {
            "mark": {"type": "bar", "color": COLORS[0]},
            "encoding": {"x": _BLOCK, "y": axis("y", "drop"), "opacity": _differs(1.0, 0.5), "tooltip": _HINT},
        },
        {
            "mark": {"type": "rule", "color": NEUTRAL, "strokeWidth": 1.5},
            "encoding": {"x": _BLOCK, "y": axis("y", "low"), "y2": {"field": "high"}, "tooltip": _HINT},
        },
        {"mark": {"type": "rule", "color": NEUTRAL}, "encoding": {"y": {"datum": 0}}},
    ]
)


def _map(scale: Mapping[str, Any], is_strong: str) -> dict[str, Any]:
    places = {
        "x": {**axis("x", "column", "ordinal"), "sort": None, "axis": {"labelOverlap": True, "labelLimit": 140}},
        "y": {**axis("y", "row", "ordinal"), "sort": None, "axis": {"labelLimit": 220}},
    }
    told = hint("row", "column", "value", "differs")
    color = {"field": "shade", "type": "quantitative", "scale": dict(scale), "legend": None}
    ink = {"condition": {"test": is_strong, "value": "white"}, "value": "black"}
    return frame(
        layer=[
            {"mark": "rect", "encoding": {**places, "color": color, "opacity": _differs(1.0, 0.45), "tooltip": told}},
            {
                "mark": {"type": "text", "fontSize": 9},
                "encoding": {**places, "text": {"field": "value", "format": ".2~f"}, "color": ink},
            },
        ]
    ) | {"height": {"step": 26}}


_MAPS = {
    "task": _map(
        {"scheme": "redblue", "reverse": True, "domain": [-1, 1]},
        "datum['differs'] && abs(datum['shade']) > 0.6",
    ),
    "token": _map({"scheme": "blues", "domain": [0, 1]}, "datum['differs'] && datum['shade'] > 0.6"),
}
