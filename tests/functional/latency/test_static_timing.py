"""Requests on static buffers are timed stage by stage, without what recording a step takes."""

from __future__ import annotations

import pytest
import torch

from lit_depth.functional import StaticDecoder, leave_one_out
from lit_depth.functional.latency.static_timing import describe_decoding, time_static_generation
from tests.helpers.tiny_models import tiny_batch, tiny_model


class Counting(StaticDecoder):
    """Notes of every answer how many steps were recorded for it."""

    recorded: list[int]

    def generate(self, *arguments, **options):
        before = self.num_captures
        found = super().generate(*arguments, **options)
        self.recorded.append(self.num_captures - before)
        return found


def test_stages_add_up_and_recording_is_not_timed():
    model = tiny_model("llama")
    decoder, inputs = Counting(model), tiny_batch(model)
    for mask, recorded in ((leave_one_out(4)[0], [1, 0]), (leave_one_out(4)[1], [1, 0]), (leave_one_out(4)[0], [0])):
        decoder.recorded = []
        found = time_static_generation(decoder, inputs, mask, new_tokens=5)
        assert decoder.recorded == recorded
        assert found["total"] == pytest.approx(found["vision"] + found["prefill"] + found["decode"])
        assert len(found["decode_steps"]) == 4 and found["decode_per_token"] == pytest.approx(found["decode"] / 4)
        assert (found["batch_size"], found["num_output_tokens"], found["num_text_tokens"]) == (4, 20, 26)


def test_a_single_token_takes_no_step():
    model = tiny_model("llama")
    found = time_static_generation(StaticDecoder(model), tiny_batch(model), [True] * 4, new_tokens=1)
    assert found["decode_steps"] == [] and found["decode_per_token"] is None


def test_a_gpu_records_graphs():
    assert describe_decoding("static", torch.device("cuda")) == "static buffers, CUDA graphs"
    assert describe_decoding("dynamic", torch.device("cuda")) is None
