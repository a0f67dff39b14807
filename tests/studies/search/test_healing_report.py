"""What is told of masks after patching: careful words, every number at its place, nothing where no verdict is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_depth.studies.search.healing_report import describe_change, healing_figure, scalars, sections, table
from lit_depth.studies.search.report import report
from lit_depth.studies.shared.publish import as_text, draw
from tests.helpers.search_result import BASELINE, search_result


def mask(removed: tuple[int, ...], quality: float, healed: float) -> dict[str, Any]:
    found = {"removed": removed, "quality": quality, "healed_quality": healed, "regained": healed - quality}
    found |= {"quality_ci": [quality - 0.1, quality + 0.05], "healed_quality_ci": [healed - 0.02, healed + 0.01]}
    found |= {"regained_simultaneous_ci": [-0.1, 0.3], "regained_p_holm": 0.2}
    return found | {"healed_drop": 0.07, "healed_drop_simultaneous_ci": [-0.05, 0.2], "healed_drop_p_holm": 0.3}


@pytest.fixture
def result() -> dict[str, Any]:
    found = search_result() | {"heal": "patch", "heal_candidates": 4, "heal_steps": 0}
    missing = {"spearman": None, "spearman_ci": None, "reason": "fewer than 4 masks"}
    gain = {"gain": 0.02, "gain_simultaneous_ci": [-0.01, 0.05], "gain_p_holm": 0.04}
    none = dict.fromkeys(gain)
    stays = {"num_removed": 1, "best_before": (0,), "best_after": (0,), "tied_after": [(0,)], "num_masks": 4}
    changes = {"num_removed": 2, "best_before": (0, 1), "best_after": (0, 2), "num_masks": 2}
    changes["tied_after"] = [(0, 2), (0, 1)]
    found["healing"] = {
        "fit": {"split": "calibration", "num_questions": 20},
        "choice": {"split": "calibration", "num_samples": 18, "num_images": 9},
        "report": {"split": "validation", "num_samples": 40, "num_images": 20},
        "masks": [mask((0,), 0.8, 0.85), mask((1,), 0.7, 0.8), mask((0, 1), 0.5, 0.7), mask((0, 2), 0.4, 0.75)],
        "levels": [
            {**stays, "spearman": 0.4, "spearman_ci": [-0.3, 0.9], "reason": None, **none},
            changes | missing | gain,
        ],
        "mean": {"spearman": 0.4, "spearman_ci": [-0.3, 0.9], "sizes": [1]},
    }
    return found


def test_what_changes_is_said_with_its_ties(result):
    text = describe_change(result)
    assert "correlates +0.40 (Spearman, 1 removed) with the order before" in text and "[-0.300, +0.900]" in text
    assert (
        "Of 2 blocks, 'without 0, 2' comes first among the patched masks (1 of the 2 are tied with it) instead of"
        in text
    )
    assert text.endswith("+0.020 [-0.010, +0.050], p 0.040.")
    result["healing"]["levels"][1]["tied_after"] = [(0, 2)]
    assert "Of 2 blocks, 'without 0, 2' is the best patched mask instead of 'without 0, 1';" in describe_change(result)
    result["healing"]["levels"].pop()
    assert describe_change(result).endswith("The best mask of 1 block stays 'without 0'.")
    result["healing"]["mean"] = None
    result["healing"]["levels"][0]["reason"] = "fewer than 4 masks"
    assert describe_change(result).startswith("After patching: no rank correlation with the order before (fewer than 4")


def test_the_tables_hold_every_size_and_mask(result):
    sizes, masks = sections(result)
    assert "on 20 calibration questions" in sizes.text and "18 others of 9 images" in sizes.text
    assert "Block 0 was kept" in sizes.text and "2 removed: fewer than 4 masks" in sizes.text
    assert sizes.table and sizes.table.rows[0][:6] == [1, 4, "+0.40", "[-0.300, +0.900]", "without 0", "without 0"]
    assert sizes.table.rows[1] == [
        *(2, 2, None, None, "without 0, 1", "without 0, 2 (1 tied)"),
        *("+0.020", "[-0.010, +0.050]", "0.040"),
    ]
    assert masks.table and masks.table.rows[3][:7] == [
        2,
        "without 0, 2",
        0.4,
        "[0.300, 0.450]",
        0.75,
        "[0.730, 0.760]",
        "+0.350",
    ]
    rows = table(result)
    assert dict(zip(rows.headers, rows.rows[3]))["healed_quality_ci_high"] == 0.76
    assert rows.rows[3][0] == "0 2"
    kept = {"healing/spearman": 0.4, "healing/spearman_low": -0.3, "healing/spearman_high": 0.9}
    kept |= {"healing/removed_2": "0 2", "healing/quality_2": 0.75, "healing/gain_2": 0.02, "healing/spearman_1": 0.4}
    assert kept.items() <= scalars(result).items() and "healing/gain_1" not in scalars(result)


def test_the_report_has_it_beside_the_search_and_says_which_order_is_which(result, tmp_path: Path):
    told = report(result)
    text = as_text(told)
    assert "All of this is of the masks as they are, before patching." in text and "After patching" in told.headline
    assert "search/patched" in told.tables and told.scalars["healing/gain_2"] == 0.02
    assert [section.heading for section in told.sections][2:4] == ["Order after patching", "Patched masks"]
    assert list(draw(told, tmp_path)) == ["search_tree", "drop_vs_removed", "quality_after_patching"]
    del result["healing"]
    assert "patch" not in as_text(report(result)).lower() and "quality_after_patching" not in report(result).figures


def test_without_a_verdict_no_mask_is_the_best(result):
    result["report"]["baseline"] = {**BASELINE, "beaten": False}
    assert "the best" not in describe_change(result) and "comes first" not in describe_change(result)
    sizes, _ = sections(result)
    assert sizes.table and sizes.table.rows[1][4:] == ["withheld"] * 5
    axes = healing_figure(result).axes[0]
    assert axes.get_title(loc="left").startswith("No verdict")
    assert not [line for line in axes.lines if line.get_gid() == "best"]


def test_masks_stand_at_their_qualities(result):
    axes = healing_figure(result).axes[0]
    drawn = {bars.get_label(): bars for bars in axes.containers}
    points = {name: list(zip(*bars.lines[0].get_data())) for name, bars in drawn.items()}
    assert points == {"1 removed": [(0.8, 0.85), (0.7, 0.8)], "2 removed": [(0.5, 0.7), (0.4, 0.75)]}
    _, vertical = drawn["2 removed"].lines[2]
    assert [s[:, 1].tolist() for s in vertical.get_segments()] == [
        pytest.approx([0.68, 0.71]),
        pytest.approx([0.73, 0.76]),
    ]
    rings = [
        tuple(map(float, (*line.get_xdata(), *line.get_ydata()))) for line in axes.lines if line.get_gid() == "best"
    ]
    assert rings == [(0.8, 0.85), (0.4, 0.75)]
    (equal,) = [line for line in axes.lines if line.get_label() == "as before"]
    assert list(equal.get_xdata()) == list(equal.get_ydata()) == [pytest.approx(0.3), pytest.approx(0.86)]
