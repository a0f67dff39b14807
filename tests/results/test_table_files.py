"""Every table is a CSV file, with all digits."""

from __future__ import annotations

import csv
from pathlib import Path

from lit_depth.results.report import Report, Section, Table
from lit_depth.results.table_files import write_tables


def test_every_table_is_a_file_of_its_own_with_all_digits(tmp_path: Path) -> None:
    sections = [Section("Quality, by mask!", table=Table(["mask", "q"], [['a "b", c', 1 / 3], ["line\nfeed", None]]))]
    sections += [Section("quality by MASK", table=Table(["x"], [[1]])), Section("Words", "none")]
    report = Report("t", "h", sections, "test", tables={"test/masks": Table(["n"], [[2]])})
    paths = write_tables(report, tmp_path)
    assert [path.name for path in paths] == ["quality-by-mask.csv", "quality-by-mask-more.csv", "test-masks.csv"]
    with open(paths[0], newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["mask", "q"], ['a "b", c', str(1 / 3)], ["line\nfeed", ""]]
