"""One self-contained HTML page per run: opens offline, nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from lit_depth.results.store import write_text
from lit_depth.results.table import Cell, format_cell, is_numeric

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { color: #666; font-size: .85rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #eee; text-align: left; } th { border-bottom-color: #999; }
.number { text-align: right; } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem; }
"""


class Section(NamedTuple):
    """One part of a report, shown in the order of its fields; what is empty is left out.

    Args:
        heading: Title of the section.
        text: Paragraphs, separated by blank lines.
        headers: Column titles of the table.
        rows: Cells of the table, formatted as by :func:`~lit_depth.results.table.format_table`.
        figures: PNG files, embedded.
        code: Preformatted text, such as a configuration.
    """

    heading: str
    text: str = ""
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    figures: Sequence[str | Path] = ()
    code: str = ""


def write_report(folder: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write ``report.html`` atomically. All text is escaped: model outputs can be shown as they are.

    Args:
        folder: Where to write.
        title: Title of the page.
        sections: What to show.

    Returns:
        Path of the page.

    Raises:
        ValueError: If a figure is missing or not a PNG, or if the file cannot be written.
    """
    body = "\n".join(_section(section) for section in sections)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
    path = Path(folder) / "report.html"
    write_text(path, page)
    return path


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()]
    if section.headers:
        parts.append(_table(section.headers, section.rows))
    parts += [_figure(Path(figure)) for figure in section.figures]
    if section.code:
        parts.append(f"<pre>{escape(section.code)}</pre>")
    return "\n".join(parts)


def _table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    classes = [' class="number"' if is_numeric([row[i] for row in rows]) else "" for i in range(len(headers))]
    head = "".join(f"<th{kind}>{escape(header)}</th>" for kind, header in zip(classes, headers))
    lines = [
        "<tr>" + "".join(f"<td{kind}>{escape(format_cell(cell))}</td>" for kind, cell in zip(classes, row)) + "</tr>"
        for row in rows
    ]
    body = "\n".join(lines)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _figure(path: Path) -> str:
    if not path.is_file() or not (data := path.read_bytes()).startswith(b"\x89PNG"):
        raise ValueError(f"expected a PNG file to embed in the report, got {path}")
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    name = escape(path.stem.replace("_", " "))
    return f'<figure><img src="{source}" alt="{name}"><figcaption>{escape(path.name)}</figcaption></figure>'
