"""The tree of a beam search."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_depth.results.charts.vega_lite import COUNTS, NEUTRAL, axis, frame, hint, role_is
from lit_depth.results.report import Chart, Table

_NODE, _EDGE = "ablation", "extends"
_HEIGHT, _ROOM = 420, 24  # pixels of the chart, and of a name with its point


class TreeNode(NamedTuple):
    """An ablation that was looked at: where it stands, and which ones it extends.

    ``drop`` is None where it was looked at on too few samples to tell; ``in_beam``: the search went on from it.
    """

    name: str
    x: float
    y: float
    drop: float | None
    in_beam: bool
    parents: Sequence[str] = ()


def search_tree(nodes: Sequence[TreeNode], words: Mapping[str, str]) -> Chart:
    """Ablations as points, one column for each number of removed blocks, joined with those that they extend.

    Colour is the drop, up to where a tenth of the ablations costs more. Edges between members of the beam are strong.
    Members are named, those of the least drop first, where the name of another leaves them room.
    """
    places = {node.name: node for node in nodes}
    drops = sorted(node.drop for node in nodes if node.drop is not None)
    most = drops[int(0.9 * (len(drops) - 1))] if drops else 0.0
    named = _named(nodes)
    rows: list[list[Any]] = []
    for node in nodes:
        for parent in (places[name] for name in node.parents if name in places):
            strong = node.in_beam and parent.in_beam
            rows.append([node.name, parent.x, parent.y, node.x, node.y, None, None, strong, None, _EDGE])
    for node in nodes:
        shade = None if node.drop is None else min(node.drop, most)
        label = node.name if node.name in named else None
        rows.append([node.name, node.x, node.y, None, None, node.drop, shade, node.in_beam, label, _NODE])
    table = Table(("removed", "x", "y", "x2", "y2", "drop", "shade", "in_beam", "label", "role"), rows)
    return Chart("search_tree", _SPEC, table, words)


def _named(nodes: Sequence[TreeNode]) -> set[str]:
    """Members of the beam whose names do not lie on one another."""
    heights = [node.y for node in nodes]
    room = (max(heights, default=0.0) - min(heights, default=0.0)) * _ROOM / _HEIGHT
    named: list[TreeNode] = []
    for node in sorted((node for node in nodes if node.in_beam), key=lambda node: (node.drop is None, node.drop)):
        if all(other.x != node.x or abs(other.y - node.y) >= room for other in named):
            named.append(node)
    return {node.name for node in named}


_X = axis("x", "x", axis=COUNTS, scale={"nice": False, "padding": 70})
_Y = {"field": "y", "type": "quantitative", "axis": None}
_DROP = {
    **{"field": "shade", "type": "quantitative", "title": "${string:drop}"},
    # its two ends are seen on white and on black
    "scale": {"range": ["#56B4E9", "#B05A00"], "interpolate": "lab"},
}
_BEAM = {"condition": {"test": "datum['in_beam']", "value": 1.0}, "value": 0.25}
_SPEC: dict[str, Any] = frame(
    height=_HEIGHT,
    layer=[
        {
            "transform": [role_is(_EDGE)],
            "mark": {"type": "rule", "color": NEUTRAL},
            "encoding": {"x": _X, "y": _Y, "x2": {"field": "x2"}, "y2": {"field": "y2"}, "opacity": _BEAM},
        },
        {
            "transform": [role_is(_NODE), {"filter": "datum['drop'] === null"}],
            "mark": {"type": "point", "filled": True, "size": 25, "color": NEUTRAL, "opacity": 0.6},
            "encoding": {"x": _X, "y": _Y, "tooltip": hint("removed")},
        },
        {
            "transform": [role_is(_NODE), {"filter": "datum['drop'] !== null"}],
            "mark": {"type": "point", "filled": True, "opacity": 1},
            "encoding": {
                **{"x": _X, "y": _Y, "color": _DROP},
                "size": {"condition": {"test": "datum['in_beam']", "value": 110}, "value": 45},
                "tooltip": hint("removed", "drop", "in_beam"),
            },
        },
        {
            "transform": [role_is(_NODE), {"filter": "datum['label'] !== null"}],
            "mark": {"type": "text", "align": "center", "dy": -10},
            "encoding": {"x": _X, "y": _Y, "text": {"field": "label"}},
        },
    ],
)
