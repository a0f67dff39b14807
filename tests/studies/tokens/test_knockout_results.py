"""Entries and averages of knockouts follow from their tables."""

from __future__ import annotations

import pandas as pd
import pytest

from lit_depth.studies.tokens.knockout_results import KnockedOut, describe_knockouts, knockout_averages, table_of_span
from lit_depth.studies.tokens.knockout_spans import Span

SPANS = [Span("image [0-1]", "image", [0, 1]), Span("a [2]", "word", [2]), Span("b [3]", "word", [3])]


def knocked_out() -> KnockedOut:
    """Two blocks, a prompt of four tokens: drops count up, distances are ten times position and block."""
    answers = [(span.name, block, place + block / 2) for place, span in enumerate(SPANS) for block in (0, 1)]
    moved = [
        (span.name, block, position, 10.0 * position + block, 0.5)
        for span in SPANS
        for block in (0, 1)
        for position in range(span.positions[0] + 1, 4)
        if position not in span.positions
    ]
    columns = ["span", "from_block", "token_position", "l2_distance", "cosine_distance"]
    frames = (pd.DataFrame(answers, columns=["span", "from_block", "drop"]), pd.DataFrame(moved, columns=columns))
    return KnockedOut(SPANS, -0.5, *frames, last=3)


def test_entries_tell_the_drop_and_what_becomes_of_the_final_position():
    entry = describe_knockouts(knocked_out())
    assert entry["answer_logprob"] == -0.5
    image, first, final = entry["spans"]
    assert (image["drop"], image["l2_distance"]) == ([0.0, 0.5], [30.0, 31.0])
    assert (first["kind"], first["positions"], first["drop"]) == ("word", [2], [1.0, 1.5])
    assert final["l2_distance"] == final["cosine_distance"] == [None, None]  # it is hidden itself


def test_averages_are_over_spans_and_then_over_prompts():
    one = {"knockouts": describe_knockouts(knocked_out())}
    two = {"knockouts": {"spans": [dict(one["knockouts"]["spans"][1], drop=[5.0, 7.0])]}}
    found = knockout_averages([one, two])
    assert list(found) == ["image", "word"]
    assert found["image"]["num_prompts"] == 1 and found["image"]["drop"] == [0.0, 0.5]
    assert found["word"]["num_prompts"] == 2
    assert found["word"]["drop"] == pytest.approx([(1.5 + 5) / 2, (2.0 + 7) / 2])
    assert found["word"]["l2_distance"] == [None, None]  # undefined for one of its spans


def test_the_table_of_a_span_is_one_of_positions_by_blocks():
    table = table_of_span(knocked_out(), SPANS[0], ["p", "q", "r", "s"])
    assert table["token_masked"].tolist() == ["r", "s", "r", "s"]
    assert table["layer"].tolist() == [0, 0, 1, 1] and table["l2_distance"].tolist() == [20.0, 30.0, 21.0, 31.0]
