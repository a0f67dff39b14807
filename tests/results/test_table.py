"""Plain-text tables are aligned and lose nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.results.table import format_table

words = st.text(alphabet="abc<>", min_size=1, max_size=12)
numbers = st.none() | st.integers(-1000, 1000) | st.floats(-100, 100)


@given(st.lists(st.tuples(words, numbers), max_size=8))
def test_every_line_has_the_columns_in_place(rows: list[tuple]) -> None:
    lines = format_table(rows, ["name", "value"]).split("\n")
    assert len(lines) == len(rows) + 2
    width = lines[1].index(" ")
    for line, row in zip(lines[2:], rows):
        assert line[:width].rstrip() == row[0]
        assert line[width : width + 2] == "  "
        if row[1] is not None:
            assert float(line[width:]) == pytest.approx(row[1], abs=0.0005)
    if any(row[1] is not None for row in rows):
        assert len({len(line) for line in lines}) == 1  # right-aligned numbers end in one column


def test_empty_table_shows_its_headers() -> None:
    assert format_table([], ["a", "bb"]) == "a  bb\n-  --"


def test_wrong_number_of_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 cells per row"):
        format_table([[1]], ["a", "b"])
