"""Rows of times by stage, and the ends of the fitted lines."""

from __future__ import annotations

from tests.helpers.charts import CHARTS


def test_points_come_by_blocks_and_a_line_goes_from_no_block_to_all() -> None:
    rows = CHARTS["latency"].table.rows
    assert [row[:3] for row in rows[:4]] == [
        ["total", 4, 8.0],
        ["prefill", 4, 8.0],
        ["total", 12, 24.0],
        ["prefill", 12, 24.0],
    ]
    assert rows[4:] == [["total", 0, 10.0, None, None, "fitted"], ["total", 16, 42.0, None, None, "fitted"]]
    assert list(CHARTS["latency"].colors) == ["total", "prefill"] and "#000000" not in CHARTS["latency"].colors.values()
