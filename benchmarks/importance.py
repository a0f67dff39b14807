"""What the proxy scores of block importance cost, in plain forward passes of the same batch.

A plain forward is the model's on that batch, in inference mode, with its own attention and logits of the last position
only. A pass of scores is `ProxyScores.update`, with everything that belongs to it (hooks, eager attention, backward,
giving the model back), and an eighth of a `compute`, as if eight batches were pooled. The claim is a ratio of at most 4
for all methods together.

Passes alternate with plain forwards as ABBA or BAAB, by seeded coin toss; each such quadruple gives one ratio, so that
drift of the machine cancels. Reported are the mean ratio of the rounds and its 95% interval, as in `skip_overhead`, for
all methods and for parts of them; run it on an otherwise idle machine.

    python benchmarks/importance.py [--quadruples 5] [--rounds 4] [--models bundled] [--threads 1]
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, SEED, environment
from skip_overhead import mean_ratio, quadruples, random_llama
from sweep import MODELS, batches
from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.callbacks import ProxyImportance
from lit_depth.functional import ProxyScores
from lit_depth.functional.importance.methods import GRADIENT_METHODS, METHODS, TABLE
from lit_depth.functional.inputs import keep_last, with_positions

OUTPUT = RESULTS / "importance.json"
BATCHES_PER_COMPUTE = 8
SETS: dict[str, tuple[str, ...]] = {
    "all methods": METHODS,
    "hidden states": tuple(name for name in METHODS if TABLE[name].kind in ("states", "last_state")),
    "attention entropy": ("attention_entropy",),
    "gradient, Taylor": GRADIENT_METHODS,
}

Case = tuple[PreTrainedModel, dict[str, Tensor], Tensor]


def llama() -> Case:
    """Eight rows of 64 random tokens, all labelled, and a small random Llama."""
    ids = torch.randint(1, 512, (8, 64), generator=torch.Generator().manual_seed(SEED))
    return random_llama(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids


def molmoe(name: str) -> Case:
    """Eight questions of the built-in task with their reference answers, and a MolmoE of `sweep.MODELS`."""
    module = MODELS[name]()
    (batch,) = batches(module, batch_size=8)
    inputs, labels = ProxyImportance().inputs_of(module, batch)
    assert labels is not None
    return module.model.eval(), inputs, labels


CASES: dict[str, Callable[[], Case]] = {
    "random Llama": llama,
    "bundled MolmoE": lambda: molmoe("bundled"),
    "wide MolmoE": lambda: molmoe("wide"),
}


def measure(case: Case, count: int, rounds: int, coin: random.Random) -> list[dict[str, Any]]:
    """Ratio of a pass to a plain forward, for each set of methods, of ``count`` quadruples in each round."""
    model, inputs, labels = case
    plain_inputs = with_positions(model, inputs) | {"use_cache": False, **keep_last(model, 1)}

    @torch.inference_mode()
    def plain() -> None:
        model(**plain_inputs)

    rows = []
    for name, methods in SETS.items():
        scores = ProxyScores(model, methods)

        def update(scores: ProxyScores = scores) -> None:
            scores.update(inputs, labels)

        pairs = [quadruples(update, plain, count, coin) for _ in range(rounds)]
        start = time.perf_counter()
        scores.compute()
        # two passes of scores stand in a quadruple
        share = 2 * (time.perf_counter() - start) / BATCHES_PER_COMPUTE
        rows.append({"methods": name, **mean_ratio([[(a + share, b) for a, b in each] for each in pairs])})
    return rows


def main() -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time proxy scores against plain forward passes (CPU).")
    parser.add_argument("--quadruples", type=int, default=5, help="ABBA quadruples per round (default 5)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds per ratio, even (default 4)")
    short = {name.partition(" ")[0]: name for name in CASES}
    parser.add_argument("--models", nargs="+", choices=list(short), default=list(short), help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.rounds < 4 or arguments.rounds % 2:
        parser.error(f"rounds must be even and at least 4, got {arguments.rounds}")
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"environment": environment(arguments.threads), "models": {}}
    print(f"{'model':<16}{'methods':<20}{'forwards':>9}  {'95% interval':<18}{'ms':>9} / ms")
    for name in (short[model] for model in arguments.models):
        case = CASES[name]()
        gc.disable()
        rows = measure(case, arguments.quadruples, arguments.rounds, random.Random(SEED))
        gc.enable()
        model, inputs, _ = case
        shape = list(inputs["input_ids"].shape)
        result["models"][name] = {"parameters": model.num_parameters(), "batch": shape, "passes": rows}
        for row in rows:
            interval = "[{:.3f}, {:.3f}]".format(*row["interval"])
            print(
                f"{name:<16}{row['methods']:<20}{row['ratio']:>9.3f}  {interval:<18}"
                f"{row['numerator_ms']:>9.2f} / {row['denominator_ms']:.2f}"
            )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
