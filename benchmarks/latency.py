"""The latency tools on the bundled model: are they true, what do they cost, do chosen masks keep their budget?

- ``timer``: the same greedy generation with and without `StageTimer` (made once and entered for every request, as
  `LatencyTimer` does), alternating; and the timer's stages against torch.profiler in the same run.
- ``requests``: 16 requests with 16 different masks answered together (`lit_depth.functional.generate`) against one by
  one (`masked` and ``generate``, batch 1, no padding). Their answers are compared.
- ``select``: ``lit-depth select`` for each budget, and the chosen masks timed again by this script, 40 requests
  each.

    python benchmarks/latency.py [--repeats 20] [--threads 2] [--budgets 0.25 0.5 0.75]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, environment, median_ratio
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional import find_decoder, from_mask_id, generate, masked, random
from lit_depth.functional.latency.stage_timer import StageTimer, time_generation
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.module import model_inputs

OUTPUT = RESULTS / "latency.json"
NEW_TOKENS = 4
NUM_REQUESTS = 16
NUM_CHECKS = 40


def batch_of(module: DepthModule, size: int) -> dict[str, Tensor]:
    data = DepthDataModule(module.prompter, batch_size=size, num_samples=size)
    return model_inputs(next(iter(data.eval_dataloader("validation"))))


def single_requests(module: DepthModule, count: int) -> list[dict[str, Tensor]]:
    data = DepthDataModule(module.prompter, batch_size=1, num_samples=count)
    return [model_inputs(batch) for batch in data.eval_dataloader("validation")]


def seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def timer(module: DepthModule, repeats: int) -> dict[str, Any]:
    """Cost of the timer, and its largest deviation from the profiler."""
    (inputs,) = single_requests(module, 1)
    options: dict[str, Any] = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "pad_token_id": 0}

    def plain() -> None:
        module.model.generate(**inputs, **options)

    running = StageTimer(module.model)

    def timed() -> None:
        with running:
            module.model.generate(**inputs, **options)
        running.requests()

    plain(), timed()
    ratios = []
    for repeat in range(3 * repeats):
        sides = (timed, plain, plain, timed) if repeat % 2 else (plain, timed, timed, plain)
        found = {timed: 0.0, plain: 0.0}
        for side in sides:
            found[side] += seconds(side)
        ratios.append(found[timed] / found[plain])
    return {"overhead": median_ratio(ratios), "profiler": against_profiler(module, inputs, repeats)}


@contextmanager
def labelled(**modules: nn.Module) -> Iterator[None]:
    """Forwards run under the given labels, which the profiler reports."""

    def under(name: str, forward: Any) -> Any:
        @functools.wraps(forward)  # generate reads its signature
        def run(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                return forward(*args, **kwargs)

        return run

    try:
        for name, module in modules.items():
            module.forward = under(name, module.forward)  # type: ignore[method-assign]
        yield
    finally:
        for module in modules.values():
            module.__dict__.pop("forward", None)


def against_profiler(module: DepthModule, inputs: dict[str, Tensor], repeats: int) -> dict[str, float]:
    """Largest relative difference of a stage's total over all repeats."""
    model = module.model
    decoder = find_decoder(model, find_blocks(model))
    assert decoder is not None
    ours = {"vision": 0.0, "prefill": 0.0, "decode_steps": 0.0}
    theirs = dict.fromkeys(ours, 0.0)
    with labelled(model=model, decoder=decoder):
        time_generation(model, inputs, new_tokens=8)
        for _ in range(repeats):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                measured = time_generation(model, inputs, new_tokens=8)
            spans = {
                name: sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if e.name == name)
                for name in ("model", "decoder")
            }
            ours["vision"] += measured["vision"]
            ours["prefill"] += measured["prefill"]
            ours["decode_steps"] += sum(measured["decode_steps"])
            theirs["vision"] += (spans["decoder"][0][0] - spans["model"][0][0]) / 1000
            theirs["prefill"] += (spans["model"][0][1] - spans["decoder"][0][0]) / 1000
            theirs["decode_steps"] += sum(end - start for start, end in spans["model"][1:]) / 1000
    return {stage: round(ours[stage] / theirs[stage] - 1, 4) for stage in ours}


