"""Errors of predictions, by number of removed units."""

from __future__ import annotations

import pytest

from lit_depth.studies.shared.prediction_errors import ERROR_HEADERS, describe_errors, error_rows


def test_errors_are_means_over_the_masks_of_a_size() -> None:
    given = [
        {"removed": [0, 1, 2, 3], "drop": 1.0, "additive": 0.5, "predicted": 0.75},
        {"removed": [0, 1, 2], "drop": 0.5, "additive": 0.25, "predicted": 0.75},
        {"removed": [1, 2, 3], "drop": 0.25, "additive": 0.5, "predicted": 0.0},
    ]
    small, large = describe_errors(given)
    assert (small["num_removed"], small["num_masks"], large["num_removed"]) == (3, 2, 4)
    assert small["mean_drop"] == pytest.approx(0.375)
    assert small["additive_mean_absolute_error"] == 0.25 and small["additive_bias"] == 0.0
    assert small["predicted_mean_absolute_error"] == 0.25 and small["predicted_bias"] == 0.0
    assert large["additive_bias"] == -0.5 and large["predicted_bias"] == -0.25
    assert error_rows([small, large])[1] == [4, 1, 1.0, 0.5, 0.25, "-0.250"]
    assert len(ERROR_HEADERS) == 6 and describe_errors([]) == []
