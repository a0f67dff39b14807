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


def of_policies() -> dict[str, Any]:
    """Two policies; the second has two masks at 8 blocks, of 29 and 31 ms, each with limits one ms away."""
    own = result()
    full, four, eight = own["configurations"]

    def entry(configuration: dict[str, Any], policies: list[str], extra: float) -> dict[str, Any]:
        times = {
            stage: {"P50": each["P50"] + extra, "P95": each["P95"] + extra}
            for stage, each in configuration["latency_ms"].items()
        }
        limits = {stage: [each["P50"] - 1.0, each["P50"] + 1.0] for stage, each in times.items()}
        return configuration | {"latency_ms": times, "latency_limits_ms": limits, "policies": policies}

    own["configurations"] = [
        entry(full, ["full", "prefix", "random"], 0.0),
        entry(four, ["prefix"], 0.0),
        entry(eight, ["prefix"], 0.0),
        entry(eight, ["random"], 0.0),
        entry(eight, ["random"], 2.0),
    ]
    return own | {"confidence": 0.95, "new_tokens": 4}


def test_several_policies_have_a_line_each_with_the_mean_of_their_masks() -> None:
    figure = latency_figure(of_policies())
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    labels += [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert {"prefix", "random"} < set(labels)
    lines = [sorted(line.get_ydata()) for line in figure.axes[0].lines if len(line.get_ydata()) > 1]
    assert [17.0, 29.0, 53.0] in lines and [30.0, 53.0] in lines
    assert "3 requests of batch size 1, 4 new tokens, cpu" in figure.get_suptitle()
