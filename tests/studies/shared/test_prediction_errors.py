"""Errors of predictions, by number of removed units."""

from __future__ import annotations

import pytest

from lit_depth.studies.shared.prediction_errors import (
    ERROR_HEADERS,
    describe_errors,
    describe_skill,
    error_rows,
    skill_sentence,
)


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


def test_predictions_are_held_to_the_mean_of_the_others_of_their_size() -> None:
    given = [
        {"removed": [0, 1, 2], "drop": 0.0, "predicted": 0.5},
        {"removed": [0, 1, 3], "drop": 0.5, "predicted": 0.5},
        {"removed": [1, 2, 3], "drop": 1.0, "predicted": 1.0},
        {"removed": [0, 1, 2, 3], "drop": 1.0, "predicted": 0.0},  # alone of its size: not compared
    ]
    found = describe_skill(given)
    # without each: 0.75 for 0, 0.5 for 0.5, 0.25 for 1
    assert found == {"num_masks": 3, "error": round(0.5 / 3, 9), "error_of_mean": 0.5, "is_useful": True}
    assert skill_sentence(found, "quality").startswith("Singles and pairs predict quality: error 0.167, that of")
    wrong = describe_skill([each | {"predicted": 2.0} for each in given])
    assert wrong["is_useful"] is False and "DO NOT PREDICT quality: error 1.500" in skill_sentence(wrong, "quality")
    # nothing differs, and that was predicted
    same = describe_skill([{"removed": [0, 1, place], "drop": 0.0, "predicted": 0.0} for place in (2, 3)])
    assert same["is_useful"] is True
    alone = describe_skill(given[3:])
    assert alone["is_useful"] is None and skill_sentence(alone, "quality").startswith("Too few held-out masks")
    assert skill_sentence(None, "quality") == ""
