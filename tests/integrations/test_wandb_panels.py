"""Workspace and report say what the runs hold: their specifications are read as a server would get them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from lit_depth.integrations.run_notes import LoggedChart, RunNote
from lit_depth.integrations.wandb_panels import (
    build_report,
    build_workspace,
    chart_panel,
    curve_panels,
    preset_name,
    several_runs,
)
from lit_depth.results.charts import Mark, preset, preset_names, quality_vs_blocks
from tests.helpers.wandb_server import fake_server

CHART = quality_vs_blocks([Mark("a", 4, 0.5, [0.4, 0.6])], Mark("all", 8, 0.9), {"title": "T", "x": "blocks", "y": "q"})
LOGGED = LoggedChart(CHART.kind, preset(CHART), *preset_names(CHART))
COMPARE = RunNote(
    "c1",
    "p",
    name="model, task, one",
    command="compare",
    title="Policies",
    headline="Importance [0.1, 0.2] *beats* prefix.",
    step="num_active_blocks",
    curves=("quality/a", "low/a", "high/a", "latency_ms/total/a"),
    steps=(4, 8),
    scalars=("answers/importance_beats_prefix", "answers/importance_beats_prefix_text", "area/a", "full/quality"),
    charts={"quality_vs_blocks": LOGGED},
    media=("figures/m5_quality_vs_blocks", "report"),
)
TOKENS = RunNote(
    "t1", "p", name="tokens, one", command="tokens", step="block", curves=("l2_distance/text",), steps=(0, 1)
)


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        node = [*node, *node.values()]
    if isinstance(node, (list, tuple)):
        for each in node:
            yield from strings(each)
    elif isinstance(node, str):
        yield node


def spec_of(workspace: Any) -> dict[str, Any]:
    return json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def panels_of(section: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(panel["viewType"], panel["config"]) for panel in section["panels"]]


def test_a_chart_draws_the_table_of_the_run_with_all_its_columns_and_words() -> None:
    config = (
        chart_panel("quality_vs_blocks", LOGGED, "me")._to_model().config.model_dump(by_alias=True, exclude_none=True)
    )
    (query,) = config["userQuery"]["queryFields"]
    table = next(each for each in query["fields"] if each["name"] == "summaryTable")
    assert table["args"] == [{"name": "tableKey", "value": "charts/quality_vs_blocks"}]
    assert config["panelDefId"] == f"me/{preset_name(LOGGED)}"
    named = {name for text in strings(LOGGED.spec) for name in re.findall(r"\$\{field:(\w+)\}", text)}
    words = {name for text in strings(LOGGED.spec) for name in re.findall(r"\$\{string:(\w+)\}", text)}
    assert named <= set(config["fieldSettings"]) <= set(CHART.table.headers)
    assert words - {"subtitle"} <= set(config["stringSettings"])


def test_every_run_has_a_line_and_a_band_of_its_own() -> None:
    marks = [layer for layer in several_runs(LOGGED.spec)["layer"] if layer["mark"]["type"] in ("line", "area")]
    assert marks and all(layer["encoding"]["detail"] == {"field": "name"} for layer in marks)
    assert not any("detail" in layer.get("encoding", {}) for layer in LOGGED.spec["layer"])  # a copy


def test_one_legend_is_enough() -> None:
    shapes = [
        layer["encoding"]["shape"] for layer in several_runs(LOGGED.spec)["layer"] if "shape" in layer["encoding"]
    ]
    assert shapes and all(shape["legend"] is None and shape["field"] == "${field:policy}" for shape in shapes)


def test_another_specification_has_another_name() -> None:
    other = LoggedChart(LOGGED.kind, {**LOGGED.spec, "height": 1}, LOGGED.columns, LOGGED.words)
    assert preset_name(other) != preset_name(LOGGED) == preset_name(LoggedChart(LOGGED.kind, LOGGED.spec, {}, {}))


def test_a_curve_stands_with_both_ends_of_its_band() -> None:
    quality, rest = curve_panels(COMPARE)
    assert (quality.x, quality.y) == ("num_active_blocks", ["quality/a", "low/a", "high/a"])
    assert (rest.title, rest.y) == ("latency ms/total", ["latency_ms/total/a"])
    unnamed = RunNote("s1", "p", curves=("budget_ms", "quality", "low", "high"), step="num_active_blocks")
    assert [plot.y for plot in curve_panels(unnamed)] == [["quality", "low", "high"], ["budget_ms"]]


def test_a_workspace_has_a_section_for_each_command_and_the_full_model_as_its_baseline() -> None:
    section = spec_of(build_workspace([COMPARE, TOKENS], "me", "p", "mine", ["full-1", "full-2"]))
    sections = {each["name"]: each for each in section["panelBankConfig"]["sections"]}
    assert list(sections) == [
        *("Verdicts", "Quality and latency against blocks", "Token masking", "Pages and figures", "While it runs")
    ]
    kinds = [kind for kind, _ in panels_of(sections["Quality and latency against blocks"])]
    assert kinds == ["Vega2", "Run History Line Plot", "Run History Line Plot"]
    ((_, tokens),) = panels_of(sections["Token masking"])
    assert (tokens["xAxis"], tokens["metrics"]) == ("block", ["l2_distance/text"])
    (runs,) = section["runSets"]
    (shown,) = runs["filters"]["filters"]
    assert (shown["key"]["name"], shown["op"], shown["value"]) == ("name", "IN", ["c1", "t1", "full-1", "full-2"])
    decoded = [base64.b64decode(run).decode() for run in (runs["baselineRunId"], *runs["pinnedRunIds"])]
    assert decoded == ["Run:v1:full-1:p:me", "Run:v1:full-1:p:me", "Run:v1:full-2:p:me"]
    columns = ["run:displayName", "summary:full/quality", "summary:area/a", "summary:answers/importance_beats_prefix"]
    assert runs["runFeed"]["columnOrder"] == columns


def test_live_series_have_panels() -> None:
    section = spec_of(build_workspace([COMPARE], "me", "p", "mine"))["panelBankConfig"]["sections"][-1]
    patterns = [config["metricRegex"] for _, config in panels_of(section)]
    keys = ["live/quality/full", "live/t/validation/quality/full", "live/low/a", "live/high/a", "live/samples"]
    assert all(any(re.fullmatch(pattern, key) for pattern in patterns) for key in [*keys, "live/rows_per_second"])


def test_words_of_users_are_no_markup() -> None:
    note = RunNote("x", "p", name="<b>*run*</b>", command="compare", headline="[link](http://x) `code`")
    (_, config) = panels_of(spec_of(build_workspace([note], "me", "p", "mine"))["panelBankConfig"]["sections"][0])[0]
    assert config["value"] == r"**\<b\>\*run\*\</b\>.** \[link\](http://x) \`code\`"


def test_a_report_shows_each_run_alone_and_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(monkeypatch)
    report = build_report([COMPARE, TOKENS], "me", "p", "T" * 200)
    assert len(report.title) == 128
    content = json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    grids = [block["metadata"] for block in content["blocks"] if block["type"] == "panel-grid"]
    shown = [grid["runSets"][0]["filters"] for grid in grids]
    assert [["c1" in json.dumps(each), "t1" in json.dumps(each)] for each in shown] == [
        *([True, False], [False, True], [True, True])
    ]
    panels = [[panel["viewType"] for panel in grid["panelBankSectionConfig"]["panels"]] for grid in grids]
    assert panels == [
        ["Vega2", "Run History Line Plot", "Run History Line Plot", "Media Browser", "Media Browser"],
        ["Run History Line Plot"],
        ["Run Comparer"],
    ]
    places = [panel["layout"] for panel in grids[0]["panelBankSectionConfig"]["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    headings = [block for block in content["blocks"] if block["type"] == "heading"]
    assert [heading["children"][0]["text"] for heading in headings] == ["model, task, one", "tokens, one", "All runs"]
