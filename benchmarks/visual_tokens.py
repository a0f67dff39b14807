"""What a prefill saves where image tokens skip blocks: time and counted operations against the full model.

A wide random LLaVA (16 blocks, prompt of 576 image and 32 text tokens, float32); measured is its language model, not
the vision tower. The same 10 of 16 blocks are skipped by image tokens (``visual``), by image tokens whose keys and
values then do not exist there (``visual_drop``), and by all tokens (``all``). The claim is that ``visual`` is at
least 1.5 times as fast as the full model.

Each round times every kind once, in an order by seeded coin, and gives one ratio full / kind; reported is the
geometric mean with its 95% interval (Student's over the rounds). Operations are those of
`lit_depth.functional.latency.flops`, attention among them.

    python benchmarks/visual_tokens.py [--rounds 12] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from environment import RESULTS, SEED, environment
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from lit_depth.functional import find_blocks, from_indices, masked
from lit_depth.functional.latency.flops import count_request
from lit_depth.functional.masking.blocks import find_decoder
from lit_depth.functional.masks import MaskSet, Tokens

OUTPUT = RESULTS / "visual_tokens.json"
WIDTH, BLOCKS, SKIPPED = 1024, 16, tuple(range(4, 14))
IMAGE_TOKENS, TEXT_TOKENS, IMAGE_TOKEN = 576, 32, 511
KINDS: tuple[Tokens, ...] = ("visual", "visual_drop", "all")
MASK = from_indices(BLOCKS, [block for block in range(BLOCKS) if block not in SKIPPED])


def wide_llava() -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A random LLaVA with a wide language model and a small vision tower, and a prompt for it."""
    torch.manual_seed(SEED)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=96, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=512,
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 43 // 16,
        num_hidden_layers=BLOCKS,
        num_attention_heads=WIDTH // 64,
        num_key_value_heads=WIDTH // 64,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, vision_feature_layer=-1)
    ids = torch.randint(1, 500, (1, IMAGE_TOKENS + TEXT_TOKENS))
    ids[:, 4 : 4 + IMAGE_TOKENS] = IMAGE_TOKEN
    model = LlavaForConditionalGeneration(config).eval()
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 96, 96)}


@contextmanager
def clock(decoder: torch.nn.Module) -> Iterator[list[float]]:
    """Seconds of the forwards of a decoder inside."""
    found: list[float] = []

    def enter(*_: Any) -> None:
        found.append(time.perf_counter())

    def leave(*_: Any) -> None:
        found[-1] = time.perf_counter() - found[-1]

    hooks = [decoder.register_forward_pre_hook(enter), decoder.register_forward_hook(leave)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def kinds(model: PreTrainedModel) -> dict[str, AbstractContextManager[Any]]:
    """The contexts to compare, made anew for each use."""
    return {"full": nullcontext(), **{kind: masked(model, MASK, tokens=kind) for kind in KINDS}}


def operations(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, int]:
    """Floating-point operations of the prefill, without the vision tower, under each kind."""
    counts = {kind: count_request(model, inputs, partial(masked, model, tokens=kind), new_tokens=1) for kind in KINDS}
    masks = {"full": MaskSet.full(BLOCKS).ids[0]} | dict.fromkeys(KINDS, MaskSet.id_of(MASK))
    return {name: counts.get(name, counts["all"]).of_mask(mask)["prefill"] for name, mask in masks.items()}


@torch.inference_mode()
def measure(rounds: int) -> dict[str, Any]:
    """Ratios full / kind of times and operations."""
    model, inputs = wide_llava()
    decoder = find_decoder(model, find_blocks(model))
    assert decoder is not None
    coin, seconds = random.Random(SEED), {name: [] for name in kinds(model)}  # type: dict[str, list[float]]
    flops = operations(model, inputs)
    for index in range(rounds + 1):
        contexts = list(kinds(model).items())
        coin.shuffle(contexts)
        for name, context in contexts:
            with context, clock(decoder) as found:
                model(**inputs, use_cache=True, logits_to_keep=1)
            if index > 0:  # the first round warms up
                seconds[name].append(found[0])
    return {
        name: {
            "seconds": round(statistics.median(own), 4),
            "gigaflops": round(flops[name] / 1e9, 2),
            "times_fewer_flops_than_full": round(flops["full"] / flops[name], 3),
            "times_faster_than_full": _ratio(seconds["full"], own),
        }
        for name, own in seconds.items()
    }


def _ratio(full: list[float], own: list[float]) -> dict[str, Any]:
    logs = np.log(np.array(full) / np.array(own))
    half = scipy.stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    low, middle, high = np.exp(logs.mean() + half * np.array([-1.0, 0.0, 1.0])).tolist()
    return {"ratio": round(middle, 3), "interval": [round(low, 3), round(high, 3)]}


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time prefills in which image tokens skip blocks (CPU).")
    parser.add_argument("--rounds", type=int, default=12, help="rounds, at least 3 (default 12)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = {"width": WIDTH, "blocks": BLOCKS, "skipped": SKIPPED, "image": IMAGE_TOKENS, "text": TEXT_TOKENS}
    result = {"environment": environment(arguments.threads), "rounds": arguments.rounds, "shape": shape}
    result["kinds"] = measure(arguments.rounds)
    for name, found in result["kinds"].items():
        faster = found["times_faster_than_full"]
        print(
            f"{name:<12} {found['seconds']:8.3f} s  {found['gigaflops']:8.1f} GFLOPs  "
            f"{faster['ratio']:.3f} times faster {faster['interval']}"
        )
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
