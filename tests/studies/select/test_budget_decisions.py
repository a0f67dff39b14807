"""The decision of a budget is that of `select` itself, on made-up scores; or it is said why there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_depth.studies.select.analysis import Option, choose, describe
from lit_depth.studies.select.arguments import SelectArguments
from lit_depth.studies.select.budget_decisions import affordable, decide
from lit_depth.studies.select.measurements import BySample
from lit_depth.studies.shared.scores import Scores
from tests.studies.select.test_arguments import ESTIMATE, RIGHT

LOSSES = {"1000": 0.6, "0100": 0.7, "1100": 0.1, "0110": 0.12, "1110": 0.3, "1101": 0.3, "1111": 0.0}


def made_up(seed: int) -> Scores:
    wrong = np.random.default_rng(seed).random((len(LOSSES), 200)) < np.array(list(LOSSES.values()))[:, None]
    return Scores(list(LOSSES), 1.0 - wrong, np.log(1.1 - wrong), [f"image {index}" for index in range(200)])


def options(scores: Scores) -> list[Option]:
    quality = dict(zip(scores.mask_ids, scores.quality.mean(axis=1)))
    return [
        Option(mask, ["prefix"], {"quality": q, "quality_ci": [q, q], "drop_ci": [1 - q, 1 - q]}, None)
        for mask, q in quality.items()
    ]


def decided(budget: float | None, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    arguments = SelectArguments(**RIGHT | {"margin": 0.0, "budget_ms": budget} | given)
    scores = BySample(made_up(0), made_up(1))
    times = {mask: [10.0 + mask.count("1")] * 3 for mask in ("1000", "1100", "1110", "1111")}
    result = describe(arguments, options(scores.seen), times)
    if budget is not None:
        result |= choose(result, arguments, lambda masks: {mask: times[mask] for mask in masks})
    return result, decide(result, options(scores.seen), scores, arguments)


@pytest.mark.parametrize("budget", [11.5, 12.0, 13.5, 14.0])
def test_the_decision_of_the_budget_is_the_mask_that_was_selected(budget):
    result, found = decided(budget)
    first, *sizes = found["decisions"]
    assert first["name"] == f"within {budget:g} ms"
    assert first["best"]["mask_id"] == result["selected"]["mask_id"]
    assert [each["name"] for each in sizes] == ["1 block", "2 blocks", "3 blocks"] and found["undecided"] == {}
    assert {each["best"]["num_options"] for each in sizes} == {2}
    assert all("reported_drop" in each["best"] for each in found["decisions"])
    # which of two masks that hardly differ is a matter of luck
    assert {each["name"]: each["agreement"] < 0.9 for each in sizes}["2 blocks"]


def test_a_depth_that_was_not_timed_might_be_chosen_on_a_fresh_sample():
    result, _ = decided(14.0)
    timed = [entry for entry in result["candidates"] if entry["num_active_blocks"] != 3]
    assert affordable(result | {"candidates": timed}, options(made_up(0))) == list(LOSSES)
    assert affordable(result | {"candidates": timed, "budget_ms": 13.0}, options(made_up(0))) == list(LOSSES)[:4]


def test_a_depth_that_was_slower_when_measured_again_is_no_candidate():
    result, _ = decided(12.0)
    slower = result | {"rejected": [entry for entry in result["candidates"] if entry["num_active_blocks"] == 2]}
    assert affordable(result, options(made_up(0))) == ["1000", "0100", "1100", "0110"]
    assert affordable(slower, options(made_up(0))) == ["1000", "0100"]
    wide, _ = decided(14.0)
    untimed = wide | {"candidates": [each for each in wide["candidates"] if each["num_active_blocks"] != 3]}
    assert affordable(untimed, options(made_up(0))) == list(LOSSES)


def test_without_a_budget_there_are_the_sizes_and_by_complexity_no_decision_of_the_budget():
    assert [each["name"] for each in decided(None)[1]["decisions"]] == ["1 block", "2 blocks", "3 blocks"]
    _, found = decided(14.0, complexity="simple")
    assert len(found["decisions"]) == 3
    assert found["undecided"] == {"within 14 ms": "with --complexity the choice is by an interval and by time"}


def test_without_scores_of_samples_it_is_said_why():
    result, told = decided(12.0)
    arguments = SelectArguments(**RIGHT | {"margin": 0.0, "budget_ms": 12.0})
    reason = "the comparison's file has no scores of single samples"
    found = decide(result, [], None, arguments)
    assert found == {"decisions": [], "undecided": {"each number of blocks": reason, "within 12 ms": reason}}
    sizes = {"decisions": told["decisions"][1:], "undecided": {"4 blocks": "one mask"}}
    found = decide(result | sizes, [], None, arguments)
    assert found["decisions"] == sizes["decisions"]
    assert found["undecided"] == {"4 blocks": "one mask", "within 12 ms": reason}
    estimated = SelectArguments(**RIGHT | ESTIMATE | {"budget_ms": 12.0})
    assert set(decide(result, [], None, estimated)["undecided"].values()) == {"no quality was measured"}
