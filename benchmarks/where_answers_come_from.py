"""What the logit lens adds to a sweep, and what one forward for all knockouts saves against one forward for each.

Both on the bundled model, each as ratios of two times taken in turns within one run, with the median and a distribution
free interval of the ratios:

- the lens: the leave-one-out sweep of 17 masks on a batch of questions, scored and answered, with it over without it;
  block rows are counted on either side and have to be the same;
- knockouts of the image and every word of one question from every block: one plain forward for each span and first
  block, with the attention cut by hooks, over `span_knockout`; both give the same log-probabilities.

    python benchmarks/where_answers_come_from.py [--repeats 9] [--threads 1] [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import RESULTS, environment, median_ratio

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional import MaskSet, find_blocks, leave_one_out, span_knockout
from lit_depth.functional.engine.api import answer_masks
from lit_depth.functional.token_masking.knockout import knockout_block_rows
from lit_depth.functional.token_masking.prompt import token_kinds
from lit_depth.module import model_inputs
from lit_depth.studies.tokens.knockout_spans import default_spans

REPOSITORY = Path(__file__).resolve().parents[1]
OUTPUT = RESULTS / "where_answers_come_from.json"
sys.path.insert(0, str(REPOSITORY))


def in_turns(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds of each, and the ratio of the first to the second; which of them begins changes from turn to turn."""
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    for turn in range(repeats + 1):
        sides = [("first", first), ("second", second)]
        for name, side in sides if turn % 2 else reversed(sides):
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    pairs = list(zip(seconds["first"], seconds["second"]))[1:]  # the first turn gets to know the model
    ratios = [one / other for one, other in pairs]
    return {
        "seconds": [float(np.median(side)) for side in zip(*pairs)],
        **median_ratio(ratios),
    }


def count_rows(model: torch.nn.Module, run: Callable[[], Any]) -> int:
    """Rows that blocks run on, as a hook on the first norm of every block sees them."""
    counted: list[int] = []
    norms = [next(module for name, module in block.named_modules() if "norm" in name) for block in find_blocks(model)]
    hooks = [norm.register_forward_hook(lambda _module, args, _output: counted.append(len(args[0]))) for norm in norms]
    run()
    for hook in hooks:
        hook.remove()
    return sum(counted)


def measure_lens(module: DepthModule, size: int, repeats: int) -> dict[str, Any]:
    data = DepthDataModule(module.prompter, batch_size=size, num_samples=size)
    batch = next(iter(data.eval_dataloader("validation")))
    masks = MaskSet.full(module.num_blocks).union(MaskSet.of(leave_one_out(module.num_blocks)))
    options = {"max_new_tokens": 4, "eos_token_id": module.end_token_ids, "pad_token_id": module.pad_token_id}
    sweep = partial(answer_masks, module.model, model_inputs(batch), masks, answer_ids=batch["answer_ids"], **options)
    told: list[Any] = []
    with_lens = partial(sweep, on_lens=told.append)
    sweep()
    rows = [count_rows(module.model, side) for side in (with_lens, sweep)]
    assert rows[0] == rows[1], rows
    return {"samples": size, "masks": len(masks), "block_rows": rows, **in_turns(with_lens, sweep, repeats)}


def measure_knockouts(module: DepthModule, repeats: int) -> dict[str, Any]:
    from tests.helpers.hiding import knocked_out

    data = DepthDataModule(module.prompter, batch_size=1, num_samples=1)
    batch = next(iter(data.eval_dataloader("validation")))
    inputs, answer = model_inputs(batch), batch["answer_ids"][:1]
    ids = inputs["input_ids"][0].tolist()
    spans = {
        each.name: each.positions for each in default_spans(token_kinds(module.processor, ids), ids, module.tokenizer)
    }
    every = [(name, block) for name in spans for block in range(module.num_blocks)]

    def one_by_one() -> list[float]:
        return [knocked_out(module.model, inputs, answer, spans[name], block)[0] for name, block in every]

    together = partial(span_knockout, module.model, inputs, spans, answer)
    found = together().answers.set_index(["span", "from_block"])["answer_logprob"]
    worst = float(np.abs(np.array([found[key] for key in every]) - np.array(one_by_one())).max())
    rows = [count_rows(module.model, side) for side in (one_by_one, together)]
    assert rows[1] == knockout_block_rows(module.num_blocks, len(spans)), rows
    return {
        "tokens": len(ids),
        "spans": len(spans),
        "block_rows": rows,
        "largest_difference_nats": worst,
        **in_turns(one_by_one, together, repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one repeat, and nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about, repeats = environment(arguments.threads), 1 if arguments.quick else arguments.repeats
    module = DepthModule("bundled").eval()
    result = {
        "environment": about,
        "lens_over_plain_sweep": [measure_lens(module, size, repeats) for size in (1, 16)],
        "one_forward_each_over_knockouts_together": measure_knockouts(module, repeats),
    }
    print(json.dumps(result, indent=2))
    if not arguments.quick:
        OUTPUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
