"""Requests on static buffers are timed stage by stage, without what recording a step takes."""

from __future__ import annotations

import time

import pytest
import torch

from lit_depth.functional import StaticDecoder, leave_one_out
from lit_depth.functional.latency.static_timing import describe_decoding, time_static_generation
from tests.helpers.tiny_models import tiny_batch, tiny_model


def test_stages_add_up_and_recording_is_not_timed():
    model, pause = tiny_model("llama"), 2.0

    def slow(step, reset):
        time.sleep(pause)
        return step

    decoder, inputs = StaticDecoder(model, capture=slow), tiny_batch(model)
    for mask in (*leave_one_out(4)[:2], leave_one_out(4)[0]):
        found = time_static_generation(decoder, inputs, mask, new_tokens=5)
        assert found["total"] == pytest.approx(found["vision"] + found["prefill"] + found["decode"])
        assert found["total"] < pause * 1000
        assert len(found["decode_steps"]) == 4 and found["decode_per_token"] == pytest.approx(found["decode"] / 4)
        assert (found["batch_size"], found["num_output_tokens"], found["num_text_tokens"]) == (4, 20, 26)
    assert decoder.num_captures == 2


def test_a_single_token_takes_no_step():
    model = tiny_model("llama")
    found = time_static_generation(StaticDecoder(model), tiny_batch(model), [True] * 4, new_tokens=1)
    assert found["decode_steps"] == [] and found["decode_per_token"] is None


def test_a_gpu_records_graphs():
    assert describe_decoding("static", torch.device("cuda")) == "static buffers, CUDA graphs"
    assert describe_decoding("dynamic", torch.device("cuda")) is None
