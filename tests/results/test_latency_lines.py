"""Lines of times: what not all have is no panel."""

from __future__ import annotations

from lit_depth.results.latency_lines import Time, latency_lines


def test_a_stage_that_some_lack_is_left_out():
    words = {"title": "t", "bars": "b", "x": "x"}
    one = Time(4, {"total": 2.0, "prefill": 1.0}, {"total": [1.5, 3.0], "prefill": [1.0, 1.0]})
    full = Time(8, {"total": 4.0}, {"total": [3.0, 5.0]})
    figure = latency_lines({"prefix": [one]}, {"prefix": ("#000000", "o")}, full, words)
    (axes,) = figure.axes
    assert "total" in axes.get_ylabel() and axes.get_xlabel() == "x"
    assert len(latency_lines({"prefix": [one]}, {"prefix": ("#000000", "o")}, None, words).axes) == 2
