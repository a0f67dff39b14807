"""Is an exported model as fast as ``lit-depth latency`` says of its mask?

The prediction is the masked model's time by the clock of ``latency``; the measurement is that of the exported
checkpoint, loaded from disk, by the same clock. Requests visit the whole model, the masked one and the exported one in
an order of their own, there and back, so that drift of the machine cancels. Where weights lie in memory changes a
model's speed for good, so both models are loaded anew in every round, in alternating order, and the interval is
Student's over the rounds.

- ``measured / predicted``: median ratio of a round's requests, exported over masked, stage by stage. The claim is 5%.
- ``speed-up``: whole over exported, of the total.

    python benchmarks/export_speed.py [--rounds 8] [--requests 12] [--models bundled] [--threads 1]

SmolLM2 is left out where ``make real`` has not installed it.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from environment import RESULTS, SEED, environment
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, logging

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional import from_indices, masked, prefix
from lit_depth.functional import random as random_mask
from lit_depth.functional.latency.stage_timer import time_generation
from lit_depth.models.export import new_folder, prune_checkpoint
from lit_depth.models.loading import BUNDLED, auto_class, load_checkpoint
from lit_depth.models.real import smollm2
from lit_depth.module import model_inputs

OUTPUT = RESULTS / "export_speed.json"
STAGES = ("prefill", "decode", "total")
NEW_TOKENS = 16
PROMPT_TOKENS = 64


def bundled(folder: Path, count: int) -> tuple[Path, list[Mapping[str, Tensor]]]:
    """The bundled checkpoint, and requests of its own task."""
    data = DepthDataModule(DepthModule("bundled").prompter, batch_size=1, num_samples=count)
    return BUNDLED, [model_inputs(batch) for batch in data.eval_dataloader("validation")]


def wide_llama(folder: Path, count: int) -> tuple[Path, list[Mapping[str, Tensor]]]:
    """A random Llama of 16 blocks of width 768, whose blocks take what those of a small real model take."""
    torch.manual_seed(SEED)
    sizes = dict(hidden_size=768, intermediate_size=2064, num_hidden_layers=16, vocab_size=512)
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=12)).save_pretrained(folder)
    return folder, token_requests(count, 512)


def real_smollm2(folder: Path, count: int) -> tuple[Path, list[Mapping[str, Tensor]]]:
    """SmolLM2-135M, 30 blocks, real weights; its requests take ten times as long, and vary less."""
    return smollm2(), token_requests(max(1, count // 3), 49152)


def token_requests(count: int, vocabulary: int) -> list[Mapping[str, Tensor]]:
    """Random prompts: how long a request takes does not depend on what it says."""
    draw = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(3, vocabulary, (count, 1, PROMPT_TOKENS), generator=draw)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens]


def load(folder: Path) -> PreTrainedModel:
    """A model of a folder in float32; the wide Llama has no tokenizer, which `load_checkpoint` asks for."""
    if (folder / "tokenizer_config.json").is_file():
        return load_checkpoint(str(folder))[0]
    return auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder).eval()


def masks(num_blocks: int) -> dict[str, Tensor]:
    """A quarter, a half and a fifth of the blocks gone, in three ways; the last goes without block 0."""
    return {
        "first three quarters": prefix(num_blocks, num_blocks * 3 // 4),
        "random half": random_mask(num_blocks, num_blocks // 2, seed=SEED),
        "without every fifth": from_indices(num_blocks, [idx for idx in range(num_blocks) if idx % 5]),
    }


@torch.inference_mode()
def one_round(
    whole: PreTrainedModel,
    exported: PreTrainedModel,
    mask: Tensor,
    requests: list[Mapping[str, Tensor]],
    coin: random.Random,
) -> dict[str, float]:
    """Median ratios of one round."""
    sides = {"whole": (whole, None), "masked": (whole, mask), "exported": (exported, None)}

    def timed(side: str, inputs: Mapping[str, Tensor]) -> dict[str, float]:
        model, bits = sides[side]
        with nullcontext() if bits is None else masked(model, bits):
            return time_generation(model, inputs, new_tokens=NEW_TOKENS)

    for side in sides:
        timed(side, requests[0])
    rows = []
    for inputs in requests:
        order = coin.sample(list(sides), len(sides))
        times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for side in order + order[::-1]:
            times[side].append(timed(side, inputs))
        rows.append({side: {stage: sum(t[stage] for t in of) for stage in STAGES} for side, of in times.items()})
    ratios = {stage: float(np.median([r["exported"][stage] / r["masked"][stage] for r in rows])) for stage in STAGES}
    return {**ratios, "speed-up": float(np.median([r["whole"]["total"] / r["exported"]["total"] for r in rows]))}


def interval(values: list[float]) -> dict[str, Any]:
    """Geometric mean of the rounds with Student's 95% interval."""
    logs = np.log(values)
    half = scipy.stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    low, mean, high = np.exp(logs.mean() + half * np.array([-1.0, 0.0, 1.0])).tolist()
    return {"ratio": round(mean, 4), "interval": [round(low, 4), round(high, 4)]}


def measure(source: Path, requests: list[Mapping[str, Tensor]], rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Every mask of one model: exported once, loaded and timed anew in each round."""
    num_blocks = load(source).config.get_text_config().num_hidden_layers
    rows = []
    for name, mask in masks(num_blocks).items():
        with new_folder(folder / name) as out:
            prune_checkpoint(source, mask, out)
        coin, found = random.Random(SEED), []
        for idx in range(rounds):
            gc.collect()
            order = (source, folder / name) if idx % 2 else (folder / name, source)
            models = {path: load(path) for path in order}
            gc.disable()
            found.append(one_round(models[source], models[folder / name], mask, requests, coin))
            gc.enable()
        row = {"mask": name, "active": int(mask.sum()), "num_blocks": num_blocks}
        rows.append(row | {key: interval([each[key] for each in found]) for key in found[0]})
        print(f"  {name}: {json.dumps(rows[-1])}", flush=True)
    return rows


MODELS = {
    "bundled": ("bundled MolmoE", bundled),
    "wide": ("wide Llama", wide_llama),
    "smollm2": ("SmolLM2-135M", real_smollm2),
}


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time exported against masked models (CPU).")
    parser.add_argument("--rounds", type=int, default=8, help="times both models are loaded anew (default 8)")
    parser.add_argument("--requests", type=int, default=12, help="requests of a round (default 12)")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"rounds must be at least 2, got {arguments.rounds}")
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    result: dict[str, Any] = {"environment": environment(arguments.threads), "new_tokens": NEW_TOKENS, "models": {}}
    for name, build in (MODELS[key] for key in arguments.models):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                source, requests = build(Path(scratch) / "source", arguments.requests)
            except ValueError as error:  # its package is not here
                print(f"{name}: left out: {error}")
                continue
            print(name)
            result["models"][name] = measure(source, requests, arguments.rounds, Path(scratch))
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
