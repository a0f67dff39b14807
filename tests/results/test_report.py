"""A report is made of plain values; a table has one cell per header."""

from __future__ import annotations

import pytest

from lit_depth.results.report import Report, Section, Table


def test_a_row_of_another_length_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected 2 cells per row \(a, b\), got 1: \[3\]"):
        Table(["a", "b"], [[1, 2], [3]])


def test_what_is_left_out_is_empty() -> None:
    report = Report("title", "headline", [Section("heading")], "kind")
    assert not (report.figures or report.files or report.written or report.tables or report.scalars or report.charts)
    assert report.curves is None and report.sections[0].table is None and report.sections[0].printed
