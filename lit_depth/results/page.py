"""One self-contained HTML page for one or many results: opens offline, fetches nothing, runs nothing of theirs.

Without JavaScript it is complete but for the samples that a click shows. With it, Vega draws the charts in place of the
pictures; its policy (CSP) allows no script but the page's own two, by their hashes, and no evaluated code.

Of each task of a run a page has at most 400 masks, 20 changed samples of each and 6,000 in all, and texts and
thumbnails of 200 samples: 5 MB at the very most, and mostly far less. Vega takes 0.9 MB once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lit_depth.results.changed_samples import MaskChanges
from lit_depth.results.charts import vega_lite
from lit_depth.results.mask_strips import StripTable, strip_table
from lit_depth.results.model_names import SKIP_TOKENS
from lit_depth.results.report import Chart, Report, Section, Table
from lit_depth.results.shown_samples import Kept, shortened
from lit_depth.results.store import to_plain, write_text
from lit_depth.results.table import format_cell, is_numeric
from lit_depth.results.unit_names import for_images
from lit_depth.results.vega_runtime import vega_runtime

PAGE = "report.html"
ASSUMPTIONS = (
    "All masks answer the same samples, so differences are paired: sample by sample, not mean by mean.",
    "Samples are independent of one another but for those that share an image (or a document), which are one cluster: "
    "tests and intervals know clusters only.",
    "Tests flip the signs of whole clusters' differences. They are exact if the differences are symmetric about zero "
    "where nothing differs, as they are when two masks are exchangeable.",
    "An interval excludes zero only if the test of the same level rejects. Where many differences are tested together, "
    "p-values are corrected by Holm's method and the intervals are simultaneous: at the stated confidence all of them "
    "hold at once. Families are corrected one by one, not all pages of a project together.",
    "Nothing is said of samples of another kind than these. Blocks that were chosen on the calibration split are "
    "reported on the validation split.",
    "A difference that was not shown is not shown to be none: its interval says how large it may be.",
    "Times are those of this device, batch size and these requests.",
)
_TEMPLATE, _LOOK, _SCRIPT = (Path(__file__).with_name(f"page.{kind}") for kind in ("html", "css", "js"))
# colours of every page, light, dark and printed
COLORS = Path(__file__).with_name("colors.css").read_text(encoding="utf-8")
# of pages with a script and a look of their own, which begin with it
STYLE = f"""{COLORS}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }}
h1, h2 {{ line-height: 1.2; }} h2 {{ margin-top: 2.5rem; border-bottom: 1px solid var(--line); }}
a {{ color: var(--link); }}
img {{ max-width: 100%; height: auto; }} figure {{ margin: 1rem 0; }}
figcaption {{ color: var(--quiet); font-size: .85rem; }}
.table {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }}
th {{ border-bottom-color: var(--quiet); }} .number {{ text-align: right; }}
pre {{ background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .85rem; }}
"""
_LARGEST_SVG = 400_000  # bytes; a figure of more points is shown as PNG
_LONGEST_ARGUMENTS = 100_000
# charts whose marks stand for masks
_CLICKED = ("quality_vs_blocks", "quality_vs_latency", "importance_bars", "task_heat_map", "search_tree")
_ANSWER = 200  # characters of an answer
_LONG = 40  # characters of a cell that stay on one line


@dataclass(frozen=True)
class RunPart:
    """One result on a page.

    Args:
        report: What its command tells.
        figures: Name and PNG file of the figures; an SVG beside it is preferred.
        arguments: Of the run.
        facts: Which model, device, versions, samples and date it is of, by the header of a column.
        link: The page of the run alone, from where the page lies.
        changes: By task, what each mask changes.
        splits: By task, of which split these are.
        kept: Texts and pictures of the samples.
    """

    report: Report
    figures: Mapping[str, Path]
    arguments: Mapping[str, Any]
    facts: Mapping[str, str] = field(default_factory=dict)
    link: str | None = None
    changes: Mapping[str, Sequence[MaskChanges]] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    kept: Kept = Kept()


def write_page(folder: str | Path, report: Report, figures: Mapping[str, Path], arguments: Mapping[str, Any]) -> Path:
    """Write ``report.html`` of one report, atomically. All text is escaped: model outputs can be shown as they are.

    Raises:
        ValueError: If a figure is missing or not a PNG, or if the file cannot be written.
    """
    return write_parts(Path(folder) / PAGE, report, [RunPart(report, figures, arguments)])


def write_parts(
    path: Path, overview: Report, parts: Sequence[RunPart], figures: Mapping[str, Path] | None = None
) -> Path:
    """Write a page of several results, or of one, which then is the overview too.

    Args:
        path: Of the page.
        overview: Title, verdict, and of several results the sections that stand before them.
        parts: The results.
        figures: PNG files of the overview of several results.

    Raises:
        ValueError: As `write_page`.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    charts: list[dict[str, Any]] = []
    several = len(parts) > 1
    above = (
        [_section(section, overview, figures or {}, charts, None) for section in overview.sections] if several else []
    )
    above += _loose(overview, charts, None) if several else []
    runs = [_run(part, index, charts) for index, part in enumerate(parts)]
    data = {"charts": charts, "runs": [_payload(part) for part in parts]}
    runtime = vega_runtime() if charts else None
    scripts = [*([runtime] if runtime else []), _SCRIPT.read_text(encoding="utf-8")]
    environment = Environment(autoescape=True, keep_trailing_newline=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=overview.title,
        headline=overview.headline,
        facts=_facts(parts),
        overview=above,
        runs=runs,
        assumptions=ASSUMPTIONS if any(part.facts for part in parts) else (),
        style=COLORS + _LOOK.read_text(encoding="utf-8"),
        scripts=scripts,
        drawable=runtime is not None,
        policy=_policy(scripts),
        data=script_json(data),
        paragraphs=lambda text: [part for part in text.split("\n\n") if part.strip()],
        classes=lambda table: [Markup(' class="number"') if number else "" for number in _numeric(table)],
        format_cell=format_cell,
        long=lambda cell: Markup(' class="long"') if len(format_cell(cell)) > _LONG else "",
    )
    write_text(path, page)
    return path


