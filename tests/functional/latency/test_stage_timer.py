"""Stage times against torch's profiler, and what counts as a request."""

from __future__ import annotations

import statistics
from functools import wraps

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lit_depth.data import DepthDataModule
from lit_depth.functional import find_blocks, masked, prefix
from lit_depth.functional.latency.stage_timer import StageTimer, summarize, time_generation
from lit_depth.functional.masking.blocks import find_decoder
from lit_depth.models.loading import load_bundled
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from tests.helpers.tiny_models import tiny_batch, tiny_model


@pytest.fixture(scope="module")
def molmo():
    model, processor = load_bundled()
    batch = next(
        iter(DepthDataModule(prompter_for(model, processor), batch_size=8, num_samples=8).eval_dataloader("validation"))
    )
    return model, model_inputs(batch)


def labelled(module, name):
    """Run the module's forward under a label that the profiler reports; undo with the returned function."""
    forward = module.forward

    @wraps(forward)  # generate reads its signature
    def inside(*args, **kwargs):
        with record_function(name):
            return forward(*args, **kwargs)

    module.forward = inside
    return lambda: module.__dict__.pop("forward")


@pytest.mark.slow
def test_stages_agree_with_the_profiler(molmo):
    model, inputs = molmo
    decoder = find_decoder(model, find_blocks(model))
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    model.generate(**inputs, **options)  # warm-up
    undo = [labelled(model, "whole model"), labelled(decoder, "decoder")]
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler, StageTimer(model) as timer:
            model.generate(**inputs, **options)
    finally:
        for each in undo:
            each()
    (ours,) = timer.requests()
    ranges = {
        name: sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if e.name == name)
        for name in ("whole model", "decoder")
    }
    forwards, decoders = ranges["whole model"], ranges["decoder"]
    assert len(forwards) == len(decoders) == 5
    theirs = {
        "vision": decoders[0][0] - forwards[0][0],
        "prefill": forwards[0][1] - decoders[0][0],
        "decode": forwards[-1][1] - forwards[0][1],
        "total": forwards[-1][1] - forwards[0][0],
    }
    for stage, microseconds in theirs.items():
        assert ours[stage] == pytest.approx(microseconds / 1000, rel=0.05, abs=0.2), stage
    for mine, (start, end) in zip(ours["decode_steps"], forwards[1:]):
        assert mine == pytest.approx((end - start) / 1000, rel=0.05, abs=0.2)


def test_stages_add_up_and_tokens_are_counted(molmo):
    model, inputs = molmo
    request = time_generation(model, inputs, new_tokens=4)
    assert request["total"] == pytest.approx(request["vision"] + request["prefill"] + request["decode"], rel=1e-9)
    assert request["decode_per_token"] == pytest.approx(request["decode"] / 3)
    assert len(request["decode_steps"]) == 3 and sum(request["decode_steps"]) <= request["decode"]
    real = int(inputs["attention_mask"].sum())
    vision = int((inputs["image_input_idx"] >= 0).sum())
    assert (request["num_text_tokens"], request["num_vision_tokens"]) == (real - vision, vision)
    assert request["num_output_tokens"] == 8 * 4 and request["vision"] > 0
    only = time_generation(model, inputs, new_tokens=1)
    assert only["decode"] == 0 and only["decode_per_token"] is None and only["decode_steps"] == []


def test_a_text_model_has_no_vision_and_every_generate_is_a_request():
    model = tiny_model("llama")
    inputs = tiny_batch(model)
    with StageTimer(model) as timer:
        for new_tokens in (3, 1, 2):
            model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        with masked(model, prefix(4, 2)):
            model(**inputs)
    found = timer.requests()
    rows = len(inputs["input_ids"])
    assert [request["num_output_tokens"] for request in found] == [3 * rows, rows, 2 * rows, rows]
    assert all(request["num_vision_tokens"] == 0 for request in found)
    assert all(request["vision"] < 0.5 * request["total"] for request in found)
    assert found[0]["num_text_tokens"] == int(inputs["attention_mask"].sum())


