"""What a command tells of its result: plain values, which the terminal, the page and every logger show alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lit_depth.results.table import Cell, check_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under headers, one cell per header each, shown as by `lit_depth.results.table.format_table`.

    Raises:
        ValueError: If a row does not have one cell per header.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        check_rows(self.rows, self.headers)


@dataclass(frozen=True)
class Section:
    """One part of a report, shown in the order of its fields; what is empty is left out.

    Args:
        heading: Title of the section, on the page.
        text: Paragraphs, separated by blank lines.
        table: Shown below the text.
        figures: Names in :attr:`Report.figures`, on the page.
        printed: Whether the terminal shows text and table too.
    """

    heading: str
    text: str = ""
    table: Table | None = None
    figures: Sequence[str] = ()
    printed: bool = True


@dataclass(frozen=True)
class Curves:
    """Numbers along an axis of their own, for loggers with a history.

    Args:
        step: Name of the axis.
        rows: One per step: its value under the name of the axis, and those of all curves that have one there.
    """

    step: str
    rows: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Chart:
    """One interactive chart: a Vega-Lite specification of its kind, and the rows that it draws.

    See `lit_depth.results.charts`, which makes them, for the specification with the rows in it.

    Args:
        kind: Name of the specification, the same for all charts that it draws.
        spec: Vega-Lite without data. Its fields are columns of the table, its words ``${string:name}``.
        table: The rows.
        strings: The words by name.
        colors: Colour of each value of the field that colours stand for, in the order of the legend.
    """

    kind: str
    spec: Mapping[str, Any]
    table: Table
    strings: Mapping[str, str]
    colors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What is told of one result.

    Args:
        title: Of the page.
        headline: What was measured, and first of all what forbids a verdict; paragraphs, separated by blank lines.
        sections: In the order in which terminal and page show them.
        figures: Name of each PNG file, and what draws it.
        files: Name and content of the JSON files beside the result.
        written: Names of further files of the result that are there already.
        unlogged: The same, of files that loggers do not keep.
        pages: Names of further pages beside that of the report, which links to them where a table names one.
        tables: Name and full content of the tables that loggers keep.
        scalars: Name and value of what loggers keep of the run as a whole.
        curves: What loggers draw along an axis.
        charts: Name and content of the interactive charts.
        drawn: Name of a chart, and of the figure in whose place a page shows it.
        masks: What a mark of the charts stands for, as ids of masks: of a policy at a number of blocks (``prefix, 8``),
            of a skipped block (``3``), of removed blocks.
        kind: Under which kind of result loggers keep the files.
        metadata: What loggers keep beside the files.
    """

    title: str
    headline: str
    sections: Sequence[Section]
    kind: str
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
    written: Sequence[str] = ()
    unlogged: Sequence[str] = ()
    pages: Sequence[str] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    scalars: Mapping[str, Scalar] = field(default_factory=dict)
    curves: Curves | None = None
    charts: Mapping[str, Chart] = field(default_factory=dict)
    drawn: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metadata: Mapping[str, Scalar | Sequence[str]] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, float]:
        """Those of the scalars that are numbers, for loggers that take no words; true counts as 1.

        >>> Report("", "", [], "", scalars={"answer": "no", "quality": 0.5, "beaten": True}).numbers
        {'quality': 0.5, 'beaten': 1.0}
        """
        return {key: float(value) for key, value in self.scalars.items() if isinstance(value, (int, float))}
