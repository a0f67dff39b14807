"""What the GPU benchmark counts, on the bundled model and the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lit_depth.data import DepthDataModule
from lit_depth.functional import StaticDecoder, masked, uniform
from lit_depth.models.loading import load_bundled
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from tests.helpers.tiny_molmo import tiny_inputs, tiny_molmo

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("batch_size", [1, 8])
def test_experts_are_counted_as_the_router_chose_them(monkeypatch, batch_size):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "environment", raising=False)
    import gpu_latency

    model, processor = load_bundled()
    data = DepthDataModule(prompter_for(model, processor), batch_size=batch_size, num_samples=batch_size)
    inputs = model_inputs(next(iter(data.eval_dataloader("validation"))))
    text, shares = model.config.text_config, []
    with masked(model, uniform(16, 4)), torch.no_grad():
        share = gpu_latency.routed_share(model, inputs, new_tokens=3)
        # the same greedy tokens, and the router's own logits of the two steps after the prompt
        tokens = model.generate(
            **inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        for length in (tokens.shape[1] - 3, tokens.shape[1] - 2):
            ids = tokens[:, : length + 1]
            mask = torch.ones_like(ids)
            mask[:, : inputs["attention_mask"].shape[1]] = inputs["attention_mask"]
            given = {**inputs, "input_ids": ids, "attention_mask": mask}
            routers = model(**given, use_cache=False, output_router_logits=True).router_logits
            assert len(routers) == 4
            for logits in routers:
                last = logits.view(batch_size, -1, text.num_experts)[:, -1]
                shares.append(len(last.topk(text.num_experts_per_tok).indices.unique()) / text.num_experts)
    assert share == pytest.approx(sum(shares) / len(shares), abs=1e-9)
    single = text.num_experts_per_tok / text.num_experts
    assert share == pytest.approx(single) if batch_size == 1 else single < share <= 1


def test_both_ways_of_decoding_are_timed_and_compared(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "environment", raising=False)
    import gpu_latency

    monkeypatch.setattr(gpu_latency, "NEW_TOKENS", 4)
    model, inputs = tiny_molmo("olmoe"), tiny_inputs(2)
    mask = torch.tensor([True, False, True])
    decoder = StaticDecoder(model, experts="batched_mm")
    assert gpu_latency.same_tokens(model, decoder, inputs, mask) == 1.0
    for way in (gpu_latency.Way(model, None), gpu_latency.Way(model, decoder)):
        assert len(way.time(inputs, mask)["decode_steps"]) == 3
    assert decoder.num_captures == 1
