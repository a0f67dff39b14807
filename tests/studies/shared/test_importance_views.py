"""What importance and consistency tell alike."""

from __future__ import annotations

import pytest

from lit_depth.studies.shared.importance_views import (
    AGREEMENT_HEADERS,
    agreement_section,
    headline,
    matrix_figure,
)


def test_the_headline_says_what_was_measured_and_on_how_much():
    task = {"task": "text_vqa", "metric": "VQAAccuracy", "num_samples": 9, "num_images": 8, "num_bad_samples": 1}
    task |= {"full": {"quality": 0.5, "quality_ci": [0.25, 0.75]}, "in_training_mixture": False}
    text = headline(task, {"split": "calibration", "confidence": 0.9})
    assert text.startswith("VQAAccuracy on text_vqa (calibration split), 9 samples of 8 images (1 bad), 90% ")
    assert "Full model 0.500 [0.250, 0.750]." in text and "trained" not in text
    text = headline({**task, "split": "validation", "in_training_mixture": True}, {"confidence": 0.9})
    assert "(validation split)" in text and text.endswith("were trained on these very questions.")


def test_what_cannot_be_estimated_is_no_number():
    known = {"spearman": 0.8, "p_value": 0.0001, "ci": [-0.5, 0.97], "verdict": "not shown", "samples_needed": [40, 50]}
    unknown = dict.fromkeys(("spearman", "p_value", "ci", "samples_needed")) | {"verdict": "withheld"}
    pair = {"a": "x", "b": "y", "quality": known, "reference_logprob": unknown}
    section = agreement_section("Agreement", [pair], 0.75, ["figure"], "More.")
    assert section.table is not None and section.table.headers == AGREEMENT_HEADERS
    assert section.table.rows == [
        ["x", "y", "quality", 0.8, "[-0.500, +0.970]", "<0.001", "not shown", "40 / 50"],
        ["x", "y", "log-prob", None, "not estimable", None, "withheld", None],
    ]
    assert "above 0.75, if" in section.text and section.text.endswith("\n\nMore.") and section.figures == ["figure"]


@pytest.mark.parametrize(
    ("values", "extend"),
    [([0.1, -0.1], "neither"), ([0.3, -0.1], "max"), ([0.1, -0.3], "min"), ([0.3, -0.3], "both"), ([None], "neither")],
)
def test_the_colour_bar_shows_where_numbers_lie_beyond_it(values, extend):
    figure = matrix_figure([values], ["a"], [str(place) for place in range(len(values))], "", 0.2)
    assert figure.axes[0].images[0].colorbar.extend == extend
