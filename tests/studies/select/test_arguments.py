"""Arguments of a selection that do not go together are named."""

from __future__ import annotations

from typing import Any

import pytest

from lit_depth.studies.select.arguments import SelectArguments

RIGHT: dict[str, Any] = {
    **dict.fromkeys(("budget_ms", "complexity", "comparison", "latency", "importance", "policies")),
    **{"estimate_depth": False, "num_active_blocks": None, "keep": [], "num_seeds": 1, "num_requests": 9},
    **{"num_checks": 9, "margin": 0.1, "new_tokens": None, "confidence": 0.95, "max_bad_samples": 0.01},
}
ESTIMATE = {"estimate_depth": True, "importance": "scores.json", "budget_ms": 9.0}


@pytest.mark.parametrize("given", [{}, {"budget_ms": 3.0, "complexity": "simple"}, {"comparison": "a"}, ESTIMATE])
def test_what_goes_together_is_taken(given: dict[str, Any]) -> None:
    assert SelectArguments(**RIGHT | given).margin == 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget_ms": float("inf")}, "expected a positive and finite budget_ms, got inf"),
        ({"complexity": "simple"}, "expected --budget_ms with the complexity, got 'simple' alone: give a budget"),
        ({"margin": 1.0}, "expected a margin of at least 0 and below 1, got 1.0"),
        ({"num_checks": 0}, "expected num_checks of at least 1, got 0"),
        ({"new_tokens": 0}, "expected new_tokens from 1 to 1048576, got 0"),
        ({"comparison": "a", "keep": [0]}, "with comparison, got keep: comparison brings its own masks"),
        ({**ESTIMATE, "complexity": "simple"}, "with estimate_depth, got complexity: it knows no quality"),
        (
            {**ESTIMATE, "comparison": "a"},
            "needs --importance FILE and --budget_ms, and no --comparison",
        ),
        ({"estimate_depth": True, "budget_ms": 9.0}, "estimate_depth needs --importance FILE"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectArguments(**RIGHT | given)
