"""Time beam search over ablations, with and without racing, against evaluating the same candidates one mask at a time.

The search is what `lit-depth search` runs on the calibration split: beam 3, up to 4 removed blocks, the bundled model,
records and data loading included. The sequential side is `masked` + transformers' generate + the reference answer's
log-probability, for every mask that the search without racing looked at, on the same batches, without data loading. It
would take long, so its seconds per (mask, batch) are measured on a random subset of both and multiplied; ``--whole``
measures all of them (some twenty minutes on two cores).

Each side runs once, after a warm-up. Also reported: whether racing chose what the search without it chose, and if not,
the difference between the two on the validation split with its interval. Use an otherwise idle machine.

    python benchmarks/search.py [--samples 512] [--rank_by accuracy] [--whole] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, SEED, environment
from sweep import sequential

from lit_depth import DepthModule, DepthTrainer
from lit_depth.data import DepthDataModule
from lit_depth.functional import SearchResult, ablation_masks, mask_id
from lit_depth.functional.statistics import paired_intervals
from lit_depth.studies.search.arguments import SearchArguments
from lit_depth.studies.search.finders import run_search
from lit_depth.studies.search.score_cache import ScoreCache
from lit_depth.studies.shared.evaluate import evaluate
from lit_depth.studies.shared.run_folder import Run

OUTPUT = RESULTS / "search.json"


def search(
    trainer: DepthTrainer, module: DepthModule, data: DepthDataModule, options: dict[str, Any], folder: Path
) -> tuple[float, SearchResult]:
    start = time.perf_counter()
    cache = ScoreCache(Run(trainer, module, data, folder, {}, 0.01), "calibration", folder)
    own = {"baselines": False, "confidence": 0.95, "num_units": cache.num_units}
    result = run_search(cache, SearchArguments(**options, **own), seed=SEED)
    return time.perf_counter() - start, result


def sequential_seconds(
    module: DepthModule, data: DepthDataModule, masks: torch.Tensor, pairs: int | None
) -> dict[str, Any]:
    """Seconds of all masks on all batches one after another; estimated from random pairs of both, or whole (None)."""
    batches, tokens = list(data.eval_dataloader("calibration")), data.task.max_new_tokens
    generator = random.Random(SEED)
    full = [batch for batch in batches if len(batch["sample_ids"]) == data.batch_size]
    asked = [(row, batch) for batch in batches for row in range(len(masks))]
    if pairs is not None:
        asked = [(generator.randrange(len(masks)), generator.choice(full)) for _ in range(pairs)]
    sequential(module, batches[0], masks[:1], True, tokens)
    start = time.perf_counter()
    for row, batch in asked:
        sequential(module, batch, masks[row : row + 1], True, tokens)
    each = (time.perf_counter() - start) / len(asked)
    return {
        "seconds": round(each * len(masks) * len(batches), 1),
        "estimated_from_pairs": pairs,
        "seconds_per_mask_and_batch": round(each, 4),
        "masks": len(masks),
        "batch_size": data.batch_size,
    }


def choices(
    trainer: DepthTrainer,
    module: DepthModule,
    data: DepthDataModule,
    full: SearchResult,
    racing: SearchResult,
    folder: Path,
) -> list[dict[str, Any]]:
    """What both chose for each number of blocks, and on the validation split accuracy without racing minus with."""
    pairs = [(a.best.removed, b.best.removed) for a, b in zip(full.levels, racing.levels)]
    masks = list(ablation_masks(module.num_blocks, [removed for pair in pairs for removed in pair]))
    run = Run(trainer, module, data, folder, {}, 0.01)
    scores = evaluate(run, "validation", masks, "choices").scores
    entries = []
    for without, with_racing in pairs:
        ids = [mask_id(mask) for mask in ablation_masks(module.num_blocks, [without, with_racing])]
        first, second = scores.rows(ids)
        (interval,) = paired_intervals([first - second], scores.images)
        entry = {"without_racing": without, "with_racing": with_racing, "difference": interval.estimate}
        entries.append(entry | {"ci": [interval.low, interval.high], "tied": interval.low <= 0 <= interval.high})
    return entries


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time beam search over ablations against one mask at a time (CPU).")
    parser.add_argument("--samples", type=int, default=512, help="samples of each split (default 512)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=40, help="(mask, batch) pairs timed one mask at a time")
    parser.add_argument("--whole", action="store_true", help="time all of them instead")
    parser.add_argument("--rank_by", choices=("accuracy", "reference_logprob"), default="accuracy")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    module = DepthModule("bundled")
    sizes = {"num_samples": arguments.samples, "calibration_samples": arguments.samples}
    data = DepthDataModule(module.prompter, batch_size=arguments.batch_size, **sizes)
    module.use_task(data.task.max_new_tokens)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    trainer = DepthTrainer(accelerator="cpu", **quiet)
    options: dict[str, Any] = {
        "strategy": "beam",
        "beam_width": 3,
        "max_blocks_to_remove": 4,
        "keep": [],
        "rank_by": arguments.rank_by,
        "epsilon": 0.02,
        "delta": 0.05,
        "exhaustive": False,
    }
    result: dict[str, Any] = {
        "environment": environment(arguments.threads),
        "num_samples": arguments.samples,
        **options,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm = DepthDataModule(module.prompter, batch_size=arguments.batch_size, calibration_samples=64)
        search(trainer, module, warm, {**options, "racing": False, "max_blocks_to_remove": 1}, folder / "warm")
        found = {}
        for side, is_racing in (("without_racing", False), ("with_racing", True)):
            seconds, found[side] = search(trainer, module, data, {**options, "racing": is_racing}, folder / side)
            result[side] = {
                "seconds": round(seconds, 1),
                "evaluations": found[side].evaluations,
                "saved": found[side].saved,
                "settled": [level.settled for level in found[side].levels],
                "tied": [len(level.tied) for level in found[side].levels],
            }
            print(side, result[side], flush=True)
        removed = [ablation.removed for level in found["without_racing"].levels for ablation in level.ablations]
        masks = ablation_masks(module.num_blocks, removed)
        result["sequential"] = sequential_seconds(module, data, masks, None if arguments.whole else arguments.pairs)
        for side in found:
            result[side]["speedup"] = round(result["sequential"]["seconds"] / result[side]["seconds"], 2)
        result["choices"] = choices(trainer, module, data, *found.values(), folder / "report")
    for key in ("sequential", "choices"):
        print(key, result[key])
    print({side: result[side]["speedup"] for side in found})
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
