"""The selection figure shows every candidate at its budget, the frontier and what was chosen."""

from __future__ import annotations

from typing import Any

import pytest

from lit_depth.results.selection_figures import selection_figure

# mask -> (budget in ms, quality): the full model is no better than half of it
CANDIDATES = {"1000": (10.0, 0.5), "1100": (20.0, 0.8), "1111": (40.0, 0.8)}


def result(margin: float, selected: str | None = None) -> dict[str, Any]:
    entries = [
        {
            "mask_id": mask,
            "num_active_blocks": mask.count("1"),
            "latency_ms": {"bound": bound, "num_requests": 7},
            "chosen_by": {"quality": quality, "quality_ci": [quality - 0.1, quality + 0.1]},
            "expected": None,
        }
        for mask, (bound, quality) in CANDIDATES.items()
    ]
    return {
        "task": "shapes_vqa",
        "metric": "ExactMatch",
        "device": "cpu",
        "new_tokens": 2,
        "confidence": 0.95,
        "share_within_budget": 0.95,
        "margin": margin,
        "budget_ms": 30.0,
        "candidates": entries,
        "frontier": ["1000", "1100"],
        "selected": None if selected is None else {"mask_id": selected},
    }


@pytest.mark.parametrize(
    ("margin", "said"), [(0.1, "stay within, 10% of it kept free (ms)"), (0.0, "stay within (ms)")]
)
def test_the_axis_says_what_is_kept_free(margin: float, said: str) -> None:
    (axes,) = selection_figure(result(margin)).axes
    assert axes.get_xlabel().startswith("Budget that 95%") and said in axes.get_xlabel()


def test_frontier_budget_and_choice_are_marked() -> None:
    (axes,) = selection_figure(result(0.1, selected="1100")).axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines["frontier, by the questions chosen on"] == ([10.0, 20.0], [0.5, 0.8])
    assert lines["budget"][0] == [30.0, 30.0] and lines["chosen"] == ([20.0], [0.8])
    assert [text.get_text() for text in axes.texts] == ["1", "2", "4"]
    assert "7 requests per mask" in axes.get_title(loc="left")


def test_the_constant_answer_is_drawn_and_what_lies_below_it_is_hollow() -> None:
    baseline = {"answer": "yes", "quality": 0.6, "difference": 0.2, "difference_ci": [0.1, 0.3], "beaten": True}
    (axes,) = selection_figure(result(0.1) | {"full": {"quality": 0.8}, "baseline": baseline}).axes
    assert [list(line.get_xdata()) for line in axes.lines if line.get_gid() == "hollow"] == [[10.0]]
    assert any('constant answer "yes"' in str(line.get_label()) for line in axes.lines)
    refused = result(0.1) | {"full": {"quality": 0.8}, "baseline": {**baseline, "beaten": False}}
    assert selection_figure(refused).axes[0].get_title(loc="left").startswith("No verdict")