def requests(module: DepthModule, repeats: int) -> dict[str, Any]:
    """A batch of requests with a mask each, together and one by one."""
    together, alone = batch_of(module, NUM_REQUESTS), single_requests(module, NUM_REQUESTS)
    num_blocks = module.num_blocks
    # every depth once
    masks = torch.stack([random(num_blocks, 1 + index % num_blocks, seed=index) for index in range(NUM_REQUESTS)])
    eos, pad = module.tokenizer.eos_token_id, module.pad_token_id

    def batched() -> Tensor:
        return generate(module.model, together, masks, NEW_TOKENS, eos_token_id=eos, pad_token_id=pad)

    def one_by_one() -> Tensor:
        tokens = torch.full((NUM_REQUESTS, NEW_TOKENS), pad)
        for index, (mask, inputs) in enumerate(zip(masks, alone)):
            with masked(module.model, mask):
                found = module.model.generate(
                    **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=eos, pad_token_id=pad
                )[0, inputs["input_ids"].shape[1] :]
            tokens[index, : len(found)] = found
        return tokens

    assert torch.equal(batched(), one_by_one()), "the answers differ: their times mean nothing"
    rows = []
    for repeat in range(repeats):
        sides = (batched, one_by_one, one_by_one, batched) if repeat % 2 else (one_by_one, batched, batched, one_by_one)
        found = {batched: 0.0, one_by_one: 0.0}
        for side in sides:
            found[side] += seconds(side) / 2
        rows.append((found[batched], found[one_by_one]))
    return {
        "num_requests": NUM_REQUESTS,
        "masks": "one of each depth, random blocks",
        "together_s": round(statistics.median(a for a, _ in rows), 4),
        "one_by_one_s": round(statistics.median(b for _, b in rows), 4),
        **median_ratio([b / a for a, b in rows]),
    }


def select(module: DepthModule, shares: list[float]) -> list[dict[str, Any]]:
    """What share of new requests stays within the budget that a mask was chosen for."""
    alone = single_requests(module, NUM_CHECKS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lit_depth", "select", f"--output_dir={folder}"]

        def run(*options: str) -> dict[str, Any]:
            subprocess.run([*command, *options], check=True, capture_output=True)
            return json.loads((Path(folder) / "select" / "default" / "selection.json").read_text(encoding="utf-8"))

        bounds = sorted(entry["latency_ms"]["bound"] for entry in run()["candidates"])
        for share in shares:
            budget = round(bounds[0] + share * (bounds[-1] - bounds[0]), 2)
            result = run(f"--budget-ms={budget}")
            chosen = result["selected"]
            with masked(module.model, from_mask_id(chosen["mask_id"])):
                time_generation(module.model, alone[0], new_tokens=result["new_tokens"])
                times = [
                    time_generation(module.model, inputs, new_tokens=result["new_tokens"])["total"] for inputs in alone
                ]
            rows.append(
                {
                    "budget_ms": budget,
                    "num_active_blocks": chosen["num_active_blocks"],
                    "rejected": len(result["rejected"]),
                    "expected_quality": round(chosen["expected"]["quality"], 4),
                    "share_within_budget": float(np.mean([each <= budget for each in times])),
                    "P50_ms": round(float(np.median(times)), 3),
                    "P95_ms": round(float(np.percentile(times, 95)), 3),
                }
            )
    return rows


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Check the latency tools on the bundled model (CPU).")
    parser.add_argument("--repeats", type=int, default=20, help="quadruples per ratio (default 20)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument(
        "--budgets",
        type=float,
        nargs="+",
        default=[0.25, 0.5, 0.75],
        help="where each lies between the least bound of a candidate (0) and the greatest (1); default 0.25 0.5 0.75",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"environment": environment(arguments.threads)}
    module = DepthModule("bundled")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in (
        ("timer", lambda: timer(module, arguments.repeats)),
        ("requests", lambda: requests(module, arguments.repeats)),
        ("select", lambda: select(module, arguments.budgets)),
    ):
        result[name] = measure()
        print(f"{name}: {json.dumps(result[name])}", flush=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
