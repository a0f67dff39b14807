"""Every field of a comparison is checked, by removing and by spoiling each of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_depth.results.store import write_json
from lit_depth.studies.shared.comparison_schema import validate_comparison


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all object fields, in the first element of each list only."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from places(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def owner(value: Any, path: tuple) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def spelled(path: tuple) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def is_free(path: tuple) -> bool:
    """Fields without a schema: keys of score tables (any may be absent), further numbers of an answer."""
    return path[-1] == "difference" and path[0] == "answers"


def test_valid_result_survives_the_disk(comparison: dict[str, Any], tmp_path: Path) -> None:
    assert validate_comparison(comparison) is comparison
    write_json(tmp_path / "a.json", comparison)
    assert validate_comparison(json.loads((tmp_path / "a.json").read_text())) == comparison


def test_every_missing_field_is_named(comparison: dict[str, Any]) -> None:
    for path in places(comparison):
        if is_free(path) or path[1:2] in (("scores",), ("intervals",)) and len(path) > 2:
            continue
        spoiled = copy.deepcopy(comparison)
        del owner(spoiled, path)[path[-1]]
        with pytest.raises(ValueError) as error:
            validate_comparison(spoiled)
        assert str(error.value).startswith(f"{spelled(path)}:")


@pytest.mark.parametrize("wrong", [object(), float("nan"), True])
def test_every_wrong_type_is_named(comparison: dict[str, Any], wrong: Any) -> None:
    for path in places(comparison):
        if is_free(path):
            continue
        spoiled = copy.deepcopy(comparison)
        owner(spoiled, path)[path[-1]] = wrong
        with pytest.raises(ValueError) as error:
            validate_comparison(spoiled)
        assert str(error.value).startswith(f"{spelled(path)}:")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("full", "quality_ci"), [0.9, 0.8], r"full.quality_ci: expected \[low, high\]"),
        (("full", "quality_ci"), [0.9], "full.quality_ci"),
        (("full", "mask_id"), "1" * 15, "full.mask_id: expected 16 characters"),
        (("full", "active_block_indices"), [0], "full.active_block_indices"),
        (("strategies", 1, "num_total_blocks"), 4, r"strategies\[1\].num_total_blocks: expected 16, got 4"),
        (("strategies", 1, "num_active_blocks"), 5, r"strategies\[1\].masks\[0\].mask_id: expected 5 active"),
        (("strategies", 1, "masks"), [], r"strategies\[1\].masks: expected at least one"),
        (
            ("comparisons", 0, "verdict"),
            "maybe",
            r"comparisons\[0\].verdict: expected one of \['a', 'b', 'tie', 'withheld'\]",
        ),
        (("importance", "intervals", "3"), [2, 1], "importance.intervals.3"),
    ],
)
def test_contradictions_are_named(comparison: dict[str, Any], path: tuple, value: Any, message: str) -> None:
    owner(comparison, path)[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        validate_comparison(comparison)


@pytest.mark.parametrize("path", [("full", "latency_ms"), ("importance", "intervals"), ("strategies", 0, "latency_ms")])
def test_what_was_not_measured_may_be_null(comparison: dict[str, Any], path: tuple) -> None:
    owner(comparison, path)[path[-1]] = None
    validate_comparison(comparison)


def test_further_keys_are_allowed(comparison: dict[str, Any]) -> None:
    comparison["checkpoint"] = "bundled"
    comparison["full"]["note"] = 1
    validate_comparison(comparison)


@pytest.mark.parametrize("value", [None, [], "text"])
def test_something_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="comparison: expected an object"):
        validate_comparison(value)


def test_simultaneous_intervals_may_be_absent_but_not_wrong(comparison: dict[str, Any]) -> None:
    """Results of earlier versions have none."""
    pair = comparison["comparisons"][0]
    assert "simultaneous_ci" not in pair
    pair["simultaneous_ci"] = [0.14, 0.22]
    assert validate_comparison(comparison) is comparison
    for wrong in ([0.22, 0.14], None, [0.1]):
        pair["simultaneous_ci"] = wrong
        with pytest.raises(ValueError, match=r"comparisons\[0\].simultaneous_ci"):
            validate_comparison(comparison)
