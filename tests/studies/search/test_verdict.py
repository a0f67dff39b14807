"""The verdict on a search follows paired tests on the report split, and says when there are too few samples."""

from __future__ import annotations

import numpy as np
import pytest

from lit_depth.studies.search.verdict import compare_finders, describe_verdict, verdict_section
from lit_depth.studies.shared.scores import Scores

BASELINE = {"answer": "yes", "quality": 0.1, "difference": 0.5, "difference_ci": [0.4, 0.6], "beaten": True}


def scores(number: int, right: dict[str, float]) -> Scores:
    """The first share of the samples is right under each mask."""
    quality = np.array([[float(i < share * number) for i in range(number)] for share in right.values()])
    return Scores(list(right), quality, quality - 1, [str(i) for i in range(number)])


def ablation(removed: tuple[int, ...], mask: str, *finders: str) -> dict:
    return {"removed": removed, "mask_id": mask, "found_by": list(finders)}


ABLATIONS = [
    ablation((1,), "1011", "search", "greedy", "span"),
    ablation((1, 3), "1010", "search", "greedy"),
    ablation((1, 2), "1001", "importance order", "span"),
]


@pytest.mark.parametrize(
    ("number", "shares", "order"),
    [(100, (0.9, 0.5), "search"), (100, (0.5, 0.9), "importance order"), (100, (0.9, 0.9), "too few"),
     (8, (0.9, 0.5), "too few")],
)  # fmt: skip
def test_verdicts(number, shares, order):
    found = compare_finders(ABLATIONS, scores(number, dict(zip(("1010", "1001", "1011"), (*shares, 0.95)))), 0.95)
    assert [entry["against"] for entry in found] == ["greedy", "importance order", "span"]
    assert found[0] == {"against": "greedy", "sizes": [], "same_at": [1, 2], "verdict": "same"}
    assert found[1]["verdict"] == order == {"span": "importance order"}.get(found[2]["verdict"], order)
    assert found[2]["same_at"] == [1] and found[2]["sizes"] == [2]
    assert (found[1]["p_holm"] < 0.05) == (order != "too few")


def test_words_and_refusal():
    found = compare_finders(ABLATIONS, scores(100, {"1010": 0.9, "1001": 0.5, "1011": 0.9}), 0.95)
    assert "importance order: BETTER: quality +0.400 [" in describe_verdict(found[1])
    full = {"quality": 0.9}
    result = {"verdicts": found, "confidence": 0.95, "report": {"full": full, "baseline": BASELINE}}
    (section,) = verdict_section(result)
    assert section.text.count("BETTER") == 2 and "the same ablations at 1 and 2 removed" in section.text
    result["report"] = {"full": full, "baseline": {**BASELINE, "beaten": False}}
    assert verdict_section(result)[0].text == "WITHHELD." and verdict_section({}) == []