def test_a_prompt_of_one_token_is_a_request_of_its_own():
    model = tiny_model("llama")
    with StageTimer(model) as timer:
        for new_tokens in (3, 2):
            model.generate(torch.tensor([[1]]), max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    assert [request["num_output_tokens"] for request in timer.requests()] == [3, 2]
    assert [request["num_text_tokens"] for request in timer.requests()] == [1, 1]


def test_a_loop_by_hand_on_the_cache_that_the_model_makes():
    model = tiny_model("llama")
    tokens = torch.arange(1, 5).view(2, 2)
    with torch.no_grad(), StageTimer(model) as timer:
        for _ in range(2):
            cache = model(tokens, use_cache=True).cache
            for _ in range(2):
                model(tokens[:, :1], cache=cache)
    assert [len(request["decode_steps"]) for request in timer.requests()] == [2, 2]


def test_a_timer_that_is_entered_again_starts_anew():
    model = tiny_model("llama")
    timer = StageTimer(model)
    for new_tokens in (3, 2):
        with timer:
            model.generate(torch.tensor([[1, 2]]), max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        assert [request["num_output_tokens"] for request in timer.requests()] == [new_tokens]


def test_nothing_stays_behind_and_a_failed_forward_is_not_counted():
    model = tiny_model("llama")
    inputs = tiny_batch(model)
    with StageTimer(model) as timer:
        with pytest.raises(IndexError):
            model(input_ids=inputs["input_ids"] + 10_000)
        model(**inputs)
    assert len(timer.requests()) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("count", [1, 2, 9, 10, 50])
def test_percentiles_by_their_definition(count):
    """Linear interpolation between order statistics, and the unbiased standard deviation, by hand."""
    values = [float((7 * index) % 53) + index / 100 for index in range(count)]
    ordered = sorted(values)

    def percentile(share):
        place = share * (count - 1)
        below = int(place)
        above = min(below + 1, count - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    found = summarize(values)
    assert found["P50"] == pytest.approx(percentile(0.5)) and found["P95"] == pytest.approx(percentile(0.95))
    assert found["P99"] == (pytest.approx(percentile(0.99)) if count >= 10 else None)
    assert found["std"] == pytest.approx(statistics.stdev(values) if count > 1 else 0.0)
    assert (found["mean"], found["min"], found["max"]) == (
        pytest.approx(statistics.fmean(values)),
        ordered[0],
        ordered[-1],
    )


def test_percentiles_of_few_samples():
    assert summarize([1.0] * 9)["P99"] is None and summarize([1.0] * 10)["P99"] == 1.0
    assert summarize([4.0])["std"] == 0.0
    found = summarize([1.0, 2.0, 3.0, 10.0])
    assert (found["P50"], found["mean"], found["min"], found["max"]) == (2.5, 4.0, 1.0, 10.0)


@pytest.mark.gpu
def test_cuda_events_agree_with_the_clock():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    import time

    model = tiny_model("llama").to("cuda")
    inputs = {name: value.to("cuda") for name, value in tiny_batch(model).items()}
    time_generation(model, inputs, new_tokens=8)
    torch.cuda.synchronize()
    start = time.perf_counter()
    request = time_generation(model, inputs, new_tokens=8)
    torch.cuda.synchronize()
    assert 0 < request["total"] <= 1000 * (time.perf_counter() - start)


@pytest.mark.slow
def test_a_model_compiled_before_is_refused():
    model = tiny_model("llama")
    tokens = torch.tensor([[1, 2, 3]])
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(tokens)
        with StageTimer(compiled) as timer:
            compiled(tokens)
    torch._dynamo.reset()
    with pytest.raises(ValueError, match="compiled before the timer"):
        timer.requests()
