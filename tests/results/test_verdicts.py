"""One rule says what differs, and where nothing is a finding."""

from __future__ import annotations

from typing import Any

import pytest

from lit_depth.results.verdicts import (
    constant_label,
    describe_constant,
    differs,
    mark,
    mark_strategy,
    refusal,
    verdict_scalars,
)

BASELINE = {
    "answer": "yes",
    "quality": 0.458,
    "quality_ci": [0.4, 0.52],
    "difference": -0.291,
    "difference_ci": [-0.4, -0.18],
    "beaten": False,
    "num_candidates": 7,
    "split": "calibration",
}


def entry(**baseline: Any) -> dict[str, Any]:
    return {"full": {"quality": 0.167, "num_distinct_answers": 1}, "baseline": {**BASELINE, **baseline}}


@pytest.mark.parametrize(
    ("p", "confidence", "expected"), [(0.0499, 0.95, True), (0.0501, 0.95, False), (None, 0.9, False)]
)
def test_what_differs_follows_from_the_corrected_p_value_alone(p, confidence, expected):
    assert differs(p, confidence) is expected


def test_a_model_that_a_constant_answer_matches_gets_no_verdict():
    reason = refusal(entry(), "chart_qa")
    assert reason is not None and reason.startswith("No verdict on chart_qa: the full model (0.167)")
    assert 'constant answer "yes" (0.458)' in reason and "[-0.400, -0.180]" in reason
    assert refusal(entry(beaten=True)) is None and refusal({"full": {"quality": 0.9}}) is None


def test_the_constant_answer_stands_beside_the_quality():
    text = describe_constant(entry(reason="the calibration split has no references"))
    assert "(1 distinct answer)" in text and "0.458 [0.400, 0.520]" in text and "which favours it" in text
    assert describe_constant({"full": {"quality": 1.0}}) == ""
    assert constant_label({"answer": None}) == "best constant answers"
    assert len(constant_label({"answer": "x" * 100})) < 40


@pytest.mark.parametrize(
    ("quality", "distinct", "sign"),
    [(0.9, 1, "**"), (0.458, 5, "*"), (0.1, None, "*"), (0.459, 5, ""), (0.9, None, "")],
)
def test_a_mask_that_answers_no_better_than_a_constant_is_marked(quality, distinct, sign):
    assert mark(quality, distinct, BASELINE) == sign
    masks = [{"num_distinct_answers": distinct}, {"num_distinct_answers": distinct}]
    assert mark_strategy({"quality": quality, "masks": masks}, BASELINE) == sign


def test_loggers_keep_why_there_is_no_verdict():
    found = verdict_scalars([("a", "/a", entry()), ("b", "/b", entry(beaten=True))])
    assert found["withheld"].startswith("No verdict on a:") and "on b" not in found["withheld"]
    assert found["baseline/beaten/a"] is False and found["baseline/beaten/b"] is True
    assert verdict_scalars([], also=[("a", "", entry())]) == {
        "withheld": "",
        "baseline/answer": "yes",
        "baseline/quality": 0.458,
        "baseline/beaten": False,
        "full/num_distinct_answers": 1,
    }
