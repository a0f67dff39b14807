"""A saved workspace and a report of Weights & Biases for runs that were logged: plain objects, no network.

See https://docs.wandb.ai/ref/wandb_workspaces/workspaces and https://docs.wandb.ai/ref/wandb_workspaces/reports.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from lit_depth.integrations.run_notes import LoggedChart, RunNote

# titles of the sections by command, in the order of the workspace
SECTIONS = {
    "compare": "Quality and latency against blocks",
    "select": "Masks within a budget",
    "latency": "Latency",
    "importance": "Importance of blocks",
    "consistency": "Agreement of importance",
    "interactions": "Interactions of pairs of blocks",
    "search": "Blocks to remove together",
    "answers": "Agreement with the full model",
    "tokens": "Token masking",
    "export": "Exported models",
}
# columns of the table of runs, by how their names begin, in this order
_COLUMNS = (
    *("full/quality", "half_depth/policy", "half_depth/blocks", "half_depth/quality", "half_depth/tied_with"),
    *("area/", "blocks_for_99/", "blocks_for_95/", "answers/", "latency/total_ms_per_block"),
)
_LONGEST_TITLE = 128  # characters, of a report
_WIDTH = 24  # columns of a report's grid of panels
# families of curves of one name: the value and the ends of its band
_BANDS = (("quality", "low", "high"), ("agreement", "low", "high"), ("drop", "drop_low", "drop_high"))
_OF_LIVE = (("live/.*quality/.*", "Quality so far"), ("live/.*(low|high)/.*", "Bands that hold at all times"))
_LIVE_SPEED = (("live/.*samples", "Samples"), ("live/.*rows_per_second", "Answers a second"))


def preset_name(chart: LoggedChart) -> str:
    """Of the uploaded specification: another specification of the kind has another name.

    >>> preset_name(LoggedChart("quality_vs_blocks", {"mark": "line"}, {}, {}))
    'lit-depth-quality-vs-blocks-ecc538bb'
    """
    digest = hashlib.sha256(json.dumps(several_runs(chart.spec), sort_keys=True).encode()).hexdigest()[:8]
    return f"lit-depth-{chart.kind.replace('_', '-')}-{digest}"


def several_runs(spec: Any) -> Any:
    """The specification with one line or band for each run, whose name is in every row that the dashboard hands over.

    Shapes have no legend of their own: it would not be merged with that of the colours, whose names a preset leaves to
    the rows.

    >>> several_runs({"mark": {"type": "line"}, "encoding": {"x": {}}})["encoding"]
    {'x': {}, 'detail': {'field': 'name'}}
    """
    if isinstance(spec, list):
        return [several_runs(each) for each in spec]
    if not isinstance(spec, Mapping):
        return spec
    found = {key: several_runs(value) for key, value in spec.items()}
    mark = found.get("mark")
    kind = mark.get("type") if isinstance(mark, Mapping) else mark
    if kind in ("line", "area") and "detail" not in found.get("encoding", {}):
        found["encoding"] = {**found.get("encoding", {}), "detail": {"field": "name"}}
    if isinstance(found.get("shape"), Mapping):
        found["shape"] = {**found["shape"], "legend": None}
    return found


def chart_panel(name: str, chart: LoggedChart, entity: str) -> wr.CustomChart:
    """The uploaded specification over the table ``charts/<name>`` of all runs that are shown."""
    return wr.CustomChart(
        # as wandb.plot_table asks for its rows
        query={"id": None, "name": None, "summaryTable": {"tableKey": f"charts/{name}"}},
        chart_name=f"{entity}/{preset_name(chart)}",
        chart_fields=dict(chart.columns),
        chart_strings=dict(chart.words),
    )


def curve_panels(note: RunNote) -> Iterator[wr.LinePlot]:
    """A line chart for each curve that has a band, with both of its ends; one for each kind of the others."""
    left, families = list(note.curves), dict[str, list[Any]]()
    for value, low, high in _BANDS:
        for key in [key for key in note.curves if key.partition("/")[0] == value]:
            name = key.removeprefix(value)
            shown = [each + name for each in (value, low, high) if each + name in left]
            families[f"{value}{name.replace('/', ', ', 1)}"] = shown
            left = [key for key in left if key not in shown]
    for key in left:
        families.setdefault(key.rpartition("/")[0] or key, []).append(key)
    for title, keys in families.items():
        yield wr.LinePlot(title=_words(title), x=note.step, y=keys, title_x=_words(note.step))


def build_workspace(
    notes: Sequence[RunNote], entity: str, project: str, name: str, baselines: Sequence[str] = ()
) -> ws.Workspace:
    """A saved view of the runs: a section for each command, the most telling columns, the full model as the baseline.

    Args:
        notes: Of the runs.
        entity: Owner of the project.
        project: That the runs lie in.
        name: Of the view.
        baselines: Ids of the runs of full models; the first one is the baseline, all are pinned.
    """
    sections = [ws.Section(name="Verdicts", panels=[_verdicts(notes)], is_open=True)]
    for command, title in SECTIONS.items():
        panels = list[Any](_panels([note for note in notes if note.command == command], entity))
        if panels:
            sections.append(ws.Section(name=title, panels=panels, is_open=True, layout_settings=_layout()))
    media = list(dict.fromkeys(key for note in notes for key in note.media))
    if media:
        pages: list[Any] = [wr.MediaBrowser(title=key, media_keys=[key], num_columns=1) for key in media]
        sections.append(ws.Section(name="Pages and figures", panels=pages, layout_settings=_layout()))
    live: list[Any] = [wr.LinePlot(title=title, metric_regex=regex) for regex, title in (*_OF_LIVE, *_LIVE_SPEED)]
    sections.append(ws.Section(name="While it runs", panels=live, layout_settings=_layout()))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("ID").isin([*(note.id for note in notes), *baselines])],
            pinned_columns=_columns(notes),
            baseline_run=baselines[0] if baselines else None,
            pinned_runs=list(baselines),
        ),
    )


def build_report(notes: Sequence[RunNote], entity: str, project: str, title: str) -> wr.Report:
    """A page of text and panels: every run's verdict in words, above the charts of this run alone.

    Args:
        notes: Of the runs.
        entity: Owner of the project.
        project: That the runs lie in.
        title: Cut after 128 characters, the most that a server takes.
    """
    blocks: list[Any] = [wr.TableOfContents()]
    for note in notes:
        blocks += [wr.H1(text=note.name), wr.P(text=note.title), wr.MarkdownBlock(text=_escaped(note.headline))]
        panels = _placed([*_panels([note], entity), *(wr.MediaBrowser(media_keys=[key]) for key in note.media)])
        runs = wr.Runset(entity=entity, project=project, name=note.name, filters=[expr.Metric("ID") == note.id])
        blocks.append(wr.PanelGrid(runsets=[runs], panels=panels, hide_run_sets=True))
    if len(notes) > 1:
        runs = wr.Runset(
            entity=entity,
            project=project,
            name="All runs",
            filters=[expr.Metric("ID").isin([note.id for note in notes])],
            pinned_columns=["run:displayName", *_columns(notes)],
        )
        blocks += [
            wr.H1(text="All runs"),
            wr.PanelGrid(runsets=[runs], panels=_placed([wr.RunComparer(diff_only="split")])),
        ]
    return wr.Report(entity=entity, project=project, title=title[:_LONGEST_TITLE], blocks=blocks, width="fluid")


def _panels(notes: Sequence[RunNote], entity: str) -> Iterator[Any]:
    """Charts and curves of runs of one command; what several runs have under one name is one panel."""
    charts: dict[tuple[str, str], LoggedChart] = {}
    for note in notes:
        for name, chart in note.charts.items():
            charts.setdefault((name, preset_name(chart)), chart)
    for (name, _), chart in charts.items():
        yield chart_panel(name, chart, entity)
    plots: dict[str, wr.LinePlot] = {}
    for note in notes:
        for plot in curve_panels(note):
            plots.setdefault(str(plot.title), plot)
    yield from plots.values()


def _verdicts(notes: Sequence[RunNote]) -> wr.MarkdownPanel:
    return wr.MarkdownPanel(
        markdown="\n\n".join(f"**{_escaped(note.name)}.** {_escaped(note.headline)}" for note in notes),
        layout=wr.Layout(w=_WIDTH, h=8),
    )


def _columns(notes: Sequence[RunNote]) -> list[str]:
    """Of the table of runs: those of the summary that say most, without the sentences."""
    names = [name for note in notes for name in note.scalars if not name.endswith("_text")]
    ordered = [name for begin in _COLUMNS for name in names if name.startswith(begin)]
    return [f"summary:{name}" for name in dict.fromkeys(ordered)]


def _layout() -> ws.SectionLayoutSettings:
    return ws.SectionLayoutSettings(columns=2, rows=2)


def _placed(panels: Sequence[Any]) -> list[Any]:
    """The panels of a report two beside each other."""
    half, height = _WIDTH // 2, 10
    for index, panel in enumerate(panels):
        panel.layout = wr.Layout(x=index % 2 * half, y=index // 2 * height, w=half, h=height)
    return list(panels)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _escaped(text: str) -> str:
    """Text as Markdown that says the same: what a user's names hold is no markup."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]<>#|~$" else sign for sign in text)