def script_json(data: Any) -> str:
    """JSON that can stand inside a script element, whatever its texts are.

    >>> script_json({"answer": "</script><b>&"})
    '{"answer":"\\\\u003c/script\\\\u003e\\\\u003cb\\\\u003e\\\\u0026"}'
    """
    text = json.dumps(to_plain(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; base-uri 'none'"


def _facts(parts: Sequence[RunPart]) -> dict[str, Any]:
    headers = list(dict.fromkeys(name for part in parts for name in part.facts))
    rows = [{"cells": [part.facts.get(name) for name in headers], "link": part.link} for part in parts if part.facts]
    return {"headers": headers, "rows": rows}


def _run(part: RunPart, index: int, charts: list[dict[str, Any]]) -> dict[str, Any]:
    report = part.report
    sections = [
        *(_section(section, report, part.figures, charts, index) for section in report.sections),
        *_loose(report, charts, index),
    ]
    if not _known_masks(part):
        for figure in (figure for section in sections for figure in section["figures"]):
            figure["clicks"] = False
    arguments = json.dumps(part.arguments, indent=2, default=str)
    too_long = len(arguments) > _LONGEST_ARGUMENTS
    return {
        "index": index,
        "heading": f"{part.facts.get('run', report.title)}: {report.title}" if part.facts else report.title,
        "headline": report.headline,
        "sections": sections,
        "links": _links(part),
        "strips": [_strips(part, task, changes) for task, changes in part.changes.items() if changes],
        "arguments": f"{arguments[:_LONGEST_ARGUMENTS]}\n... (manifest.json has all)" if too_long else arguments,
    }


def _links(part: RunPart) -> dict[str, str]:
    """Addresses of the run's further pages, by name; they lie beside its own page."""
    folder = part.link.rpartition("/") if part.link else ("", "", "")
    return {name: f"{folder[0]}{folder[1]}{quote(name)}" for name in part.report.pages}


def _strips(part: RunPart, task: str, changes: Sequence[MaskChanges]) -> StripTable:
    names: dict[str, list[str]] = {}
    for name, masks in part.report.masks.items():
        for mask in masks:
            names.setdefault(mask, []).append(name)
    unit = "half of a block" if part.arguments.get("model.granularity") == "sublayer" else "block"
    unit += for_images({"model": {"skip_tokens": part.arguments.get(SKIP_TOKENS, "all")}})
    return strip_table(task, part.splits.get(task, ""), changes, names, unit)


def _section(
    section: Section, report: Report, files: Mapping[str, Path], charts: list[dict[str, Any]], index: int | None
) -> dict[str, Any]:
    """A section with its figures, each with the chart that a page draws in its place."""
    charted = {figure: chart for chart, figure in report.drawn.items() if chart in report.charts}
    figures = []
    for name in section.figures:
        shown = _figure(name, report.charts.get(charted.get(name, name)), charts, index)
        figures.append(shown | {"url": _image(files[name]), "file": f"{name}.png, .svg, .pdf"})
    return {"heading": section.heading, "text": section.text, "table": section.table, "figures": figures}


def _loose(report: Report, charts: list[dict[str, Any]], index: int | None) -> list[dict[str, Any]]:
    """Charts that stand for no figure of a section."""
    shown = {name for section in report.sections for name in section.figures}
    loose = [name for name in report.charts if report.drawn.get(name, name) not in shown]
    figures = [_figure(name, report.charts[name], charts, index) for name in loose]
    return [{"heading": "Charts", "text": "", "table": None, "figures": figures}] if figures else []


def _figure(name: str, chart: Chart | None, charts: list[dict[str, Any]], index: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "url": None, "file": "", "chart": None, "clicks": False}
    if chart is None:
        return found
    spec = vega_lite(chart)
    title, subtitle = (str(chart.strings.get(key, "")) for key in ("title", "subtitle"))
    # words above the chart break their lines by themselves
    charts.append({"spec": {key: spec[key] for key in spec if key not in ("title", "$schema")}, "run": index})
    number = len(charts) - 1
    return found | {
        "chart": number,
        "title": title,
        "subtitle": subtitle,
        "clicks": index is not None and chart.kind in _CLICKED,
    }


def _payload(part: RunPart) -> dict[str, Any]:
    """What the script needs of a run: masks by name, and of each task the samples that they change."""
    tasks = []
    for task, changes in part.changes.items():
        shown = {change.sample for each in changes for change in each.shown}
        kept = part.kept.tasks.get(task)
        samples = {key: each._asdict() for key, each in kept.samples.items() if key in shown} if kept else {}
        used = {name for each in samples.values() for name in each["images"]}
        tasks.append(
            {
                "task": task,
                "changes": {each.mask: _changes(each) for each in changes},
                "samples": samples,
                "images": {key: url for key, url in kept.images.items() if key in used} if kept else {},
            }
        )
    return {"masks": _known_masks(part), "tasks": tasks}


def _known_masks(part: RunPart) -> dict[str, list[str]]:
    """Masks by name, as far as it is known what they change."""
    known = {each.mask for changes in part.changes.values() for each in changes}
    masks = {name: [mask for mask in masks if mask in known] for name, masks in part.report.masks.items()}
    return {name: found for name, found in masks.items() if found}


def _changes(each: MaskChanges) -> dict[str, Any]:
    shown = [
        [change.sample, *(shortened(text, _ANSWER) for text in change[1:3]), change.full_score, change.score]
        for change in each.shown
    ]
    return {"worse": each.worse, "better": each.better, "reworded": each.reworded, "shown": shown}


def _numeric(table: Table) -> list[bool]:
    return [is_numeric([row[i] for row in table.rows]) for i in range(len(table.headers))]


def _image(path: Path) -> str:
    """A figure as a URL that holds it: its SVG where that is not too large, else its PNG."""
    if not path.is_file() or not (data := path.read_bytes()).startswith(b"\x89PNG"):
        raise ValueError(f"expected a PNG file to embed in the page, got {path}")
    drawn = path.with_suffix(".svg")
    if drawn.is_file() and 0 < drawn.stat().st_size <= _LARGEST_SVG:
        return f"data:image/svg+xml;base64,{base64.b64encode(drawn.read_bytes()).decode()}"
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
