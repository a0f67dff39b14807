"""One self-contained HTML page per run: opens offline, nothing is fetched."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_depth.results.report import Report, Table
from lit_depth.results.store import write_text
from lit_depth.results.table import format_cell, is_numeric

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { color: #666; font-size: .85rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #eee; text-align: left; } th { border-bottom-color: #999; }
.number { text-align: right; } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem; }
"""
PAGE = "report.html"
_TEMPLATE = Path(__file__).with_name("page.html")


def write_page(folder: str | Path, report: Report, figures: Mapping[str, Path], arguments: Mapping[str, Any]) -> Path:
    """Write ``report.html`` atomically. All text is escaped: model outputs can be shown as they are.

    Raises:
        ValueError: If a figure is missing or not a PNG, or if the file cannot be written.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, keep_trailing_newline=True)
    shown = {name for section in report.sections for name in section.figures}
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        style=STYLE,
        paragraphs=lambda text: [part for part in text.split("\n\n") if part.strip()],
        classes=lambda table: [Markup(' class="number"') if number else "" for number in _numeric(table)],
        format_cell=format_cell,
        images={name: _image(figures[name]) for name in shown},
        arguments=json.dumps(arguments, indent=2, default=str),
    )
    path = Path(folder) / PAGE
    write_text(path, page)
    return path


def _numeric(table: Table) -> list[bool]:
    return [is_numeric([row[i] for row in table.rows]) for i in range(len(table.headers))]


def _image(path: Path) -> str:
    if not path.is_file() or not (data := path.read_bytes()).startswith(b"\x89PNG"):
        raise ValueError(f"expected a PNG file to embed in the page, got {path}")
    return base64.b64encode(data).decode()
