"""What is told and drawn of decisions; a coin toss looks like one."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from lit_depth.studies.shared.decision_views import (
    decision_figures,
    decision_section,
    inclusion_column,
    regret_section,
)


@pytest.fixture
def entry():
    best = {"drop": 0.01, "corrected_drop": 0.02, "corrected_drop_ci": [-0.01, 0.05]}
    firmness = {"repeated": 0.2, "agreement": 0.3, "samples_needed": None}
    return {"skipped": [1], "inclusion": {"0": 0.004, "1": 0.55, "2": 0.45}, "best": best} | firmness


def test_a_coin_toss_is_called_one(entry):
    units = {"0": "0", "1": "1", "2": "2"}
    (section,) = decision_section([("vqa", entry)], units, "the best mask", ["decisions"])
    assert section.table.rows == [
        ["vqa", "1", "20%", "30%", "COIN TOSS", "> 64 x", "+0.010", "+0.020", "[-0.010, +0.050]"]
    ]
    assert section.figures == ["decisions"] and "the best mask" in section.text
    assert inclusion_column(entry, ["0", "1", "3"]) == ["<1%", "55%", None]
    assert inclusion_column(None, ["0"]) == [None]
    assert decision_section([], units, "") == []


def test_figures_draw_every_decision_and_regret(entry):
    regret = {"regret": 0.1, "regret_simultaneous_ci": [0.01, 0.2], "p_holm": 0.01, "num_shared": 0, "num_skipped": 1}
    regrets = [{"chosen": "a", "paid": "b", **regret}, {"chosen": "b", "paid": "a", **regret, "p_holm": 0.5}]
    units = {str(place): str(place) for place in range(3)}
    figures = decision_figures([("a", entry), ("b", entry)], units, regrets, 0.95)
    assert list(figures) == ["decisions", "transfer_regret"]
    strip = figures["decisions"]()
    texts = [text.get_text() for text in strip.axes[0].texts]
    assert texts == ["0", "55", "45"] * 2
    frames = [patch for patch in strip.axes[0].patches if patch.get_linewidth() == 2]
    assert len(frames) == 2  # what is skipped now
    matrix = figures["transfer_regret"]()
    assert [text.get_text() for text in matrix.axes[0].texts] == ["0.10", "0.10"]
    plt.close("all")
    (section,) = regret_section(regrets, figures=list(figures))
    assert section.table.rows[0][:4] == ["a", "b", "0 of 1", "+0.100"]
    assert regret_section([]) == [] and decision_figures([], units, [], 0.95) == {}
