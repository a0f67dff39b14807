"""Whole words of a reference in an answer."""

from __future__ import annotations

import pytest
import torch

from lit_depth.metrics import Contains, contains
from lit_depth.metrics.base import SHORT_NAMES, resolve


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("I see a  RED car", ["red"], 1.0),
        ("It is bored", ["red"], 0.0),
        ("New\nYork, of course", ["new york"], 1.0),
        ("It costs $3.", ["$3"], 1.0),
        ("It costs $35", ["$3"], 0.0),
        ("no", ["yes", "no."], 1.0),
        ("", ["a"], 0.0),
        ("anything", [""], 0.0),
    ],
)
def test_contains(prediction, references, expected):
    assert contains(prediction, references) == expected


def test_the_shell_is_the_mean_and_no_reference_is_refused():
    metric = Contains()
    metric.update(["a red car", "blue"], [["red"], ["red"]])
    assert torch.equal(metric.compute(), torch.tensor(0.5))
    with pytest.raises(ValueError, match="at least one"):
        contains("a", [])


def test_short_names_mean_metrics():
    assert {short: resolve(short).__name__ for short in SHORT_NAMES} == SHORT_NAMES
