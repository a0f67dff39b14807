"""The figures show what the result says, and need neither a display nor pyplot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from lit_depth.studies.compare.figures import comparison_figures, latency_figure, quality_figure, tradeoff_figure
from lit_depth.studies.compare.report import report
from lit_depth.studies.shared.publish import draw


def test_figures_are_written_under_their_names(comparison: dict[str, Any], tmp_path: Path) -> None:
    paths = draw(report(comparison), tmp_path).values()  # type: ignore[arg-type]
    stems = ("m5_quality_vs_blocks", "m5_latency_vs_blocks", "m5_quality_latency_tradeoff", "m5_importance")
    names = {f"{stem}.png" for stem in stems}
    assert {path.name for path in paths} == names == {path.name for path in tmp_path.glob("*.png")}
    for path in paths:
        pixels = imread(path)
        assert pixels.shape[1] >= 950 and np.ptp(pixels) > 0.5


def test_quality_lines_hold_the_numbers(comparison: dict[str, Any]) -> None:
    figure = quality_figure(comparison)
    axes = figure.axes[0]
    drawn = [container.lines[0] for container in axes.containers]
    by_policy: dict[str, list[float]] = {}
    for strategy in comparison["strategies"]:
        by_policy.setdefault(strategy["policy"], []).append(strategy["quality"])
    assert [line.get_ydata().tolist() for line in drawn] == list(by_policy.values())
    assert [tick for tick in axes.get_xticks()] == [4, 6, 8, 10]


def test_latency_has_one_line_per_policy_and_the_full_model(comparison: dict[str, Any]) -> None:
    masks = [mask for strategy in comparison["strategies"] for mask in strategy["masks"]]
    comparison |= {
        "latency_requests": 5,
        "latency_settings": {"device": "a clock", "threads": 2, "batch_size": 1, "new_tokens": 4},
        "latency_limits_ms": {mask["mask_id"]: {"total": [1.0, 200.0]} for mask in masks},
    }
    figure = latency_figure(comparison)
    total, prefill, token = figure.axes
    names = list(dict.fromkeys(strategy["policy"] for strategy in comparison["strategies"]))
    for axes, stage in ((total, "total"), (prefill, "prefill"), (token, "decode_per_token")):
        drawn = {container.get_label(): container for container in axes.containers}
        assert list(drawn) == [*names, "all 16 blocks"] and axes.get_ylim()[0] == 0
        for name in names:
            expected = [each["latency_ms"][stage]["P50"] for each in comparison["strategies"] if each["policy"] == name]
            assert drawn[name].lines[0].get_ydata().tolist() == expected
    ends = [segment[:, 1].tolist() for segment in total.containers[0].lines[2][0].get_segments()]
    assert ends == [pytest.approx([1.0, 200.0])] * 4
    words = f"{figure.get_suptitle()} {figure.legends[0].get_title().get_text()}"
    for told in ("5 requests of batch size 1", "4 new tokens", "a clock", "94% intervals"):
        assert told in words


def test_without_latency_only_quality_is_drawn(comparison: dict[str, Any], tmp_path: Path) -> None:
    for strategy in comparison["strategies"]:
        strategy["latency_ms"] = None
    assert list(comparison_figures(comparison)) == ["m5_quality_vs_blocks", "m5_importance"]
    with pytest.raises(ValueError, match="latency"):
        tradeoff_figure(comparison)


def test_latency_of_strategies_as_a_whole_is_enough(comparison: dict[str, Any]) -> None:
    comparison["full"]["latency_ms"] = None
    for strategy in comparison["strategies"]:
        for mask in strategy["masks"]:
            mask["latency_ms"] = None
    assert [len(axes.containers) for axes in latency_figure(comparison).axes] == [3, 3, 3]
    tradeoff_figure(comparison)


def test_any_policy_name_and_interval_can_be_drawn(comparison: dict[str, Any], tmp_path: Path) -> None:
    for index, strategy in enumerate(comparison["strategies"]):
        strategy["policy"] = f"rule {index}"
        strategy["quality_ci"] = [strategy["quality"] + 0.01] * 2  # need not contain the estimate
    assert len(draw(report(comparison), tmp_path)) == 4


def test_importing_results_imports_neither_matplotlib_nor_torch() -> None:
    code = """import sys
from lit_depth.results import page, store, style, table
from lit_depth.studies.compare import figures
from lit_depth.studies.shared import comparison_schema
assert not {'matplotlib', 'torch'} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_leaves_pyplot_alone(comparison: dict[str, Any], tmp_path: Path) -> None:
    draw(report(comparison), tmp_path)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_frontier_keeps_what_is_better_beyond_the_intervals(comparison: dict[str, Any]) -> None:
    for strategy in comparison["strategies"]:
        ends = [strategy["quality"] - 0.3, strategy["quality"] + 0.3]
        strategy |= {"quality_ci": ends, "drop_simultaneous_ci": None}
    comparison["full"]["quality_ci"] = [0.6, 1.0]
    (line,) = [each for each in tradeoff_figure(comparison).axes[0].lines if "frontier" in str(each.get_label())]
    assert len(line.get_xdata()) == 1  # nothing is surely better than the fastest
