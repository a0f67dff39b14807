"""The latency figure shows the medians, the fitted lines and the ideal one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from lit_depth.results.store import save_figure
from lit_depth.studies.latency.figures import latency_figure

COUNTS = (16, 4, 8)


def result(decodes: bool = True) -> dict[str, Any]:
    """Vision 5 ms, prefill 2 ms per block, decode 1 ms per block; P95 one ms later."""

    def summary(median: float) -> dict[str, float]:
        return {"P50": median, "P95": median + 1.0}

    def times(count: int) -> dict[str, Any]:
        return {
            "vision": summary(5.0),
            "prefill": summary(2.0 * count),
            "decode_per_token": summary(1.0 * count) if decodes else None,
            "total": summary(5.0 + 3.0 * count),
        }

    fits = {"total": (3.0, 5.0), "prefill": (2.0, 0.0), "vision": (0.0, 5.0), "decode_per_token": (1.0, 0.0)}
    return {
        "task": "shapes_vqa",
        "device": "cpu",
        "num_blocks": 16,
        "num_requests": 3,
        "batch_size": 1,
        "configurations": [{"num_active_blocks": count, "latency_ms": times(count)} for count in COUNTS],
        "fits": {
            stage: {"slope": slope, "intercept": intercept, "r2": 1.0}
            for stage, (slope, intercept) in fits.items()
            if decodes or stage != "decode_per_token"
        },
    }


def test_lines_are_the_fits_and_the_ideal() -> None:
    request, token = latency_figure(result()).axes
    lines = {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in (*request.lines, *token.lines)}
    ideal = lines.pop("total, ideal k/L")
    assert list(ideal[0]) == [0, 16] and list(ideal[1]) == [0, 53.0]
    drawn = {label.split(":")[0]: list(line[1]) for label, line in lines.items() if "per block" in label}
    expected = {"total": [5.0, 53.0], "prefill": [0.0, 32.0], "vision": [5.0, 5.0], "decode, per token": [0.0, 16.0]}
    assert drawn.keys() == expected.keys()
    for stage, heights in expected.items():
        assert drawn[stage] == pytest.approx(heights), stage
    assert any("5.0 +3.00 per block, R² 1.000" in label for label in lines)
    assert request.get_ylim()[0] == token.get_ylim()[0] == 0


def test_a_single_token_leaves_the_decode_panel_empty_without_a_warning(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(latency_figure(result(decodes=False)), tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 0
