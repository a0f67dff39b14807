"""Arguments of a search that cannot be searched with are named."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from lit_depth.studies.search.arguments import SearchArguments

RIGHT: dict[str, Any] = {
    **{
        "strategy": "beam",
        "beam_width": 3,
        "max_blocks_to_remove": 4,
        "keep": [],
        "rank_by": "accuracy",
        "racing": True,
    },
    **{"epsilon": 0.02, "delta": 0.05, "exhaustive": False, "baselines": True, "confidence": 0.95},
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beam_width": 0}, "beam_width must be at least 1, got 0"),
        ({"max_blocks_to_remove": 16}, r"between 1 and 15 of 16 units \(one has to stay\), got 16"),
        ({"max_blocks_to_remove": 0}, "max_blocks_to_remove, keep: expected to remove between 1 and 15 of 16"),
        ({"keep": list(range(13))}, "between 1 and 3 of 16 units, of which 13 are kept, got 4"),
        ({"epsilon": float("inf")}, "epsilon must be at least 0 and delta between 0 and 1, got inf and 0.05"),
        ({"strategy": "pairwise", "max_blocks_to_remove": 2}, "max_blocks_to_remove of at least 3, got 2"),
        ({"strategy": "pairwise", "exhaustive": True}, "exhaustive evaluates every combination"),
        ({"delta": 1.0}, "delta between 0 and 1, got 0.02 and 1.0"),
        ({"exhaustive": True, "max_blocks_to_remove": 8}, "at most 5,000 combinations, got 39,202"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchArguments(**RIGHT | given, num_units=16)


def test_what_the_manifest_holds_is_what_was_given() -> None:
    assert asdict(SearchArguments(**RIGHT, num_units=16)) == RIGHT
