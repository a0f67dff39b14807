"""Importance sweeps over halves of blocks, and over decode steps alone: the engine against one mask after another.

- ``sublayer``: the full model and every single skip of an attention or an MLP (33 masks of 32 halves).
- ``decode``: the full model and every single skip of a block (17 masks), applied to decode steps alone.
- ``decode without the prompt``: the 17 masks applied to the prompt alone.

Those of blocks in both phases are in ``sweep.py``.

Either side gives for every mask and sample the greedy answer and the log-probability of the reference answer. "One mask
after another" is `masked`, transformers' own ``generate`` on the batch, and one more reading of the reference. Answers
of both sides are compared. "Answers alone" counts the engine with everything against ``generate`` alone.

Both sides run once untimed, then in pairs whose order alternates. Each pair gives one ratio of CPU seconds of the
process; reported are their median and its 95% interval. ``bound`` is the ratio of block rows on prompts, counted.

    python benchmarks/sweep_kinds.py [--repeats 6] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from environment import RESULTS, environment, interval_text, median_ratio
from sweep import NEW_TOKENS, batches, bundled, engine
from torch import Tensor

from lit_depth import DepthModule
from lit_depth.functional import MaskSet, MaskTrie, leave_one_out, masked, reference_logprob
from lit_depth.functional.engine.phases import Phases
from lit_depth.module import model_inputs

OUTPUT = RESULTS / "sweep_kinds.json"
KINDS: dict[str, dict[str, Any]] = {
    "sublayer": {"granularity": "sublayer"},
    "decode": {"phase": "decode"},
    "decode without the prompt": {"phase": "prefill", "decode_without_prompt": True},
}
TARGETS = {"sublayer": 4.0, "decode": 3.0}
BATCH_SIZES = (1, 8)


def together(module: DepthModule, batch: dict[str, Any], masks: Tensor, kind: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return engine(module, batch, masks, True, **kind)


@torch.no_grad()
def one_by_one(
    module: DepthModule, batch: dict[str, Any], masks: Tensor, kind: dict[str, Any]
) -> tuple[Tensor, Tensor, float]:
    """Answers, log-probabilities, and the CPU seconds of these."""
    inputs, pad = model_inputs(batch), module.pad_token_id
    length, rows = inputs["input_ids"].shape[1], len(inputs["input_ids"])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": pad}
    options["eos_token_id"] = module.tokenizer.eos_token_id
    tokens, logprobs = torch.full((len(masks), rows, NEW_TOKENS), pad), torch.zeros(len(masks), rows)
    scoring, in_phases = 0.0, "phase" in kind
    for index, mask in enumerate(masks):
        with masked(module.model, mask, **kind):
            found = module.model.generate(**inputs, **options)[:, length:]
            start = time.process_time()
            logprobs[index] = reference_logprob(
                module.model, inputs, batch["answer_ids"], pad_token_id=pad, in_phases=in_phases
            )
            scoring += time.process_time() - start
        tokens[index, :, : found.shape[1]] = found
    return tokens, logprobs, scoring


def cpu_seconds(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.process_time()
    found = function(*arguments)
    return time.process_time() - start, found


def measure(module: DepthModule, name: str, batch_size: int, repeats: int) -> dict[str, Any]:
    kind, (batch,) = KINDS[name], batches(module, batch_size)
    num_units = module.num_blocks * (2 if "granularity" in kind else 1)
    masks = torch.cat([torch.ones(1, num_units, dtype=torch.bool), leave_one_out(num_units)])
    case = module, batch, masks, kind
    together(*case)
    one_by_one(module, batch, masks[:2], kind)
    ratios, answering, seconds = [], [], []
    for repeat in range(repeats):
        sides = (together, one_by_one) if repeat % 2 == 0 else (one_by_one, together)
        found = {side: cpu_seconds(side, *case) for side in sides}
        (ours, answers), (theirs, expected) = found[together], found[one_by_one]
        assert torch.equal(answers[0], expected[0]), "the answers differ: their times mean nothing"
        torch.testing.assert_close(answers[1], expected[1], atol=1e-3, rtol=1e-4)
        ratios.append(theirs / ours)
        answering.append((theirs - expected[2]) / ours)
        seconds.append((ours, theirs))
    phases = Phases(**{key: value for key, value in kind.items() if key != "granularity"})
    trie = MaskTrie(phases.of_prompt(MaskSet.of(masks, granularity=kind.get("granularity"))))
    found_row: dict[str, Any] = {
        "kind": name,
        "masks": len(masks),
        "batch_size": batch_size,
        "engine_cpu_s": round(statistics.median(ours for ours, _ in seconds), 4),
        "one_by_one_cpu_s": round(statistics.median(theirs for _, theirs in seconds), 4),
        **median_ratio(ratios),
        "ratio_answers_alone": round(statistics.median(answering), 3),
        "bound_on_prompts": round(trie.sequential_block_forwards / trie.block_forwards, 3),
    }
    return found_row


def main() -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6, help="pairs of runs per ratio (default 6)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"environment": environment(arguments.threads), "new_tokens": NEW_TOKENS}
    result |= {"repeats": arguments.repeats, "targets_at_batch_8": TARGETS, "sweeps": []}
    module = bundled()
    print(f"{'kind':<28}{'batch':>5}{'engine s':>10}{'one by one s':>14}{'ratio':>8}  {'95% interval':<16}bound")
    for name in KINDS:
        for batch_size in BATCH_SIZES:
            row = measure(module, name, batch_size, arguments.repeats)
            result["sweeps"].append(row)
            OUTPUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            interval = interval_text(row["ratio_ci"])
            print(
                f"{name:<28}{batch_size:>5}{row['engine_cpu_s']:>10.3f}{row['one_by_one_cpu_s']:>14.3f}"
                f"{row['ratio']:>8.2f}  {interval:<16}{row['bound_on_prompts']:.2f}",
                flush=True,
            )
    print(f"wrote {OUTPUT}")


if __name__ == "__main__":
    main()
