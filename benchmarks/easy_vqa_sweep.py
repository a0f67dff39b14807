"""One pass over the whole test split of easy_vqa under 17 masks, against one mask after another.

The masks are the full model and every block left out, of the bundled checkpoint. The pass is what the commands run
(`evaluate` on the split that reports: data loading, scores and records included). The other side is `masked`,
transformers' generate and the reference answer's log-probability, without data loading; it would take long, so it is
timed for random pairs of a mask and a batch, half of them before the pass and half behind it, and their mean is
multiplied.

    python benchmarks/easy_vqa_sweep.py [--pairs 40] [--threads 2]

easy_vqa is read from the package: pip install --no-deps easy-vqa==1.0
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
from lit_depth.functional import leave_one_out
from lit_depth.studies.shared.evaluate import evaluate
from lit_depth.studies.shared.run_folder import Run

OUTPUT = RESULTS / "easy_vqa.json"


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time one pass over easy_vqa against one mask at a time (CPU).")
    parser.add_argument("--samples", type=int, help="questions (default: all 9,673)")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=40, help="(mask, batch) pairs timed one mask at a time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    module = DepthModule("bundled")
    data = DepthDataModule(module.prompter, "easy_vqa", batch_size=arguments.batch_size, num_samples=arguments.samples)
    module.use_task(data.task.max_new_tokens)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    trainer = DepthTrainer(accelerator="cpu", **quiet)
    masks = torch.cat([torch.ones(1, module.num_blocks, dtype=torch.bool), leave_one_out(module.num_blocks)])

    batches = list(data.eval_dataloader("validation"))
    full = [batch for batch in batches if len(batch["sample_ids"]) == data.batch_size]
    draw, tokens = random.Random(SEED), data.task.max_new_tokens
    sequential(module, full[0], masks[:1], True, tokens)

    def some(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            row, batch = draw.randrange(len(masks)), draw.choice(full)
            start = time.perf_counter()
            sequential(module, batch, masks[row : row + 1], True, tokens)
            seconds.append(time.perf_counter() - start)
        return seconds

    seconds = some(arguments.pairs // 2)
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        scores = evaluate(Run(trainer, module, data, Path(name), {}, 0.01), "validation", list(masks), "masks").scores
        together = time.perf_counter() - start
    seconds += some(arguments.pairs - len(seconds))
    each = sum(seconds) / len(seconds)
    questions = scores.quality.shape[1]
    alone = each * len(masks) * questions / data.batch_size
    result: dict[str, Any] = {
        "environment": environment(arguments.threads),
        "questions": questions,
        "masks": len(masks),
        "batch_size": data.batch_size,
        "seconds": round(together, 1),
        "answers_per_second": round(questions * len(masks) / together, 1),
        "one_by_one": {
            "seconds": round(alone, 1),
            "estimated_from_pairs": arguments.pairs,
            "seconds_per_mask_and_batch": round(each, 4),
        },
        "speedup": round(alone / together, 2),
        "accuracy": dict(zip(scores.mask_ids, scores.quality.mean(axis=1).round(4).tolist())),
    }
    print(json.dumps(result, indent=2))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
