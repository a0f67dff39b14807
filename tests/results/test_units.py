"""Names of blocks and of their halves along the figures' axes."""

from __future__ import annotations

import pytest

from lit_depth.results.consistency_figures import pair_figure
from lit_depth.results.importance_figures import importance_figure
from lit_depth.results.units import unit_name, units_noun

MEASURED = {
    measure: {"drop": 0.1, "drop_simultaneous_ci": [0.0, 0.2], "p_holm": 0.3, "rank": 1, "rank_ci": [1, 4]}
    for measure in ("quality", "reference_logprob")
}
BLOCKS = [{"block": index, **MEASURED} for index in (0, 2, 3)]
HALVES = [{"block": index, "sublayer": half, **MEASURED} for index in (0, 2) for half in ("attn", "mlp")]


def test_names():
    assert [unit_name(entry) for entry in BLOCKS] == [0, 2, 3]  # numbers, aligned as such in a table
    assert [unit_name(entry) for entry in HALVES] == ["0 attn", "0 mlp", "2 attn", "2 mlp"]
    assert (units_noun(BLOCKS), units_noun(HALVES), units_noun([])) == ("block", "sublayer", "block")


@pytest.mark.parametrize(
    ("entries", "places", "labels", "noun"),
    [
        (BLOCKS, [0, 2, 3], ["0", "2", "3"], "block"),
        (HALVES, [0, 1, 4, 5], ["0 attn", "0 mlp", "2 attn", "2 mlp"], "sublayer"),
    ],
)
def test_every_bar_stands_over_its_name(entries, places, labels, noun):
    unknown = {"spearman": None, "verdict": "not shown"}
    pair = {"quality": unknown, "reference_logprob": unknown}
    side = {"name": "a", "num_samples": 9, "metric": "ExactMatch", "blocks": entries}
    figures = {
        "importance": importance_figure(entries, "shapes", "ExactMatch", 0.95, {}),
        "pair": pair_figure(pair, side, side | {"name": "b"}, {"confidence": 0.95}),
    }
    axes = {"importance": figures["importance"].axes[1], "pair": figures["pair"].axes[2]}
    for name, panel in axes.items():
        figures[name].draw_without_rendering()
        assert list(panel.get_xticks()) == places
        assert [label.get_text() for label in panel.get_xticklabels()] == labels
        assert panel.get_xlabel() == f"Skipped {noun}"
        bars = {round(bar.get_x() + bar.get_width() / 2) for bar in panel.patches}
        assert bars == set(places)
