"""Latency of MolmoE-1B's real shape with random weights, bf16, on a GPU: what skipped blocks save in each stage.

Vision, prefill and decode step for 16, 12, 8 and 4 active blocks, at batch 1 and 8, each request an overview, 12 crops
(2,370 positions) and a short question; experts by transformers' plain loop ("eager") and by grouped matrix products.
Beside `generate` ("dynamic") the same requests on static buffers, each decode step a CUDA graph ("static"), with the
experts' weights gathered ("batched_mm") and by grouped matrix products. Their tokens are compared with those of
`generate` first, and the share of equal ones stands in ``same_tokens`` (with 16 bits, other kernels round otherwise,
and near ties fall otherwise).

Targets of the static steps: at most 5 ms at batch 1, at least 15% of the memory bandwidth's bound at batch 8. What
gathering the experts' weights writes and reads again does not count as read.

Two bounds tell how far the times are from what the hardware allows:

- Decode reads every active weight once per step: attention, the experts that the batch's tokens are routed to (8 of 64
  in each block for one token, fewer than 64 for 8 tokens: counted in an untimed request), router, norms and the output
  head. Share of the memory bandwidth = these bytes / time / peak bandwidth. (The keys and values come on top and are
  counted too.)
- Prefill: 2 operations per active weight and token, and 4 x positions x hidden size per token for attention (half, as
  it is causal).
  Share of the compute bound = these operations / time / peak.

Peaks are those of the data sheet, dense bf16; give others with --bandwidth and --flops.

Besides, for each batch size and kind of experts:

- ``masked_over_pruned``: 8 of 16 blocks masked against the same blocks physically removed (sharing the weights),
  alternating as ABBA and BAAB.
- ``timer_over_profiler``: the timer's stages against the kernels that torch.profiler saw in the same requests.

    python benchmarks/gpu_latency.py [--repeats 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from environment import RESULTS, SEED, environment
from latency import labelled
from skip_overhead import mean_ratio, pruned_copy
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lit_depth.functional import StaticDecoder, find_blocks, find_decoder, masked, uniform
from lit_depth.functional.engine.decoding_configuration import greedy_options
from lit_depth.functional.latency.stage_timer import time_generation
from lit_depth.functional.latency.static_timing import time_static_generation
from lit_depth.models.molmo import MolmoConfig, MolmoForConditionalGeneration

OUTPUT = RESULTS / "gpu_latency.json"
# terabytes and teraflops per second of the data sheets, bf16 without sparsity
PEAKS = {"H200": (4.8, 989.0), "H100": (3.35, 989.0), "A100": (2.0, 312.0)}
# the released configuration as far as it differs from the defaults of `MolmoConfig`
MOLMOE_1B = {
    "activation_type": "swiglu",
    "attention_layer_norm": True,
    "block_type": "moe",
    "d_model": 2048,
    "embedding_size": 50304,
    "image_padding_embed": "pad_and_partial_pad",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "mlp_ratio": 1,
    "moe_num_experts": 64,
    "moe_top_k": 8,
    "n_heads": 16,
    "n_layers": 16,
    "rope_theta": 10000.0,
    "vision_backbone": {
        "image_default_input_size": [336, 336],
        "image_emb_dim": 1024,
        "image_mlp_dim": 4096,
        "image_num_layers": 23,
        "image_num_heads": 16,
        "image_num_key_value_heads": 16,
        "image_head_dim": 64,
        "image_patch_size": 14,
        "image_pos_patch_size": 14,
        "image_num_pos": 577,
        "image_mlp_activations": "quick_gelu",
        "image_norm_eps": 1e-5,
        "image_model_type": "openai",
        "initializer_range": 0.02,
    },
}
CROPS, PATCHES, PIXELS, TOKENS_PER_CROP = 13, 576, 14 * 14 * 3, 144
TEXT_TOKENS, NEW_TOKENS = 64, 32
# decoding, and how it computes the experts
WAYS = (("dynamic", "grouped_mm"), ("static", "batched_mm"), ("static", "grouped_mm"), ("dynamic", "eager"))


def build(device: torch.device) -> MolmoForConditionalGeneration:
    """The model, weights drawn on the device: nothing is loaded, and the host never holds 14 GB."""
    torch.manual_seed(SEED)
    with torch.device("meta"):
        model = MolmoForConditionalGeneration(MolmoConfig(**MOLMOE_1B)).to(torch.bfloat16)
    buffers = {name: value for name, value in model.named_buffers()}
    model.to_empty(device=device)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None:
            module.weight.data.fill_(1.0)
    _restore_buffers(model, set(buffers), device)
    return model.eval()


def _restore_buffers(model: nn.Module, names: set[str], device: torch.device) -> None:
    """Buffers have no random values: rotary frequencies, position ids."""
    for name, module in model.named_modules():
        for key, value in list(module.named_buffers(recurse=False)):
            path = f"{name}.{key}" if name else key
            assert path in names
            if key in ("inv_freq", "original_inv_freq"):
                config = module.config
                base = config.rope_parameters["rope_theta"]
                size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
                exponents = torch.arange(0, size, 2, device=device, dtype=torch.float32) / size
                module.register_buffer(key, 1.0 / base**exponents, persistent=False)
            elif value.dtype == torch.long:
                module.register_buffer(key, torch.arange(value.numel(), device=device).view(value.shape), False)
            else:
                raise ValueError(f"expected only rotary frequencies and positions as buffers, found {path}")


def request(batch: int, device: torch.device) -> dict[str, Tensor]:
    """Random pixels in all crops; image tokens first, then the question."""
    generator = torch.Generator().manual_seed(SEED)
    image_tokens = CROPS * TOKENS_PER_CROP
    # the released prompt has one more token per row of patches, and begin and end marks
    separators = 433
    length = 1 + image_tokens + separators + TEXT_TOKENS
    positions = 1 + torch.randperm(image_tokens + separators, generator=generator)[:image_tokens].sort().values
    inputs = {
        "input_ids": torch.randint(5, 50000, (batch, length), generator=generator),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "images": torch.rand(batch, CROPS, PATCHES, PIXELS, generator=generator).bfloat16(),
        "image_masks": torch.ones(batch, CROPS, PATCHES).bfloat16(),
        "image_input_idx": positions.view(1, CROPS, TOKENS_PER_CROP).expand(batch, -1, -1).contiguous(),
    }
    return {name: value.to(device) for name, value in inputs.items()}


@torch.no_grad()
def routed_share(model: nn.Module, inputs: dict[str, Tensor], new_tokens: int = NEW_TOKENS) -> float:
    """Share of the experts of an active block that the tokens of one decode step are routed to, on average."""
    shares: list[float] = []

    def count(experts: nn.Module, args: tuple[Tensor, ...]) -> None:
        hidden_states, chosen = args[:2]
        if len(hidden_states) == len(inputs["input_ids"]):  # one token per row: a decode step
            shares.append(len(chosen.unique()) / experts.num_experts)

    hooks = [block.mlp.experts.register_forward_pre_hook(count) for block in find_blocks(model)]
    try:
        time_generation(model, inputs, new_tokens=new_tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return statistics.fmean(shares)


def work(
    model: MolmoForConditionalGeneration, active: int, batch: int, length: int, routed: float
) -> tuple[float, float]:
    """Bytes that one decode step has to read (of the experts the share ``routed``), and operations of a prefill."""
    text = model.config.text_config
    block = find_blocks(model)[0]
    experts = sum(p.numel() for p in block.mlp.experts.parameters())
    others = sum(p.numel() for p in block.parameters()) - experts
    head = model.lm_head.weight.numel()
    cache = 2 * batch * length * text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    read = 2 * (active * (others + routed * experts + cache) + head)
    used = others + experts * text.num_experts_per_tok / text.num_experts
    attention = 4 * length * text.hidden_size / 2
    return read, active * batch * length * (2 * used + attention) + 2 * batch * head


class Way(NamedTuple):
    """A way to decode; without a decoder, that of `generate`."""

    model: nn.Module
    decoder: StaticDecoder | None

    def time(self, inputs: dict[str, Tensor], mask: Tensor) -> dict[str, Any]:
        """Time one request under a mask."""
        if self.decoder is not None:
            return time_static_generation(self.decoder, inputs, mask, new_tokens=NEW_TOKENS)
        with masked(self.model, mask):
            return time_generation(self.model, inputs, new_tokens=NEW_TOKENS)


@torch.no_grad()
def same_tokens(model: nn.Module, decoder: StaticDecoder, inputs: dict[str, Tensor], mask: Tensor) -> float:
    """Share of greedy tokens that `generate` and static buffers have in common."""
    found = decoder.generate(inputs, mask, NEW_TOKENS)
    with masked(model, mask):
        tokens = model.generate(**inputs, **greedy_options(NEW_TOKENS, eos=(), pad=0))
    return float((found == tokens[:, -NEW_TOKENS:].cpu()).float().mean())


def masked_over_pruned(model: nn.Module, inputs: dict[str, Tensor], repeats: int) -> dict[str, Any]:
    """Ratio of each stage, 8 of 16 blocks, with its 95% interval."""
    mask = uniform(16, 8)
    pruned = pruned_copy(model, mask, share_weights=True)
    rounds: dict[str, list[list[tuple[float, float]]]] = {"prefill": [], "decode_per_token": []}
    for repeat in range(-1, repeats):
        sides = (model, pruned, pruned, model) if repeat % 2 else (pruned, model, model, pruned)
        found: dict[nn.Module, list[dict[str, Any]]] = {model: [], pruned: []}
        for side in sides:
            with masked(model, mask) if side is model else nullcontext():
                found[side].append(time_generation(side, inputs, new_tokens=NEW_TOKENS))
        if repeat >= 0:
            for stage, of in rounds.items():
                a, b = (sum(each[stage] for each in found[side]) / 1e3 for side in (model, pruned))
                of.append([(a, b)])
    return {stage: mean_ratio(of) for stage, of in rounds.items()}


def kernel_stages(trace: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of each stage from a Chrome trace of one request, by what the device ran alone.

    A kernel belongs to the forward that launched it. A stage lasts from its first kernel's start (the decode steps:
    from the last kernel of the prompt's forward) to its last kernel's end; *vision* to the decoder's first kernel.
    """
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in trace
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    kernels = [
        (launched[event["args"]["correlation"]], event["ts"], event["ts"] + event["dur"])
        for event in trace
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    forwards, decoders = (
        sorted(
            (event["ts"], event["ts"] + event["dur"])
            for event in trace
            if event.get("cat") == "user_annotation" and event["name"] == name
        )
        for name in ("whole", "decoder")
    )

    def first(start: float, end: float) -> float:
        return min(begin for launch, begin, _ in kernels if start <= launch <= end)

    def last(start: float, end: float) -> float:
        return max(stop for launch, _, stop in kernels if start <= launch <= end)

    begin, prompt_end = first(*forwards[0]), last(*forwards[0])
    decoder_begin, end = first(*decoders[0]), last(*forwards[-1])
    microseconds = {
        "vision": decoder_begin - begin,
        "prefill": prompt_end - decoder_begin,
        "decode": end - prompt_end,
        "total": end - begin,
    }
    return {stage: value / 1e3 for stage, value in microseconds.items()}


def timer_over_profiler(
    model: nn.Module, inputs: dict[str, Tensor], repeats: int, new_tokens: int = 8
) -> dict[str, float]:
    """Sum of each stage over the repeats by our timer, over that of the kernels in the same requests, minus 1."""
    decoder = find_decoder(model, find_blocks(model))
    assert decoder is not None
    ours = {"vision": 0.0, "prefill": 0.0, "decode": 0.0, "total": 0.0}
    theirs = dict.fromkeys(ours, 0.0)
    with labelled(whole=model, decoder=decoder), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        for repeat in range(-1, repeats):
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                measured = time_generation(model, inputs, new_tokens=new_tokens)
            profiler.export_chrome_trace(str(file))
            kernels = kernel_stages(json.loads(file.read_text(encoding="utf-8"))["traceEvents"])
            if repeat >= 0:
                for stage in ours:
                    ours[stage] += measured[stage]
                    theirs[stage] += kernels[stage]
    return {stage: round(ours[stage] / theirs[stage] - 1, 5) for stage in ours}


def main() -> None:
    """Measure, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description="Latency of MolmoE-1B's shape on a GPU, random weights, bf16.")
    parser.add_argument("--repeats", type=int, default=20, help="timed requests each, even (default 20)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--active_blocks", type=int, nargs="+", default=[16, 12, 8, 4])
    parser.add_argument("--bandwidth", type=float, help="peak memory bandwidth in TB/s")
    parser.add_argument("--flops", type=float, help="peak dense bf16 throughput in TFLOP/s")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.repeats < 4 or arguments.repeats % 2:
        parser.error(f"repeats must be even and at least 4, got {arguments.repeats}")
    if not torch.cuda.is_available():
        parser.exit(2, "error: this benchmark needs a CUDA device, and there is none\n")
    device = torch.device("cuda")
    gpu = torch.cuda.get_device_name(device)
    known = next((peaks for name, peaks in PEAKS.items() if name in gpu), (None, None))
    bandwidth, flops = arguments.bandwidth or known[0], arguments.flops or known[1]
    if bandwidth is None or flops is None:
        parser.exit(2, f"error: the peaks of {gpu} are not known: give --bandwidth and --flops\n")
    model = build(device)
    result: dict[str, Any] = {
        "environment": {**environment(torch.get_num_threads()), "gpu": gpu, "cuda": torch.version.cuda},
        "peak_tb_per_s": bandwidth,
        "peak_tflops": flops,
        "new_tokens": NEW_TOKENS,
        "repeats": arguments.repeats,
        "complete": False,
        "rows": [],
        "masked_over_pruned": [],
        "timer_over_profiler": [],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:  # after every figure: what was measured should survive an interruption
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    print(
        f"{'decoding':<9}{'experts':<12}{'batch':>6}{'blocks':>7}{'vision':>9}{'prefill':>9}{'decode':>9}"
        f"{'total':>9} ms{'bandwidth':>11}{'compute':>9}{'peak GiB':>10}"
    )
    for batch in arguments.batch_sizes:
        inputs = request(batch, device)
        length = inputs["input_ids"].shape[1]
        for decoding, experts in WAYS:
            # the prompt is read alike on static buffers, whose steps compute the experts in their own way
            model.set_experts_implementation(experts if decoding == "dynamic" else "grouped_mm")
            way = Way(model, StaticDecoder(model, experts=experts) if decoding == "static" else None)
            times: dict[int, list[dict[str, Any]]] = {active: [] for active in arguments.active_blocks}
            peaks, routed, same = {}, {}, {}
            for active in arguments.active_blocks:
                with masked(model, uniform(16, active)):
                    routed[active] = routed_share(model, inputs)
                if way.decoder is not None:
                    same[active] = same_tokens(model, way.decoder, inputs, uniform(16, active))
            for repeat in range(-2, arguments.repeats):  # two warm-up rounds
                order = arguments.active_blocks if repeat % 2 else arguments.active_blocks[::-1]
                for active in order:
                    torch.cuda.reset_peak_memory_stats()
                    measured = way.time(inputs, uniform(16, active))
                    peaks[active] = torch.cuda.max_memory_allocated()
                    if repeat >= 0:
                        times[active].append(measured)
            for active, rows in times.items():
                stages = ("vision", "prefill", "decode_per_token", "total")
                row: dict[str, Any] = {stage: statistics.median(each[stage] for each in rows) for stage in stages}
                row["step"] = statistics.median(step for each in rows for step in each["decode_steps"])
                read, operations = work(model, active, batch, length, routed[active])
                row |= {"experts": experts, "batch_size": batch, "active_blocks": active, "prompt_tokens": length}
                row |= {"decoding": decoding, "routed_share": routed[active], "same_tokens": same.get(active)}
                row["bandwidth_share"] = read / (row["decode_per_token"] / 1e3) / (bandwidth * 1e12)
                row["compute_share"] = operations / (row["prefill"] / 1e3) / (flops * 1e12)
                row["peak_memory_gib"] = peaks[active] / 2**30
                result["rows"].append(row)
                write()
                print(
                    f"{decoding:<9}{experts:<12}{batch:>6}{active:>7}{row['vision']:>9.2f}{row['prefill']:>9.2f}"
                    f"{row['decode_per_token']:>9.3f}{row['total']:>9.1f}   {row['bandwidth_share']:>11.1%}"
                    f"{row['compute_share']:>9.1%}{row['peak_memory_gib']:>10.1f}",
                    flush=True,
                )
            del way
            if decoding == "static":
                continue
            for name, found in (
                ("masked_over_pruned", masked_over_pruned(model, inputs, arguments.repeats)),
                ("timer_over_profiler", timer_over_profiler(model, inputs, 3)),
            ):
                result[name].append({"experts": experts, "batch_size": batch, **found})
                print(f"{name}: {json.dumps(result[name][-1])}", flush=True)
            write()
    result["complete"] = True
    write()
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
