"""What is told of drafts: sentences, table, numbers and the figure's points."""

from __future__ import annotations

from typing import Any

import pytest

from lit_depth.studies.select.lossless_views import lossless_figure, lossless_scalars, lossless_section


def candidate(mask_id: str, num_draft: int, speedup: float) -> dict[str, Any]:
    steps = {"acceptance": 0.8, "draft_ms": 2.0, "verify_ms": 9.0, "decoding_speedup": speedup + 0.2}
    return {
        "mask_id": mask_id,
        "num_draft": num_draft,
        "speedup": speedup,
        "num_active_blocks": mask_id.count("1"),
        **steps,
    }


def result(chosen: bool) -> dict[str, Any]:
    candidates = [candidate("1100", 3, 1.3), candidate("1110", 1, 1.1)]
    measured = {"num_requests": 20, "num_same": 20, "plain_ms": 30.0, "ms": 24.0, "speedup": 1.25}
    measured["speedup_ci"] = [1.1, 1.4] if chosen else [0.9, 1.4]
    entry = {
        "new_tokens": 8,
        "num_requests": 16,
        "mean_tokens": 4.5,
        "candidates": candidates,
        "best": candidates[0],
        "measured": measured,
        "chosen": {"mask_id": "1100", "num_draft": 3} if chosen else None,
        "reason": None if chosen else "no mask is surely faster than plain decoding",
    }
    return {"lossless": entry, "task": "shapes", "device": "a machine", "confidence": 0.95}


@pytest.mark.parametrize("chosen", [True, False])
def test_the_verdict_follows_the_interval(chosen):
    section = lossless_section(result(chosen))
    first = section.text.partition("\n")[0]
    assert "2 of 4 blocks, 3 tokens at a time" in first and "20 of 20 answers are the full model's" in first
    assert ("no mask is chosen" in first) == (not chosen)
    assert section.table is not None and [row[3] for row in section.table.rows] == [3, 1]
    assert lossless_scalars(result(chosen))["lossless/chosen"] is chosen


def test_the_figure_has_every_mask_and_what_was_measured():
    left, right = lossless_figure(result(True)).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[0.8, 0.8]]
    assert list(right.lines[0].get_ydata()) == [1.3, 1.1] and list(right.lines[0].get_xdata()) == [2, 3]
    assert [text.get_text() for text in right.texts] == ["3", "1"]
    labels = [text.get_text() for text in right.figure.legends[0].get_texts()]
    assert any("95% interval" in label for label in labels) and "plain decoding" in labels


def test_nothing_to_tell_is_a_sentence():
    entry = {"candidates": [], "best": None, "measured": None, "chosen": None, "reason": "no answer is long enough"}
    section = lossless_section({"lossless": entry})
    assert section.text == "No mask drafts for the full model: no answer is long enough."
    assert section.table is None and not section.figures and lossless_scalars({"lossless": entry}) == {}
