"""Quality against the number of active blocks, and against time."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_depth.results.charts.vega_lite import COUNTS, NEUTRAL, axis, frame, hint, legend_switch, role_is, shown
from lit_depth.results.report import Chart, Table
from lit_depth.results.style import COLORS

Limits = Sequence[float] | None
# the shapes of `lit_depth.results.style.MARKERS`, in Vega's words and in their order
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "stroke")
_STAR = "M0,-1L.23,-.31L.95,-.31L.36,.12L.59,.81L0,.38L-.59,.81L-.36,.12L-.95,-.31L-.23,-.31Z"
FULL, CONSTANT, POLICY = "full model", "constant answer", "policy"
_POLICY = {
    **{"field": "policy", "type": "nominal", "title": None, "sort": None},
    "scale": {"range": list(COLORS)},
}
_SHAPE = {**_POLICY, "scale": {"range": list(SHAPES)}}
_LIMITS = ("low", "high")


class Mark(NamedTuple):
    """One policy at one number of active blocks.

    ``limits`` are those of the quality; ``at_constant``: it answers no better than a constant.
    """

    policy: str
    blocks: int
    quality: float
    limits: Limits = None
    at_constant: bool = False


class TimedMark(NamedTuple):
    """A `Mark` and its time in milliseconds."""

    mark: Mark
    ms: float
    ms_limits: Limits = None
    on_frontier: bool = False


def quality_vs_blocks(
    marks: Sequence[Mark],
    full: Mark | None,
    words: Mapping[str, str],
    constant: Mark | None = None,
    colors: Mapping[str, str] | None = None,
) -> Chart:
    """One line for each policy within its band; the full model, and the best constant answer, are lines across.

    Args:
        marks: Every policy at every number of blocks.
        full: The full model; None where there are several.
        words: ``title``, ``subtitle``, and the titles of the axes ``x`` and ``y``.
        constant: The best constant answer.
        colors: Colour of each policy; None = in the order of the marks.
    """
    rows = [[*_row(mark), POLICY] for mark in sorted(marks, key=lambda mark: mark.blocks)]
    rows += [[*_row(mark), role] for mark, role in ((full, FULL), (constant, CONSTANT)) if mark]
    headers = ("policy", "blocks", "quality", "low", "high", "at_constant", "role")
    found = colors or deal_colors([mark.policy for mark in marks])
    return Chart("quality_vs_blocks", _BLOCKS, Table(headers, rows), words, found)


def quality_vs_latency(
    marks: Sequence[TimedMark],
    full: TimedMark | None,
    words: Mapping[str, str],
    colors: Mapping[str, str] | None = None,
) -> Chart:
    """One point for each policy and number of blocks, with both its intervals, and the Pareto frontier as steps."""
    timed = sorted(marks, key=lambda each: each.ms)
    rows = [[*_row(each.mark), *_times(each), POLICY] for each in timed]
    rows += [[*_row(full.mark), *_times(full), FULL]] if full else []
    headers = ("policy", "blocks", "quality", "low", "high", "at_constant", "ms", "ms_low", "ms_high", "on_frontier")
    found = colors or deal_colors([each.mark.policy for each in marks])
    return Chart("quality_vs_latency", _LATENCY, Table((*headers, "role"), rows), words, found)


def deal_colors(names: Sequence[str], first: Sequence[str] = ()) -> dict[str, str]:
    """A colour for each name in the order of appearance; those of ``first`` have the first ones, there or not.

    >>> deal_colors(["b", "a", "b"], first=["a"]) == {"b": COLORS[1], "a": COLORS[0]}
    True
    """
    order = list(dict.fromkeys([*first, *names]))
    return {name: COLORS[order.index(name) % len(COLORS)] for name in dict.fromkeys(names)}


def _row(mark: Mark) -> list[Any]:
    return [mark.policy, mark.blocks, mark.quality, *(mark.limits or (None, None)), mark.at_constant]


def _times(each: TimedMark) -> list[Any]:
    return [each.ms, *(each.ms_limits or (None, None)), each.on_frontier]


_X = axis("x", "blocks", axis=COUNTS, scale={"zero": False, "nice": False, "padding": 14})
_Y = axis("y", "quality", scale={"zero": False})
_BAND = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
_MS = axis("x", "ms", scale={"zero": False, "padding": 20})
_TOLD = ("policy", "blocks", "quality", *_LIMITS)
_TIMED_TOLD = (*_TOLD, "ms", "ms_low", "ms_high")


def _of_policies(mark: Mapping[str, Any], opacity: float, **encoding: Any) -> dict[str, Any]:
    encoding |= {"color": _POLICY, "opacity": shown(opacity)}
    return {"transform": [role_is(POLICY)], "mark": dict(mark), "encoding": encoding}


def _points(x: Mapping[str, Any], told: Sequence[str]) -> list[dict[str, Any]]:
    """Full points, and hollow ones where a mask answers no better than a constant."""
    layers = []
    for condition, filled in (("!datum['at_constant']", True), ("datum['at_constant']", False)):
        mark = {"type": "point", "size": 60, "strokeWidth": 2, "filled": filled}
        layer = _of_policies(mark, 1, x=x, y=_Y, shape=_SHAPE, tooltip=hint(*told))
        layer["transform"].append({"filter": condition})
        layers.append(layer)
    return layers


def _across(role: str, dash: Sequence[int], words_above: int) -> list[dict[str, Any]]:
    """A line across and its name at the right, so many pixels above it."""
    line = {"type": "rule", "color": NEUTRAL, "strokeDash": list(dash), "strokeWidth": 1.5}
    name = {"type": "text", "align": "right", "dy": -words_above}
    place = {"x": {"value": "width"}, "y": axis("y", "quality"), "text": {"field": "policy"}}
    encoding = {"y": axis("y", "quality"), "tooltip": hint("policy", "quality", *_LIMITS)}
    return [
        {"transform": [role_is(role)], "mark": line, "encoding": encoding},
        {"transform": [role_is(role)], "mark": name, "encoding": place},
    ]


_BLOCKS: dict[str, Any] = frame(
    layer=[
        *_across(FULL, [6, 4], words_above=6),
        *_across(CONSTANT, [2, 3], words_above=-10),
        {"params": [legend_switch("policy")], **_of_policies({"type": "area"}, 0.13, x=_X, **_BAND)},
        _of_policies({"type": "rule", "strokeWidth": 1.2}, 0.5, x=_X, **_BAND),
        _of_policies({"type": "line", "strokeWidth": 2}, 1, x=_X, y=_Y),
        *_points(_X, _TOLD),
    ]
)
_ON_FRONTIER = [{"filter": "datum['on_frontier']"}]
_LATENCY: dict[str, Any] = frame(
    layer=[
        {
            "transform": _ON_FRONTIER,
            "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [6, 4], "color": NEUTRAL},
            "encoding": {"x": _MS, "y": _Y},
        },
        {"params": [legend_switch("policy")], **_of_policies({"type": "rule"}, 0.4, x=_MS, **_BAND)},
        _of_policies(
            {"type": "rule"}, 0.4, x={"field": "ms_low", "type": "quantitative"}, x2={"field": "ms_high"}, y=_Y
        ),
        *_points(_MS, _TIMED_TOLD),
        {
            "transform": [role_is(FULL)],
            "mark": {"type": "point", "shape": _STAR, "size": 250, "filled": True, "color": NEUTRAL, "opacity": 1},
            "encoding": {"x": _MS, "y": _Y, "tooltip": hint(*_TIMED_TOLD)},
        },
        {
            "transform": _ON_FRONTIER,
            "mark": {"type": "text", "align": "right", "dx": -7, "dy": -7},
            "encoding": {"x": _MS, "y": _Y, "text": {"field": "blocks", "type": "quantitative", "format": "d"}},
        },
    ]
)
