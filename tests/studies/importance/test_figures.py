"""The chart of block importance: bars at the drops, pale where the interval contains zero, one file per task."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lit_depth.studies.importance.figures import _COLOR, _UNSURE, heatmap, importance_figure, importance_figures


def entry(block: int, drop: float, low: float, high: float, p_holm: float) -> dict:
    # the interval of its own excludes 0 everywhere: it must not count
    found = {"drop": drop, "drop_ci": [drop, drop], "drop_simultaneous_ci": [low, high], "p_holm": p_holm}
    return {"block": block, "quality": found, "reference_logprob": found}


BLOCKS = [entry(0, 0.5, 0.4, 0.6, 0.01), entry(2, 0.01, -0.01, 0.03, 0.2), entry(3, -0.02, -0.04, -0.01, 0.04)]
BASELINE = {"answer": "yes", "quality": 0.3, "difference": 0.5, "difference_ci": [0.4, 0.6], "beaten": True}
MEASURED = {"full": {"quality": 0.8}, "baseline": BASELINE}


def test_bars_stand_at_their_blocks_with_their_drops():
    figure = importance_figure(BLOCKS, "shapes", "ExactMatch", 0.95, MEASURED)
    for axes in figure.axes:
        bars = axes.patches
        assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [0, 2, 3]
        assert [bar.get_height() for bar in bars] == pytest.approx([0.5, 0.01, -0.02])
        assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == [_COLOR, _UNSURE, _COLOR]
    assert figure.axes[0].get_ylabel() == "Drop in quality (ExactMatch)"
    assert "simultaneous intervals (Holm)" in figure.axes[0].get_title(loc="left")
    (constant,) = [line for line in figure.axes[0].lines if 'constant answer "yes"' in str(line.get_label())]
    assert list(constant.get_ydata()) == pytest.approx([0.5, 0.5])  # where a mask would be as good as that


def test_no_bar_is_sure_where_the_full_model_does_not_beat_a_constant_answer():
    measured = {**MEASURED, "baseline": {**BASELINE, "beaten": False}}
    figure = importance_figure(BLOCKS, "shapes", "ExactMatch", 0.95, measured)
    assert {to_hex(bar.get_facecolor()).upper() for axes in figure.axes for bar in axes.patches} == {_UNSURE}
    assert figure.axes[0].get_title(loc="left").startswith("No verdict")


def test_cells_of_the_heatmap_are_pale_where_no_drop_was_shown():
    tasks = [{"task": "a", "metric": "ExactMatch", "blocks": BLOCKS, **MEASURED}]
    tasks.append({**tasks[0], "baseline": {**BASELINE, "beaten": False}})
    (image,) = heatmap(tasks, "drops", 0.95).axes[0].images
    np.testing.assert_array_equal(image.get_alpha() == 1, [[True, False, True], [False, False, False]])


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_one_figure_per_task_and_one_of_the_mean(num_tasks):
    tasks = [
        {"task": f"task{i}", "metric": "ExactMatch", "num_samples": 9, "blocks": BLOCKS, **MEASURED}
        for i in range(num_tasks)
    ]
    result = {
        "tasks": tasks,
        "macro": BLOCKS if num_tasks > 1 else None,
        **MEASURED,
        "agreement": [
            {"a": "task0", "b": "task1", "quality": {"spearman": 0.5, "verdict": "not shown"}} for _ in tasks[1:]
        ],
        "split": "calibration",
        "confidence": 0.95,
    }
    figures = importance_figures(result)
    expected = {"task0", "task1", "macro", "by_task", "agreement"}
    assert set(figures) == (
        {"block_importance"} if num_tasks == 1 else {f"block_importance_{name}" for name in expected}
    )
    assert all(draw().axes for draw in figures.values())
