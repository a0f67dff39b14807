"""What a comparison is asked for is refused before anything is measured."""

from __future__ import annotations

from typing import Any

import pytest

from lit_depth.studies.compare.arguments import CompareArguments

SCORES = [0.1, 0.9, 0.3, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policies": []}, "policies must be among prefix, .*, got none"),
        ({"policies": ["prefx"]}, "policies must be among"),
        ({"num_active_blocks": [0, 2]}, r"num_active_blocks must lie in 1..4, got \[0\]"),
        ({"num_active_blocks": [1], "keep": [0, 1]}, "expected k of at least 2, the number of blocks in keep, got 1"),
        ({"keep": [4]}, "4"),
        ({"active_block_indices": []}, "at least one list of blocks, got none"),
        ({"active_block_indices": [[4]]}, "between 0 and 3, got 4"),
        ({"num_seeds": 0}, "expected num_seeds from 1 to 1000, got 0"),
        ({"confidence": 1.0}, "expected confidence from 0.5 to 0.9999, got 1.0"),
        ({"max_bad_samples": 1.5}, "expected max_bad_samples from 0 to 1, got 1.5"),
        ({"num_requests": -1}, "expected num_requests of at least 0, got -1"),
        ({"new_tokens": 1}, "expected new_tokens from 2 to"),
        ({"new_tokens": 0, "num_requests": 0}, "expected new_tokens from 1 to"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareArguments(4, **arguments)


def test_one_token_has_no_decode_time_but_may_be_generated_untimed() -> None:
    assert CompareArguments(4, num_requests=0, new_tokens=1).new_tokens == 1


def test_lists_of_blocks_take_precedence_over_policies() -> None:
    arguments = CompareArguments(4, ["importance"], [2], active_block_indices=[[3, 0], [1]])
    assert not arguments.needs_importance
    assert [planned.id for planned in arguments.plan(None)] == ["1001", "0100"]


def test_the_plan_goes_by_the_scores_that_are_given() -> None:
    arguments = CompareArguments(4, ["importance", "prefix"], [3, 1, 3], keep=[2])
    assert arguments.needs_importance and not CompareArguments(4, ["prefix"]).needs_importance
    assert [planned.id for planned in arguments.plan(SCORES)] == ["0010", "0111", "0010", "1110"]


def test_the_identity_holds_what_changes_the_qualities() -> None:
    arguments = CompareArguments(4, ["prefix", "prefix"], [3, 1, 3], num_requests=2)
    again = CompareArguments(4, ["prefix"], [1, 3], num_requests=7, new_tokens=9, max_bad_samples=0.5)
    assert arguments.identity(None) == again.identity(None)
    assert arguments.identity(None) == {
        "policies": ["prefix"],
        "num_active_blocks": [1, 3],
        "active_block_indices": None,
        "keep": [],
        "num_seeds": 5,
        "importance": None,
        "confidence": 0.95,
    }
    assert arguments.identity(SCORES)["importance"] == SCORES
