"""The tables of a report as CSV files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from lit_depth.results.report import Report, Table
from lit_depth.results.store import write_text


def write_tables(report: Report, folder: Path) -> list[Path]:
    """Write every table of a report: those of its sections, by heading, and those that loggers keep, without rounding.

    Raises:
        ValueError: If a file cannot be written.
    """
    tables = {section.heading: section.table for section in report.sections if section.table} | dict(report.tables)
    paths = dict(zip(_stems(list(tables)), tables.values()))
    for stem, table in paths.items():
        write_text(folder / f"{stem}.csv", csv_text(table))
    return [folder / f"{stem}.csv" for stem in paths]


def csv_text(table: Table) -> str:
    """A table as CSV; what is not known stays empty.

    >>> csv_text(Table(["policy", "quality"], [["prefix, 8", 0.78125], ["none", None]]))
    'policy,quality\\n"prefix, 8",0.78125\\nnone,\\n'
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([table.headers, *table.rows])
    return file.getvalue()


def _stems(names: Sequence[str]) -> list[str]:
    """Names of files: letters, digits and dashes, all different."""
    stems: list[str] = []
    for name in names:
        stem = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:80] or "table"
        while stem in stems:
            stem += "-more"
        stems.append(stem)
    return stems
