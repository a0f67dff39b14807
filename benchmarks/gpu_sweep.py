"""The engine against one mask after another on a GPU: MolmoE-1B's real shape, random weights, bf16.

The importance sweep (the full model and every single skip, 17 masks) on one batch of requests as in
`gpu_latency`: an overview, 12 crops and a short question. Either side gives the greedy answer of every (mask, sample)
and the log-probability of a reference answer. "Sequential" is what there was before: one mask after another, `masked`,
transformers' own ``generate``, and one more forward for the log-probability. Experts by grouped matrix products.

"Scores" are the log-probabilities alone. Reported per batch size: median ratios of the rounds (the sides' order
alternates), peak memory beyond the weights, and what the sides agree on. Random weights and bf16 make near ties between
tokens, which other numbers of rows in one call round differently; so equal answers are counted, not demanded. (In
float32 they are equal: see the tests.)

    python benchmarks/gpu_sweep.py [--repeats 3] [--batch_sizes 1 8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, SEED, environment
from gpu_latency import build, request
from torch import Tensor, nn

from lit_depth.functional import MaskTrie, leave_one_out, masked, reference_logprob
from lit_depth.functional.engine.api import answer_masks

OUTPUT = RESULTS / "gpu_sweep.json"
NEW_TOKENS, ANSWER_TOKENS, PAD = 16, 4, 0


def engine(
    model: nn.Module, inputs: dict[str, Tensor], masks: Tensor, answers: Tensor, new_tokens: int = NEW_TOKENS
) -> tuple[Tensor, Tensor]:
    return answer_masks(
        model, inputs, masks, max_new_tokens=new_tokens, eos_token_id=None, pad_token_id=PAD, answer_ids=answers
    )


def engine_scores(*arguments: Any) -> tuple[Tensor, Tensor]:
    return engine(*arguments, new_tokens=0)


@torch.no_grad()
def sequential_scores(model: nn.Module, inputs: dict[str, Tensor], masks: Tensor, answers: Tensor) -> Tensor:
    logprobs = []
    for mask in masks:
        with masked(model, mask):
            logprobs.append(reference_logprob(model, inputs, answers, pad_token_id=PAD).cpu())
    return torch.stack(logprobs)


@torch.no_grad()
def sequential(model: nn.Module, inputs: dict[str, Tensor], masks: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": PAD}
    tokens, logprobs, length = [], [], inputs["input_ids"].shape[1]
    for mask in masks:
        with masked(model, mask):
            tokens.append(model.generate(**inputs, **options, eos_token_id=None)[:, length:].cpu())
            logprobs.append(reference_logprob(model, inputs, answers, pad_token_id=PAD).cpu())
    return torch.stack(tokens), torch.stack(logprobs)


def measured(run: Callable[..., Any], *arguments: Any) -> tuple[float, int, Any]:
    """Seconds, peak memory in bytes beyond what was allocated before, and the result."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    result = run(*arguments)
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before, result


def measure(model: nn.Module, batch_size: int, masks: Tensor, repeats: int) -> dict[str, Any]:
    """Both sides on one batch."""
    inputs = request(batch_size, torch.device("cuda"))
    generator = torch.Generator().manual_seed(SEED)
    answers = torch.randint(5, 50000, (batch_size, ANSWER_TOKENS), generator=generator).cuda()
    sides = {"engine": engine, "sequential": sequential, "engine_scores": engine_scores, "scores": sequential_scores}
    for name, run in sides.items():  # what a first call sets up once belongs to neither
        run(model, inputs, masks if name.startswith("engine") else masks[:2], answers)
    rounds, peaks, found = [], {}, {}
    for repeat in range(repeats):
        seconds = {}
        for name in list(sides) if repeat % 2 else list(sides)[::-1]:
            seconds[name], peaks[name], found[name] = measured(sides[name], model, inputs, masks, answers)
        rounds.append(seconds)

    def median(name: str) -> float:
        return round(statistics.median(seconds[name] for seconds in rounds), 3)

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(seconds[a] / seconds[b] for seconds in rounds), 2)

    trie = MaskTrie(masks)
    same = found["engine"][0] == found["sequential"][0]
    return {
        "batch_size": batch_size,
        "masks": len(masks),
        "new_tokens": NEW_TOKENS,
        "prompt_tokens": inputs["input_ids"].shape[1],
        "engine_s": median("engine"),
        "sequential_s": median("sequential"),
        "ratio": ratio("sequential", "engine"),
        "engine_scores_s": median("engine_scores"),
        "sequential_scores_s": median("scores"),
        "ratio_scores": ratio("scores", "engine_scores"),
        "peak_gib": {name: round(peak / 2**30, 2) for name, peak in peaks.items()},
        "block_forwards": trie.block_forwards,
        "sequential_block_forwards": trie.sequential_block_forwards,
        "same_first_tokens": round(same[:, :, 0].float().mean().item(), 3),
        "same_tokens": round(same.float().mean().item(), 3),
        "largest_logprob_difference": round((found["engine"][1] - found["sequential"][1]).abs().max().item(), 3),
        "logprob_range": [round(value.item(), 2) for value in found["sequential"][1].aminmax()],
    }


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time the one-pass engine against one mask after another on a GPU.")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default 3)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "error: this benchmark needs a CUDA device, and there is none\n")
    model = build(torch.device("cuda"))
    model.set_experts_implementation("grouped_mm")
    masks = torch.cat([torch.ones(1, 16, dtype=torch.bool), leave_one_out(16)])
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    settings = {"environment": {**environment(torch.get_num_threads()), **gpu}, "repeats": arguments.repeats}
    result: dict[str, Any] = {**settings, "weights_gib": round(torch.cuda.memory_allocated() / 2**30, 2), "rows": []}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for batch_size in arguments.batch_sizes:
        result["rows"].append(measure(model, batch_size, masks, arguments.repeats))
        print(json.dumps(result["rows"][-1]), flush=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
