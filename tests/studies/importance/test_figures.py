"""The chart of block importance: bars at the drops, pale where the interval contains zero, one file per task."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_hex

from lit_depth.studies.importance.figures import _COLOR, _UNSURE, importance_figure, write_importance_figures


def entry(block: int, drop: float, low: float, high: float) -> dict:
    return {"block": block, **{m: {"drop": drop, "drop_ci": [low, high]} for m in ("quality", "reference_logprob")}}


BLOCKS = [entry(0, 0.5, 0.4, 0.6), entry(2, 0.01, -0.01, 0.03), entry(3, -0.02, -0.04, -0.01)]


def test_bars_stand_at_their_blocks_with_their_drops():
    figure = importance_figure(BLOCKS, "shapes", "ExactMatch", 0.95)
    for axes in figure.axes:
        bars = axes.patches
        assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [0, 2, 3]
        assert [bar.get_height() for bar in bars] == pytest.approx([0.5, 0.01, -0.02])
        assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == [_COLOR, _UNSURE, _COLOR]
    assert figure.axes[0].get_ylabel() == "Drop in quality (ExactMatch)"


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_one_file_per_task_and_one_of_the_mean(tmp_path, num_tasks):
    tasks = [{"task": f"task{i}", "metric": "ExactMatch", "num_samples": 9, "blocks": BLOCKS} for i in range(num_tasks)]
    result = {
        "tasks": tasks,
        "macro": BLOCKS if num_tasks > 1 else None,
        "agreement": [{"a": "task0", "b": "task1", "quality": {"spearman": 0.5}}],
        "split": "calibration",
        "confidence": 0.95,
    }
    names = {path.name for path in write_importance_figures(result, tmp_path)}
    expected = {"task0", "task1", "macro", "by_task", "agreement"}
    assert names == ({"block_importance.png"} if num_tasks == 1 else {f"block_importance_{n}.png" for n in expected})
    assert all((tmp_path / name).stat().st_size > 5000 for name in names)
