"""Known constants are found again, what was left out is predicted, and what was not measured is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lit_depth.functional.latency.time_model import Request, StageTimes, TimeModel, cost_names, fit_time_model

# milliseconds: written out by hand, not by the model's own table of costs
VISION, VISION_ROW = 2.0, 1.5
PREFILL, PER_ATTENTION, PER_MLP, ATTENTION_TOKEN, MLP_TOKEN, PAIR = 4.0, 0.3, 0.2, 0.002, 0.005, 0.01
STEP, STEP_ATTENTION, STEP_MLP = 1.0, 0.25, 0.15


def true_times(request: Request) -> StageTimes:
    attentions, mlps, rows, prompt, _ = request
    tokens = rows * prompt
    prefill = PREFILL + attentions * (PER_ATTENTION + ATTENTION_TOKEN * tokens + PAIR * rows * prompt**2 / 1000)
    prefill += mlps * (PER_MLP + MLP_TOKEN * tokens)
    return StageTimes(VISION + VISION_ROW * rows, prefill, STEP + STEP_ATTENTION * attentions + STEP_MLP * mlps)


def design(halves: bool) -> list[Request]:
    kept = [(4, 8), (8, 4), (2, 2), (8, 8)] if halves else [(2, 2), (4, 4), (8, 8)]
    return [Request(*each, rows, prompt, 8) for each in kept for rows in (1, 4) for prompt in (50, 200)]


@pytest.mark.parametrize("halves", [False, True])
def test_times_of_known_constants_are_predicted_exactly(halves: bool) -> None:
    requests = design(halves)
    model = fit_time_model(requests, [true_times(each) for each in requests])
    asked = [Request(6, 6, 2, 120, 8), Request(1, 1, 8, 400, 30)] + [Request(3, 7, 3, 80, 5)] * halves
    for request in asked:
        found, true = model.predict(request), true_times(request)
        assert found == pytest.approx(true, rel=1e-6)
        by_hand = true.vision + true.prefill + (request.new_tokens - 1) * true.decode_per_token
        assert found.total(request.new_tokens) == pytest.approx(by_hand, rel=1e-6)
        assert model.extrapolates(request) == (request.batch_size > 4 or request.new_tokens != 8)
    assert model.whole_blocks is not halves
    if halves:
        constants = model.constants["prefill"]
        assert constants["attention"] == pytest.approx(PER_ATTENTION) and constants["mlp"] == pytest.approx(PER_MLP)
        assert constants["attention_pair"] == pytest.approx(PAIR) and constants["token"] == pytest.approx(0, abs=1e-9)


def test_the_held_out_error_is_that_of_masks_that_were_not_fitted() -> None:
    requests = [Request(n, n, 1, 50, 2) for n in (1, 2, 3, 4, 8)]
    straight = fit_time_model(requests, [true_times(each) for each in requests])
    assert straight.held_out is not None and straight.held_out["total"].largest < 1e-6
    # one mask takes twice what its neighbours say: a fit to the others misses it by one half
    odd = [true_times(each) for each in requests]
    odd[2] = StageTimes(odd[2].vision, 2 * odd[2].prefill, odd[2].decode_per_token)
    model = fit_time_model(requests, odd)
    assert model.held_out is not None and model.held_out["prefill"].largest == pytest.approx(0.5, abs=1e-6)
    assert model.held_out["prefill"].num_predictions == 5
    assert fit_time_model(requests[:1], odd[:1]).held_out is None


def test_noisy_times_are_predicted_within_their_noise_and_no_cost_is_negative() -> None:
    generator = np.random.default_rng(0)
    requests = [request for request in design(halves=True) for _ in range(5)]
    times = [StageTimes(*(part * generator.lognormal(0, 0.02) for part in true_times(each))) for each in requests]
    model = fit_time_model(requests, times)
    assert model.held_out is not None and model.held_out["total"].median < 0.05
    assert all(constant >= 0 for stage in model.constants.values() for constant in stage.values())


def test_it_is_written_and_read() -> None:
    requests = design(halves=True)
    model = fit_time_model(requests, [true_times(each) for each in requests], {"device": "a GPU", "threads": 2})
    assert TimeModel.from_dict(json.loads(json.dumps(model.to_dict()))) == model
    for broken in ({}, {**model.to_dict(), "constants": {}}, {**model.to_dict(), "ranges": 3}):
        with pytest.raises(ValueError, match="expected a model of time"):
            TimeModel.from_dict(broken)


def test_what_was_not_measured_is_refused() -> None:
    requests = [Request(n, n, 1, 50, 1) for n in (1, 2)]
    model = fit_time_model(requests, [StageTimes(1.0, 2.0 * n, None) for n in (1, 2)])
    assert model.predict(Request(2, 2, 1, 50, 1)).decode_per_token is None
    with pytest.raises(ValueError, match="masks of whole blocks|mask of whole blocks"):
        model.predict(Request(1, 2, 1, 50, 1))
    with pytest.raises(ValueError, match="requests of one new token"):
        model.predict(Request(1, 1, 1, 50, 2))
    with pytest.raises(ValueError, match="batch_size of at least 1, got 0"):
        model.predict(Request(1, 1, 0, 50, 1))
    with pytest.raises(ValueError, match="as many times as requests"):
        fit_time_model([], [])
    assert set(model.constants["vision"]) == set(cost_names("vision"))
