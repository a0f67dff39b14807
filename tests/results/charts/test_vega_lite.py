"""Laws of every chart: its fields are columns, its words are given, and whatever draws it needs nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from lit_depth.results.charts import preset, preset_names, vega_lite
from lit_depth.results.charts.vega_lite import NEUTRAL
from lit_depth.results.report import Chart
from lit_depth.results.style import COLORS
from tests.helpers.charts import CHARTS, LIGHT_AND_DARK, contrast


def named_fields(node: Any) -> set[str]:
    """Columns that a specification reads, in channels and in expressions."""
    if isinstance(node, dict):
        found = {node["field"]} if isinstance(node.get("field"), str) else set()
        found |= set(node.get("fields", ()))
        return found.union(*map(named_fields, node.values()))
    if isinstance(node, list):
        return set().union(*map(named_fields, node))
    return set(re.findall(r"datum\['(\w+)'\]", node)) if isinstance(node, str) else set()


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_every_field_is_a_column_and_every_word_is_given(chart: Chart) -> None:
    spec = vega_lite(chart)
    assert named_fields(spec) <= set(chart.table.headers) and "${" not in json.dumps(spec)
    assert spec["data"]["values"] == [dict(zip(chart.table.headers, row)) for row in chart.table.rows]
    assert "http" not in json.dumps(spec).replace(spec["$schema"], "")  # nothing is fetched


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_a_preset_takes_rows_columns_and_words_from_the_run(chart: Chart) -> None:
    spec, (fields, words) = preset(chart), preset_names(chart)
    text = json.dumps(spec)
    assert spec["data"] == {"name": "wandb"} and not named_fields(spec) - {f"${{field:{name}}}" for name in fields}
    assert set(re.findall(r"\$\{field:(\w+)\}", text)) <= set(fields)
    assert set(re.findall(r"\$\{string:(\w+)\}", text)) <= set(words)
    # filled in by hand it is the chart itself
    for kind, names in (("field", fields), ("string", words)):
        for name, value in names.items():
            text = text.replace(f"${{{kind}:{name}}}", json.dumps(value)[1:-1])
    own = vega_lite(Chart(chart.kind, chart.spec, chart.table, chart.strings))
    assert json.loads(text) == {**own, "data": {"name": "wandb"}}


def test_a_preset_is_the_same_for_all_charts_of_its_kind() -> None:
    kinds: dict[str, set[str]] = {}
    for chart in CHARTS.values():
        kinds.setdefault(chart.kind, set()).add(json.dumps(preset(chart)))
    assert len(CHARTS) > len(kinds) and all(len(specs) == 1 for specs in kinds.values())


@pytest.mark.parametrize("background", LIGHT_AND_DARK)
def test_colours_can_be_seen_on_white_and_on_black(background: str) -> None:
    assert contrast(NEUTRAL, background) > 3.5
    assert all(contrast(color, background) > 2.2 for color in COLORS)  # yellow on white has 1.3


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_a_chart_can_be_drawn_without_a_browser(chart: Chart) -> None:
    renderer = pytest.importorskip("vl_convert")
    svg = renderer.vegalite_to_svg(vega_lite(chart) | {"width": 400})
    assert svg.startswith("<svg") and chart.strings["title"] in svg and "NaN" not in svg
