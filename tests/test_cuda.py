"""What must hold on a GPU as on a CPU: masks, the engine, the timer, the commands. Skipped without a CUDA device."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from transformers import StaticCache

from lit_depth import DepthModule
from lit_depth.callbacks import LatencyTimer, MaskSweep
from lit_depth.data import DepthDataModule
from lit_depth.functional import (
    StaticDecoder,
    generate,
    leave_one_out,
    masked,
    prefix,
    proxy_importance,
    random,
    token_masking,
    uniform,
)
from lit_depth.functional.engine import decode as answering
from lit_depth.functional.engine.api import answer_masks, sweep_forward, sweep_generate
from lit_depth.functional.latency.stage_timer import time_generation
from lit_depth.functional.latency.static_timing import time_static_generation
from lit_depth.models.loading import load_bundled
from lit_depth.models.prompting import prompter_for
from lit_depth.module import model_inputs
from lit_depth.results.token_tables import read_token_masking
from tests.helpers.commands import run
from tests.helpers.pruning import pruned_copy
from tests.helpers.tiny_models import tiny_batch, tiny_model

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NEW_TOKENS = 6
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(inputs):
    return {name: value.cuda() for name, value in inputs.items()}


def plain(model, inputs, mask) -> torch.Tensor:
    with masked(model, mask):
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    return tokens[:, inputs["input_ids"].shape[1] :].cpu()


@pytest.fixture(scope="module")
def molmo():
    """The bundled model and a batch of eight, on the CPU, with the reference answers."""
    model, processor = load_bundled()
    batch = next(
        iter(DepthDataModule(prompter_for(model, processor), batch_size=8, num_samples=8).eval_dataloader("validation"))
    )
    return model, model_inputs(batch), batch["answer_ids"]


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
@pytest.mark.parametrize("family", ["llama", "olmoe", "gemma2", "mistral"])
@torch.no_grad()
def test_masked_equals_pruned(family, experts):
    model = tiny_model(family).cuda()
    if family == "olmoe":
        model.set_experts_implementation(experts)
    elif experts != "eager":
        pytest.skip(f"{family} has no experts")
    inputs = on_gpu(tiny_batch(model))
    for mask in (*leave_one_out(4), prefix(4, 2), random(4, 2, seed=1)):
        pruned = pruned_copy(model, mask)
        with masked(model, mask):
            torch.testing.assert_close(model(**inputs).logits, pruned(**inputs).logits, atol=1e-6, rtol=0)
        active = torch.ones(int(mask.sum()), dtype=torch.bool)
        assert torch.equal(plain(model, inputs, mask), plain(pruned, inputs, active))


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmoe", "gemma2"])
@torch.no_grad()
def test_the_engine_equals_one_mask_at_a_time(family):
    model = tiny_model(family).cuda()
    inputs = on_gpu(tiny_batch(model))
    masks = torch.stack([torch.ones(4, dtype=torch.bool), *leave_one_out(4), prefix(4, 2), random(4, 2, seed=1)])
    real = inputs["attention_mask"].bool()
    logits = sweep_forward(model, inputs, masks).logits
    answers = sweep_generate(model, inputs, masks, NEW_TOKENS)
    for mask, of_mask, answer in zip(masks, logits, answers):
        with masked(model, mask):
            expected = model(**inputs, use_cache=False).logits
        torch.testing.assert_close(of_mask[real], expected[real], atol=1e-5, rtol=0)
        assert torch.equal(answer.cpu(), plain(model, inputs, mask)), mask.tolist()
    together = generate(model, inputs, masks[1:5], NEW_TOKENS).cpu()
    for row, (mask, answer) in enumerate(zip(masks[1:5], together)):
        assert torch.equal(answer, plain(model, inputs, mask)[row])


def test_answers_and_scores_of_the_bundled_model_are_those_of_the_cpu(molmo):
    model, inputs, answers = molmo
    masks = torch.cat([torch.ones(1, 16, dtype=torch.bool), leave_one_out(16)])
    options = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
    tokens, logprobs = answer_masks(model, inputs, masks, **options, answer_ids=answers)
    model.cuda()
    try:
        found = answer_masks(model, on_gpu(inputs), masks, **options, answer_ids=answers.cuda())
        alone = [plain(model, on_gpu(inputs), mask)[:, :4] for mask in masks]
    finally:
        model.cpu()
    assert torch.equal(found[0].cpu(), torch.stack(alone))
    assert (found[0].cpu() == tokens).float().mean() > 0.99  # other kernels, other roundings
    torch.testing.assert_close(found[1].cpu(), logprobs, atol=1e-3, rtol=1e-4)


def test_running_out_of_memory_halves_the_chunk(monkeypatch):
    """Real out-of-memory errors: the process is allowed little more than what three masks need."""
    torch.manual_seed(0)
    model = tiny_model("llama", num_blocks=4, hidden_size=512, intermediate_size=1024, head_dim=128).cuda()
    inputs = on_gpu(tiny_batch(model, length=512))
    masks = torch.tensor([[bool(number >> block_idx & 1) for block_idx in range(4)] for number in range(1, 16)])
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0, "max_rows": 10**6}
    expected, _ = answer_masks(model, inputs, masks, **options)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    answer_masks(model, inputs, masks[:3], **options)
    needed = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    failures, real = [], answering._answer_chunk

    def counted(*arguments):
        try:
            return real(*arguments)
        except torch.OutOfMemoryError:
            failures.append(len(arguments[2]))
            raise

    monkeypatch.setattr(answering, "_answer_chunk", counted)
    torch.cuda.set_per_process_memory_fraction(1.5 * needed / torch.cuda.get_device_properties(0).total_memory)
    try:
        tokens, _ = answer_masks(model, inputs, masks, **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert failures and failures[0] == len(masks)
    assert torch.equal(tokens, expected)


def test_a_timed_request_agrees_with_the_profiler(molmo, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "environment", raising=False)
    import gpu_latency

    model, inputs, _ = molmo
    model.cuda()
    try:
        request = time_generation(model, on_gpu(inputs), new_tokens=4)
        differences = gpu_latency.timer_over_profiler(model, on_gpu(inputs), repeats=3)
    finally:
        model.cpu()
    assert request["vision"] > 0 and request["decode"] >= sum(request["decode_steps"]) * 0.999
    assert max(map(abs, differences.values())) <= 0.05, differences


@torch.no_grad()
def test_a_new_mask_does_not_run_compiled_code_of_the_old():
    model = tiny_model("llama").cuda()
    inputs = torch.arange(1, 9, device="cuda").view(2, 4)
    torch._dynamo.reset()
    compiled = torch.compile(model)
    for mask in (prefix(4, 4), uniform(4, 2), prefix(4, 3), prefix(4, 4)):
        pruned, logits = pruned_copy(model, mask), []
        for side in (compiled, pruned):
            cache = StaticCache(config=side.config, max_cache_len=16)
            with masked(model, mask):
                logits.append(side(inputs, cache=cache, use_cache=True).logits)
                logits.append(side(inputs[:, :1], cache=cache, use_cache=True).logits)
        torch.testing.assert_close(logits[0], logits[2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits[1], logits[3], atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("experts", ["batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmoe", "gemma2", "mistral"])
def test_graphs_of_decode_steps_equal_generate(family, experts):
    model = tiny_model(family).cuda()
    decoder = StaticDecoder(model, experts=experts if family == "olmoe" else None)
    for length in (8, 8, 70):  # another prompt in the same buffers, and one of another shape
        inputs = on_gpu(tiny_batch(model, length))
        for mask in (prefix(4, 4), random(4, 2, seed=1), prefix(4, 4), leave_one_out(4)[0]):
            assert torch.equal(decoder.generate(inputs, mask, NEW_TOKENS), plain(model, inputs, mask)), mask.tolist()
    assert decoder.num_captures == 6


def test_graphs_see_weights_that_changed():
    model = tiny_model("llama").cuda()
    inputs, decoder = on_gpu(tiny_batch(model)), StaticDecoder(model)
    weight = model.model.layers[1].mlp.up_proj.weight
    for change in (lambda: None, lambda: weight.data.mul_(-1), lambda: setattr(weight, "data", weight.data.flip(0))):
        change()
        assert torch.equal(decoder.generate(inputs, prefix(4, 3), NEW_TOKENS), plain(model, inputs, prefix(4, 3)))


def test_graphs_of_the_bundled_model_are_timed(molmo):
    model, inputs, _ = molmo
    model.cuda()
    try:
        decoder, mask = StaticDecoder(model), uniform(16, 8)
        assert torch.equal(decoder.generate(on_gpu(inputs), mask, NEW_TOKENS), plain(model, on_gpu(inputs), mask))
        with masked(model, mask):
            eager = time_generation(model, on_gpu(inputs), new_tokens=NEW_TOKENS)
        static = time_static_generation(decoder, on_gpu(inputs), mask, new_tokens=NEW_TOKENS)
    finally:
        model.cpu()
    assert len(static["decode_steps"]) == NEW_TOKENS - 1
    assert min(static["decode_steps"]) < min(eager["decode_steps"])


def test_token_masking_and_proxies_are_those_of_the_cpu():
    model = tiny_model("llama")
    inputs = {name: value[:1] for name, value in tiny_batch(model).items()}
    expected = token_masking(model, inputs)
    batch = {**tiny_batch(model), "labels": tiny_batch(model)["input_ids"]}
    scores = proxy_importance(model, [batch])
    model.cuda()
    found = token_masking(model, on_gpu(inputs))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-5)
    for method, values in proxy_importance(model, [on_gpu(batch)]).items():
        torch.testing.assert_close(values, scores[method], atol=1e-4, rtol=1e-3, msg=method)


def test_callbacks_in_a_trainer_on_the_gpu(tmp_path):
    module = DepthModule("bundled")
    data = DepthDataModule(module.prompter, batch_size=4, num_samples=12)
    timer = LatencyTimer()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="gpu", devices=1, callbacks=[timer], **options).predict(module, data)
    assert timer.summary["peak_memory_bytes"] > 0
    sweep = MaskSweep(torch.cat([torch.ones(1, 16, dtype=torch.bool), leave_one_out(16)]), tmp_path)
    Trainer(accelerator="gpu", devices=1, callbacks=[sweep], **options).predict(module, data)
    assert len(sweep.records) == 17 * 12 and not sweep.bad_samples


def test_importance_of_the_bundled_model_is_that_of_the_cpu(tmp_path):
    scores = {}
    for accelerator in ("cpu", "gpu"):
        command = ["importance", "--output_dir", tmp_path / accelerator, "--num_samples", "48"]
        assert run([*command, "--trainer.accelerator", accelerator]) == 0
        (file,) = (tmp_path / accelerator).rglob("layer_importance_scores.json")
        scores[accelerator] = json.loads(file.read_text())
    assert scores["gpu"].keys() == scores["cpu"].keys()
    for key, value in scores["cpu"].items():
        assert scores["gpu"][key] == pytest.approx(value, abs=1.01 / 48), key  # one near tie may fall otherwise


def test_latency_on_the_gpu(tmp_path):
    common = ["--output_dir", tmp_path, "--trainer.accelerator", "gpu"]
    assert run(["latency", *common, "--num_active_blocks", "4", "16", "--num_samples", "10", "--new_tokens", "4"]) == 0
    folder = tmp_path / "latency" / "default"
    details = json.loads((folder / "latency_details.json").read_text())
    assert details["device"] == torch.cuda.get_device_name()
    for sample in json.loads((folder / "latency.json").read_text())["all_samples"]:
        parts = sample["T_vision_total"] + sample["T_LLM_prefill"] + sample["T_LLM_decode"]
        assert sample["T_total"] == pytest.approx(parts, rel=0.03)
    assert pd.read_parquet(folder / "records.parquet")["peak_memory_bytes"].min() > 0


def test_tokens_on_the_gpu(tmp_path):
    command = ["tokens", "--output_dir", tmp_path, "--prompt=Is there a red cross?", "--device", "cuda"]
    assert run([*command, "--name", "gpu"]) == 0
    assert run([*command[:-1], "cpu", "--name", "cpu"]) == 0
    found, expected = (
        read_token_masking(tmp_path / "tokens" / name / "masking_results.csv") for name in ("gpu", "cpu")
    )
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-3, atol=1e-5)
    assert json.loads((tmp_path / "tokens" / "gpu" / "tokens.json").read_text())["device"].startswith("cuda")
