"""What the closed form of token masking saves: against one masked block forward per token, on cached block inputs.

The baseline is how it is usually done: one forward of the model gives every block's input; then, for every block and
every token, the block runs on its whole input with that token's key masked. Either side makes the same distances
(residual update, attention output, every head), which are compared. One side after the other, in one run: the closed
form before and after the baseline, the median of its times counts. The interval of the ratio is of the closed form's
times alone: the baseline runs once.

Besides, the closed form alone at more lengths, with the plain forward that it contains: what remains is the analysis,
which should cost the same per token and block at every length (the forward's own attention grows with the square).

    python benchmarks/tokens.py [--repeats 5] [--threads 1] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, SEED, environment
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lit_depth.functional import find_blocks, find_decoder, token_masking
from lit_depth.functional.statistics.median import median_interval
from lit_depth.models.loading import BUNDLED, load_bundled

OUTPUT = RESULTS / "tokens.json"
BASELINE_TOKENS = (64, 128, 256)
LENGTHS = (64, 128, 256, 512, 1024, 2048)


def random_llama() -> PreTrainedModel:
    """A random Llama of 16 blocks, float32."""
    torch.manual_seed(SEED)
    sizes = dict(hidden_size=256, intermediate_size=688, num_attention_heads=8, num_hidden_layers=16, vocab_size=512)
    return LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.1)).eval()


def tokens(length: int) -> Tensor:
    return torch.randint(10, 400, (1, length), generator=torch.Generator().manual_seed(SEED))


@torch.no_grad()
def one_at_a_time(model: PreTrainedModel, input_ids: Tensor) -> np.ndarray:
    """Distances ``[blocks, tokens, variants, 2]`` as the usual implementation computes them."""
    blocks = find_blocks(model)
    num_heads = find_decoder(model, blocks).config.num_attention_heads
    calls: list[tuple[Tensor, dict[str, Any]]] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args[0], kwargs)), with_kwargs=True)
        for block in blocks
    ]
    model(input_ids, use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    length = input_ids.shape[1]
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    distances = []
    for block, (hidden, kwargs) in zip(blocks, calls):
        base = run_block(block, hidden, kwargs, causal, num_heads)
        for position in range(length):
            mask = causal.clone()
            mask[..., position] = False
            distances.append(compare(base, run_block(block, hidden, kwargs, mask, num_heads)))
    return torch.stack(distances).view(len(blocks), length, -1, 2).numpy()


def run_block(block: nn.Module, hidden: Tensor, kwargs: dict[str, Any], mask: Tensor, num_heads: int) -> list[Tensor]:
    """At the final position: residual update, attention output, heads ``[heads, head_dim]``."""
    found: dict[str, Tensor] = {}
    hooks = [
        block.self_attn.register_forward_hook(lambda _, args, output: found.update(attention=output[0][0, -1])),
        block.self_attn.o_proj.register_forward_pre_hook(lambda _, args: found.update(heads=args[0][0, -1])),
    ]
    output = block(hidden, **{**kwargs, "attention_mask": mask})
    for hook in hooks:
        hook.remove()
    return [output[0, -1:] - hidden[0, -1:], found["attention"][None], found["heads"].view(num_heads, -1)]


def compare(base: list[Tensor], changed: list[Tensor]) -> Tensor:
    """Distances ``[variants, 2]``."""
    pairs = list(zip(base, changed))
    l2 = torch.cat([(b - a).norm(dim=-1) for a, b in pairs])
    return torch.stack([l2, torch.cat([1 - torch.cosine_similarity(a, b, dim=-1) for a, b in pairs])], dim=-1)


def seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def against_baseline(model: PreTrainedModel, length: int, repeats: int) -> dict[str, Any]:
    """Time either side on one prompt, and see that they agree."""
    input_ids = tokens(length)
    inputs = {"input_ids": input_ids}
    ours = token_masking(model, inputs)  # warm-up
    before = seconds(lambda: token_masking(model, inputs), repeats)
    start = time.perf_counter()
    theirs = one_at_a_time(model, input_ids)
    baseline_s = time.perf_counter() - start
    after = seconds(lambda: token_masking(model, inputs), repeats)
    found = ours[["l2_distance", "cosine_distance"]].to_numpy().reshape(theirs.shape)
    np.testing.assert_allclose(found, theirs, rtol=1e-3, atol=1e-4)  # the same work, or the ratio means nothing
    median = statistics.median(before + after)
    return {
        "tokens": length,
        "token_masking_s": round(median, 4),
        "one_at_a_time_s": round(baseline_s, 3),
        "ratio": round(baseline_s / median, 1),
        "ratio_ci": sorted(round(baseline_s / limit, 1) for limit in median_interval(before + after)),
        "largest_difference": {
            "l2_distance": float(np.abs(found - theirs)[..., 0].max()),
            "cosine_distance": float(np.abs(found - theirs)[..., 1].max()),
        },
    }


@torch.no_grad()
def growth(model: PreTrainedModel, length: int, repeats: int) -> dict[str, Any]:
    """Time of the closed form, of the plain forward in it, and of the difference per block and token."""
    inputs = {"input_ids": tokens(length)}
    sides = [lambda: token_masking(model, inputs), lambda: model(**inputs, use_cache=False, logits_to_keep=1)]
    found: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):
        for side in (0, 1) if repeat % 2 else (1, 0):
            (elapsed,) = seconds(sides[side], 1)
            if repeat > 0:  # the first is the warm-up
                found[side].append(elapsed)
    total, forward = (statistics.median(times) for times in found)
    return {
        "tokens": length,
        "token_masking_ms": round(total * 1e3, 2),
        "forward_ms": round(forward * 1e3, 2),
        "analysis_us_per_block_and_token": round((total - forward) * 1e6 / len(find_blocks(model)) / length, 3),
    }


def main() -> None:
    """Measure, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time token masking against one masked forward per token (CPU).")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of everything but the baseline (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--quick", action="store_true", help="the random model and short prompts only")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models: dict[str, Callable[[], PreTrainedModel]] = {"random Llama": random_llama}
    if not arguments.quick and (BUNDLED / "model.safetensors").is_file():
        models["bundled MolmoE"] = lambda: load_bundled()[0]
    result: dict[str, Any] = {"environment": environment(arguments.threads), "models": {}}
    for name, build in models.items():
        model = build()
        limit = min(find_decoder(model, find_blocks(model)).config.max_position_embeddings, LENGTHS[-1])
        rows = result["models"][name] = {"against_baseline": [], "growth": []}
        print(f"{name}\n{'tokens':>8}{'token_masking s':>17}{'one at a time s':>17}{'ratio':>8}")
        for length in BASELINE_TOKENS[: 1 if arguments.quick else None]:
            row = against_baseline(model, length, arguments.repeats)
            rows["against_baseline"].append(row)
            print(f"{length:>8}{row['token_masking_s']:>17}{row['one_at_a_time_s']:>17}{row['ratio']:>8}", flush=True)
        print(f"{'tokens':>8}{'token_masking ms':>17}{'forward ms':>17}{'analysis us per block and token':>34}")
        for length in LENGTHS[: 3 if arguments.quick else None]:
            if length > limit:
                continue
            row = growth(model, length, arguments.repeats)
            rows["growth"].append(row)
            print(
                f"{length:>8}{row['token_masking_ms']:>17}{row['forward_ms']:>17}"
                f"{row['analysis_us_per_block_and_token']:>34}",
                flush=True,
            )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
