"""What one pass for all masks saves: the engine against one mask after another, on the same batches in the same run.

- ``importance``: the full model and every single skip (17 masks of 16 blocks).
- ``compare``: all masks that ``lit-depth compare`` evaluates with all policies at every number of blocks.

Either side makes the records of `MaskSweep`: for every mask and sample the greedy answer and the log-probability of
the reference answer. "Sequential" is what there was before: one mask after another, `masked`, transformers' own
``generate`` on the batch, and one more forward for the log-probability (the engine has it from its only pass). Both
sides answer the same questions, and their answers and scores are compared. "Answers alone" is the engine as it is
against what the sequential side spends on its answers; "no reference" besides takes the reference answers, which it
uses as drafts, from the engine.

"Bound" is what arithmetic alone would give: the tokens that blocks read on the sequential side (rows times positions,
in prompts, decode steps and the scoring forward, counted while it runs) over those that they read in the engine. What
lies outside the blocks (vision, head, start of a call) is in neither; the engine can be above it where calls of few
rows are bound by anything but arithmetic. "Share" is the ratio over this bound.

Besides: a teacher-forced importance sweep (scores alone) against one plain evaluation pass of the full model, and the
peak memory of either side in a process of its own.

Both sides run once untimed (the sequential one on two masks), then in pairs whose order alternates; reported is the
median of the pairs' ratios, with its interval (`median_ratio`). A single pair is timed where it takes minutes. Use an
otherwise idle machine.

    python benchmarks/sweep.py [--repeats 3] [--threads 2] [--quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, SEED, environment, median_ratio
from torch import Tensor
from transformers import GenerationConfig

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional import MaskTrie, find_blocks, leave_one_out, masked, reference_logprob
from lit_depth.functional.engine.api import answer_masks
from lit_depth.models.loading import BUNDLED
from lit_depth.module import model_inputs
from lit_depth.studies.shared.mask_grid import POLICIES, plan_masks

OUTPUT = RESULTS / "sweep.json"
NEW_TOKENS = 4
BATCH_SIZES = {"importance": (1, 2, 4, 8, 16, 32), "compare": (1, 2, 4, 8, 16, 32)}


def bundled() -> DepthModule:
    return DepthModule("bundled")


def wide() -> DepthModule:
    """A MolmoE of random weights whose blocks are wide enough to be bound by arithmetic."""
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(BUNDLED, folder, dirs_exist_ok=True)
        config = json.loads((BUNDLED / "config.json").read_text())
        config |= {"d_model": 512, "n_heads": 8, "n_kv_heads": 8, "moe_num_experts": 16, "mlp_hidden_size": 512}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        module = DepthModule(folder, from_scratch=True)
    module.model.eval()
    with torch.no_grad():
        # answers of random weights never end by themselves, and are all alike without this
        module.model.lm_head.weight.mul_(20)
    return module


MODELS = {"bundled": bundled, "wide": wide}


def mask_sets(num_blocks: int) -> dict[str, Tensor]:
    full = torch.ones(1, num_blocks, dtype=torch.bool)
    # any order of importance will do, as long as its masks are not those of another policy
    order = [1.0 / (1 + (7 * block_idx) % num_blocks) for block_idx in range(num_blocks)]
    plan = plan_masks(POLICIES, range(1, num_blocks + 1), num_blocks, order, num_seeds=5)
    distinct = {planned.id: planned.mask for planned in plan}
    return {
        "importance": torch.cat([full, leave_one_out(num_blocks)]),
        "compare": torch.stack(list(distinct.values())),
    }


def batches(module: DepthModule, batch_size: int, count: int = 1) -> list[dict[str, Any]]:
    data = DepthDataModule(module.prompter, batch_size=batch_size, num_samples=batch_size * count)
    return list(data.eval_dataloader("validation"))


def engine(
    module: DepthModule, batch: dict[str, Any], masks: Tensor, scores: bool, new_tokens: int = NEW_TOKENS, **kind: Any
) -> tuple[Tensor, Tensor]:
    return answer_masks(
        module.model,
        model_inputs(batch),
        masks,
        max_new_tokens=new_tokens,
        eos_token_id=module.tokenizer.eos_token_id,
        pad_token_id=module.pad_token_id,
        answer_ids=batch["answer_ids"] if scores else None,
        **kind,
    )


@torch.no_grad()
def sequential(
    module: DepthModule, batch: dict[str, Any], masks: Tensor, scores: bool, new_tokens: int = NEW_TOKENS
) -> tuple[Tensor, Tensor, float]:
    """Answers, log-probabilities, and the seconds that the log-probabilities took."""
    inputs, pad = model_inputs(batch), module.pad_token_id
    length = inputs["input_ids"].shape[1]
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=module.tokenizer.eos_token_id, pad_token_id=pad
    )
    tokens = torch.full((len(masks), len(inputs["input_ids"]), new_tokens), pad)
    logprobs = torch.zeros(len(masks), len(inputs["input_ids"]) if scores else 0)
    scoring = 0.0
    for index, mask in enumerate(masks):
        with masked(module.model, mask):
            found = module.model.generate(**inputs, generation_config=config)[:, length:]
            if scores:
                seconds, logprobs[index] = timed(
                    lambda: reference_logprob(module.model, inputs, batch["answer_ids"], pad_token_id=pad)
                )
                scoring += seconds
        tokens[index, :, : found.shape[1]] = found
    return tokens, logprobs, scoring


@contextmanager
def counted_tokens(module: DepthModule) -> Iterator[list[int]]:
    """Tokens that blocks read while this is open, however they are driven: a list of one number."""
    total = [0]

    def count(_mlp: Any, arguments: tuple[Any, ...]) -> None:
        total[0] += arguments[0].shape[:-1].numel()

    hooks = [block.mlp.register_forward_pre_hook(count) for block in find_blocks(module.model)]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def counting(module: DepthModule, *call: Any) -> tuple[Any, int]:
    """What a side returns, and the tokens that its blocks read."""
    with counted_tokens(module) as tokens:
        found = call[0](module, *call[1:])
    return found, tokens[0]


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def alternate(repeats: int, *sides: tuple[Any, ...]) -> tuple[list[float], list[list[float]], list[Any]]:
    """Median seconds of each side, ratios of each to the first in the same round, and what each returned last."""
    rounds, found = [], [None] * len(sides)
    for repeat in range(repeats):
        seconds = [0.0] * len(sides)
        order = range(len(sides)) if repeat % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            seconds[side], found[side] = timed(*sides[side])
        rounds.append(seconds)
    medians = [round(statistics.median(column), 3) for column in zip(*rounds)]
    ratios = [[row[side] / row[0] for row in rounds] for side in range(len(sides))]
    return medians, ratios, found


def measure(module: DepthModule, name: str, masks: Tensor, batch_size: int, repeats: int) -> dict[str, Any]:
    (batch,) = batches(module, batch_size)
    engine(module, batch, masks, True)
    sequential(module, batch, masks[:2], True)
    calls = (engine, batch, masks, True), (sequential, batch, masks, True), (engine, batch, masks, False)
    # the count is a hook of one addition per block, on all sides alike
    seconds, ratios, counted = alternate(repeats, *((counting, module, *call) for call in calls))
    found, tokens = zip(*counted)
    bound = tokens[1] / tokens[0]
    answering_s = seconds[1] - found[1][2]
    for answers in found:
        assert torch.equal(answers[0], found[1][0]), "the answers differ: their times mean nothing"
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-3, rtol=1e-4)
    trie = MaskTrie(masks)
    return {
        "sweep": name,
        "masks": len(masks),
        "batch_size": batch_size,
        "engine_s": seconds[0],
        "sequential_s": seconds[1],
        **median_ratio(ratios[1], digits=2),
        "bound": round(bound, 2),
        "share_of_bound": round(statistics.median(ratios[1]) / bound, 2),
        "engine_block_tokens": tokens[0],
        "sequential_block_tokens": tokens[1],
        "ratio_answers_alone": round(answering_s / seconds[0], 2),
        "ratio_no_reference": round(answering_s / seconds[2], 2),
        "right_answers": share_right(batch, found[1][0]),
        "block_forwards": trie.block_forwards,
        "sequential_block_forwards": trie.sequential_block_forwards,
    }


def share_right(batch: dict[str, Any], tokens: Tensor) -> float:
    """Share of (mask, sample) rows whose answer begins with the whole reference: these need no decoding."""
    answers = batch["answer_ids"][:, : tokens.shape[2]]
    same = (tokens[:, :, : answers.shape[1]] == answers) | (answers < 0)
    return round(same.all(-1).float().mean().item(), 3)


def teacher_forced(module: DepthModule, masks: Tensor, batch_size: int, repeats: int) -> dict[str, Any]:
    """Scores of all importance masks against one plain evaluation pass (the full model answers, transformers' own)."""
    (batch,) = batches(module, batch_size)
    engine(module, batch, masks, True, 0)
    full = masks[:1]
    sides = ((sequential, module, batch, full, False), (engine, module, batch, masks, True, 0))
    seconds, ratios, _ = alternate(repeats, *sides)
    return {
        "batch_size": batch_size,
        "plain_s": seconds[0],
        "sweep_s": seconds[1],
        **median_ratio(ratios[1], "cost", 2),
    }


def peak_memory(model: str, sweep: str, side: str, batch_size: int) -> dict[str, int]:
    """Largest resident memory in MiB while one side runs in its own process: in all, and beyond the loaded model."""
    command = [sys.executable, __file__, "--peak", model, sweep, side, str(batch_size)]
    before, peak = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:])
    return {"peak": peak // 1024, "added": (peak - before) // 1024}


def print_peak(model: str, sweep: str, side: str, batch_size: str) -> None:
    module = MODELS[model]()
    run = engine if side == "engine" else sequential
    (batch,), masks = batches(module, int(batch_size)), mask_sets(module.num_blocks)[sweep]
    run(module, batch, masks[:1], True)  # what the first call of all allocates once belongs to neither side
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the peak that loading reached
    run(module, batch, masks, True)
    print(before, resident("VmHWM"))


def resident(name: str) -> int:
    """KiB that Linux reports of this process: VmRSS now, VmHWM at most."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1])


def main() -> None:
    """Measure, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time the one-pass engine against one mask after another (CPU).")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs per ratio (default 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--quick", action="store_true", help="batch size 8 only")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sweeps", nargs="+", choices=list(BATCH_SIZES), default=list(BATCH_SIZES))
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print_peak(*arguments.peak)
        return
    # models, sweeps and batch sizes that are not asked for stay as they were measured
    result: dict[str, Any] = {"new_tokens": NEW_TOKENS, "models": {}}
    if arguments.output.is_file():
        result = json.loads(arguments.output.read_text(encoding="utf-8"))
    about = environment(arguments.threads)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:  # after every figure: a run takes long, and what it measured should survive it
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    print(
        f"{'model':<9}{'sweep':<12}{'batch':>5}{'engine s':>10}{'sequential s':>14}{'ratio':>7}{'bound':>7}{'share':>7}"
        f"{'answers alone':>15}{'no reference':>14}{'block forwards':>16}"
    )
    for name in arguments.models:
        module = MODELS[name]()
        figures = result["models"].setdefault(name, {"sweeps": [], "teacher_forced": {}, "peak_memory_mib": {}})
        for sweep in arguments.sweeps:
            masks = mask_sets(module.num_blocks)[sweep]
            for batch_size in (8,) if arguments.quick else BATCH_SIZES[sweep]:
                slow = name != "bundled" and (batch_size > 8 or sweep == "compare")
                row = measure(module, sweep, masks, batch_size, 1 if slow else arguments.repeats)
                others = [old for old in figures["sweeps"] if (old["sweep"], old["batch_size"]) != (sweep, batch_size)]
                figures["sweeps"] = [*others, row | {"environment": about}]
                write()
                print(
                    f"{name:<9}{sweep:<12}{batch_size:>5}{row['engine_s']:>10.3f}{row['sequential_s']:>14.3f}"
                    f"{row['ratio']:>7.2f}{row['bound']:>7.2f}{row['share_of_bound']:>7.2f}"
                    f"{row['ratio_answers_alone']:>15.2f}{row['ratio_no_reference']:>14.2f}"
                    f"{row['block_forwards']:>8} / {row['sequential_block_forwards']}",
                    flush=True,
                )
        scored = teacher_forced(module, mask_sets(module.num_blocks)["importance"], 8, 5)
        figures["teacher_forced"] = scored | {"environment": about}
        cost = figures["teacher_forced"]["cost"]
        print(f"{name}: a teacher-forced importance sweep costs {cost:.2f} plain evaluation passes")
        for sweep in arguments.sweeps:
            sides = {side: peak_memory(name, sweep, side, 8) for side in ("engine", "sequential")}
            figures["peak_memory_mib"][sweep] = sides
            print(f"{name}: peak memory in MiB, {sweep}, batch size 8: {sides}", flush=True)
        write()
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
