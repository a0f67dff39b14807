"""What is told and drawn of decisions; a coin toss looks like one."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from lit_depth.studies.shared.decision_views import (
    decision_figures,
    decision_section,
    inclusion_column,
    mask_decision_section,
    mask_decisions,
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


def test_decisions_of_masks_stand_beside_their_honest_drop_or_say_why_there_are_none(entry):
    units = {"0": "0", "1": "1", "2": "2"}
    best = entry["best"] | {"reported_drop": 0.03, "reported_drop_ci": [0.0, 0.06]}
    result = {"decisions": [{"name": "2 blocks", **entry, "best": best}], "undecided": {"1 block": "one mask"}}
    (section,) = mask_decision_section(result, None, units, "The best of its size.", ["decisions", "other"])
    assert section.table.headers[-2:] == ["elsewhere", "interval"] and section.figures == ["decisions"]
    assert section.table.rows[0][-2:] == ["+0.030", "[+0.000, +0.060]"]
    assert "on the validation split" in section.text
    assert section.text.endswith("Nothing to choose: 1 block (one mask).")
    mixed = {**result, "decisions": [{"name": "3 blocks", **entry}, *result["decisions"]]}
    (section,) = mask_decision_section(mixed, None, units, "The best of its size.")
    assert section.table.rows[0][-2:] == [None, None] and "on the validation split" in section.text
    none = {"decisions": [], "undecided": {"each": "no quality was measured"}}
    (section,) = mask_decision_section(none, None, units, "The best of its size.")
    assert section.table is None and section.text.endswith("Nothing to choose: each (no quality was measured).")
    (section,) = mask_decision_section(result, "no verdict", units, "")
    assert section.text == "WITHHELD." and section.table is None and mask_decisions(result, "no verdict") == []
    assert mask_decision_section({}, None, units, "") == [] == mask_decisions({}, None)  # of an earlier version


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
    of_masks = [{**each, "num_choices": 12} for each in regrets]
    assert regret_section(of_masks, noun="document")[0].table.rows[0][2] == "0 of 12"
    assert "half of the documents" in regret_section(of_masks, noun="document")[0].text
    assert regret_section([]) == [] and decision_figures([], units, [], 0.95) == {}
