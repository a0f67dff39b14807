"""What agreement with the full model costs a sweep: the same engine pass without it, with it, and with acceptance.

- "agreement": also the most likely tokens along the reference answers, from the same forward, compared with the full
  model's mask by mask, and written out as the columns of the records.
- "acceptance": besides, up to 16 tokens of the full model's own answer read under every mask.

All sides answer the same batch under the same masks with the log-probability of the reference answer. They run once
untimed, then in rounds whose order turns; reported are the median of the rounds' ratios to the plain sweep and the
interval of that median. Bundled answers have one to three tokens; the wide model of random weights writes all 16, and
most masks leave the full model's answer early, which is the most that there can be to read. Use an otherwise idle
machine.

    python benchmarks/agreement.py [--repeats 9] [--threads 2] [--again 0]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from environment import RESULTS, SEED, environment, median_ratio
from sweep import batches, bundled, mask_sets, timed, wide
from torch import Tensor

from lit_depth import DepthModule
from lit_depth.callbacks.mask_sweep import token_columns
from lit_depth.functional import MaskSet
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.engine.greedy_tokens import GreedyTokens, full_place
from lit_depth.functional.token_agreement import token_agreement
from lit_depth.module import model_inputs

OUTPUT = RESULTS / "agreement.json"
ACCEPTANCE = 16
# model, masks, samples of a batch, tokens of an answer
CASES: tuple[tuple[Callable[[], DepthModule], str, int, int], ...] = (
    (bundled, "importance", 8, 4),
    (bundled, "importance", 32, 4),
    (bundled, "compare", 8, 4),
    (wide, "importance", 4, 16),
)
LIMITS = {"agreement": 1.02, "acceptance": 1.25}


def sweep(module: DepthModule, batch: dict[str, Any], masks: Tensor, new_tokens: int, side: str) -> list[Any]:
    """One pass over a batch; what it tells of the agreement, and the share of tokens that would be accepted."""
    greedy: list[GreedyTokens] = []
    asked: dict[str, Any] = {} if side == "plain" else {"on_greedy": greedy.append}
    tokens, _ = answer_masks(
        module.model,
        model_inputs(batch),
        masks,
        max_new_tokens=new_tokens,
        eos_token_id=module.tokenizer.eos_token_id,
        pad_token_id=module.pad_token_id,
        answer_ids=batch["answer_ids"],
        acceptance=ACCEPTANCE if side == "acceptance" else 0,
        **asked,
    )
    if not greedy:
        return []
    full = full_place(MaskSet.of(masks))
    assert full is not None
    found = token_agreement(tokens, greedy[0], full)
    return [token_columns(row, found) for row in range(len(masks))]


def measure(case: tuple[Callable[[], DepthModule], str, int, int], repeats: int) -> dict[str, Any]:
    make, name, batch_size, new_tokens = case
    module = make()
    (batch,), masks = batches(module, batch_size), mask_sets(16)[name]
    sides = ("plain", *LIMITS)
    columns = [sweep(module, batch, masks, new_tokens, side) for side in sides][-1]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats):
        for place in range(len(sides)):
            side = sides[(turn + place) % len(sides)]
            seconds[side].append(timed(sweep, module, batch, masks, new_tokens, side)[0])
    accepted = [each["accepted"] for of_mask in columns for each in of_mask]
    found: dict[str, Any] = {
        "model": make.__name__,
        "masks": f"{name}, {len(masks)}",
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "accepted_share": sum(text.count("1") for text in accepted) / sum(map(len, accepted)),
        "seconds": {side: statistics.median(each) for side, each in seconds.items()},
    }
    for side, limit in LIMITS.items():
        ratios = [with_it / plain for with_it, plain in zip(seconds[side], seconds["plain"])]
        found |= median_ratio(ratios, f"{side}_ratio")
        found[f"{side}_within_{limit}"] = statistics.median(ratios) <= limit
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", type=int, help="measure this case alone, and keep the others as they were written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"environment": environment(arguments.threads), "cases": [None] * len(CASES)}
    if arguments.again is not None:
        result = json.loads(OUTPUT.read_text())
    for place, case in enumerate(CASES):
        if arguments.again in (None, place):
            torch.manual_seed(SEED)
            load = environment(arguments.threads)["load_average_at_start"]
            found = {"repeats": arguments.repeats, "load_average_at_start": load}
            result["cases"][place] = found | measure(case, arguments.repeats)
            print(json.dumps(result["cases"][place]), flush=True)
    OUTPUT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
