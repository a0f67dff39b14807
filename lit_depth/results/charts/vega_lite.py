"""What the specifications of all kinds share, and a chart as whoever draws it needs it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lit_depth.results.report import Chart

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
# of words, axes and lines that stand for no policy: 4.5 to 1 on white, 3.8 to 1 on almost black
NEUTRAL = "#767676"
CONFIG: dict[str, Any] = {
    "background": "transparent",  # whoever draws it chooses dark or light
    "view": {"stroke": None},
    "lineBreak": "\n",
    "axis": {
        **{"labelColor": NEUTRAL, "titleColor": NEUTRAL, "domainColor": NEUTRAL, "tickColor": NEUTRAL},
        **{"gridColor": NEUTRAL, "gridOpacity": 0.25, "labelFontSize": 12, "titleFontSize": 12},
    },
    # an entry of the legend is as strong as a line, though bands are drawn by the same colour
    "legend": {
        **{"labelColor": NEUTRAL, "titleColor": NEUTRAL, "labelFontSize": 12, "titleFontSize": 12},
        **{"symbolOpacity": 1, "symbolStrokeWidth": 2},
    },
    "title": {"color": NEUTRAL, "anchor": "start", "fontSize": 14, "subtitleColor": NEUTRAL, "subtitleFontSize": 12},
    "text": {"color": NEUTRAL, "fontSize": 11},
    "rule": {"color": NEUTRAL},
}
# an axis of whole numbers: between them, where the scale is short, stands nothing
COUNTS: dict[str, Any] = {
    "tickMinStep": 1,
    "grid": False,
    "labelExpr": "datum.value === floor(datum.value) ? format(datum.value, 'd') : ''",
}
# a click on the legend leaves one entry, with the shift key several; the others go pale
PALE = 0.12


def frame(**parts: Any) -> dict[str, Any]:
    """A specification that fills the width that it is given; title and subtitle are words of the chart."""
    title = {"text": "${string:title}", "subtitle": "${string:subtitle}"}
    return {"$schema": SCHEMA, "title": title, "width": "container", "height": 320, "config": CONFIG, **parts}


def axis(name: str, field: str, kind: str = "quantitative", **options: Any) -> dict[str, Any]:
    """A channel along an axis whose title is a word of the chart."""
    return {"field": field, "type": kind, "title": f"${{string:{name}}}", **options}


def role_is(role: str) -> dict[str, str]:
    """A filter: rows of a table that serve one purpose of several."""
    return {"filter": f"datum['role'] === '{role}'"}


def hint(*fields: str) -> list[dict[str, str]]:
    """What is told beside the pointer; numbers with four digits."""
    words = ("policy", "blocks", "block", "stage", "removed", "row", "column", "differs", "in_beam")
    return [{"field": name} | ({} if name in words else {"format": ".4~g"}) for name in fields]


def legend_switch(field: str) -> dict[str, Any]:
    """The parameter that a click on the legend sets."""
    return {"name": "shown", "select": {"type": "point", "fields": [field]}, "bind": "legend"}


def shown(opacity: float) -> dict[str, Any]:
    """An opacity, pale where the legend left the mark out."""
    return {"condition": {"param": "shown", "value": opacity}, "value": min(opacity, PALE) / 2}


def vega_lite(chart: Chart) -> dict[str, Any]:
    """The specification with its words, colours and rows: complete, nothing is fetched.

    >>> from lit_depth.results.report import Table
    >>> spec = {"mark": "bar", "title": "${string:title}", "encoding": {"x": {"field": "block"}}}
    >>> vega_lite(Chart("bars", spec, Table(["block"], [[0]]), {"title": "Blocks"}))["data"]
    {'values': [{'block': 0}]}
    """
    replace = lambda text: re.sub(r"\$\{string:(\w+)\}", lambda match: chart.strings[match[1]], text)  # noqa: E731
    spec = _walk(chart.spec, replace)
    if chart.colors:
        domain, values = list(chart.colors), list(chart.colors.values())
        _each_scale(spec, "color", lambda scale: scale | {"domain": domain, "range": values})
        _each_scale(spec, "shape", lambda scale: scale | {"domain": domain})
    rows = [dict(zip(chart.table.headers, row)) for row in chart.table.rows]
    return {**spec, "data": {"values": rows}}


def preset(chart: Chart) -> dict[str, Any]:
    """The specification as a chart preset of Weights & Biases: rows, columns and words come from the runs.

    See https://docs.wandb.ai/guides/app/features/custom-charts: data named ``wandb``, and ``${field:name}`` where the
    name of a column stands. Colours are dealt out in the order of the legend.
    """
    columns = set(chart.table.headers)

    def named(key: str, value: Any) -> Any:
        if key in ("field", "fields", "groupby") and isinstance(value, (str, list)):
            names = [value] if isinstance(value, str) else value
            found = [f"${{field:{name}}}" if name in columns else name for name in names]
            return found[0] if isinstance(value, str) else found
        return value

    def expression(text: str) -> str:
        return re.sub(
            r"datum\['(\w+)'\]",
            lambda match: f"datum['${{field:{match[1]}}}']" if match[1] in columns else match[0],
            text,
        )

    return {**_walk(chart.spec, expression, named), "data": {"name": "wandb"}}


def preset_names(chart: Chart) -> tuple[dict[str, str], dict[str, str]]:
    """Columns and words by the names that `preset` gives them, as ``wandb.plot_table`` takes them."""
    return {name: name for name in chart.table.headers}, dict(chart.strings)


def _walk(node: Any, text: Callable[[str], str], named: Callable[[str, Any], Any] = lambda key, value: value) -> Any:
    if isinstance(node, Mapping):
        return {key: _walk(named(key, value), text, named) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_walk(each, text, named) for each in node]
    return text(node) if isinstance(node, str) else node


def _each_scale(node: Any, channel: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the scale of a channel wherever one with a range of its own is named."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == channel and isinstance(value, dict) and "range" in (value.get("scale") or {}):
                value["scale"] = change(value["scale"])
            _each_scale(value, channel, change)
    elif isinstance(node, list):
        for each in node:
            _each_scale(each, channel, change)
