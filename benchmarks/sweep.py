"""What one pass for all masks saves: the engine against one mask after another, on the same batches in the same run.

- ``importance``: the full model and every single skip (17 masks of 16 blocks).
- ``compare``: all masks that ``lit-depth compare`` evaluates with all policies at every number of blocks.

"Sequential" is what there was before: for every mask, `masked` and transformers' own ``generate`` on the batch. Both
sides answer the same questions, and their answers are compared. "With scores" both sides also compute the
log-probability of the reference answer (one more forward per mask for the sequential side, none for the engine): that
is what a record of `MaskSweep` holds. Without, only answers are timed.

Besides: a teacher-forced importance sweep (scores alone) against one plain evaluation pass of the full model, peak
memory of either side in a process of its own, and the ``lit-depth importance`` command by two processes against one,
each with one thread.

Both sides run once untimed (the sequential one on two masks), then in pairs whose order alternates; reported is the
median of the pairs' ratios. A single pair is timed where it takes minutes. Use an otherwise idle machine.

    python benchmarks/sweep.py [--repeats 3] [--threads 2] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import environment
from torch import Tensor
from transformers import GenerationConfig

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.functional import MaskTrie, leave_one_out, masked, reference_logprob
from lit_depth.functional.sweep import answer_masks
from lit_depth.module import model_inputs
from lit_depth.studies.comparison import POLICIES, plan_masks

REPOSITORY = Path(__file__).resolve().parents[1]
OUTPUT = REPOSITORY / "benchmarks" / "results" / "sweep.json"
NEW_TOKENS = 4
BATCH_SIZES = {"importance": (1, 2, 4, 8, 16, 32), "compare": (1, 4, 8, 32)}


def bundled() -> DepthModule:
    return DepthModule("bundled")


def wide() -> DepthModule:
    """A MolmoE of random weights whose blocks are wide enough to be bound by arithmetic."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        source = REPOSITORY / "configs" / "molmoe_shapes"
        for path in source.iterdir():
            (Path(folder) / path.name).write_bytes(path.read_bytes())
        config = json.loads((source / "config.json").read_text())
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
    data = DepthDataModule(module.processor, batch_size=batch_size, num_samples=batch_size * count)
    return list(data.eval_dataloader("validation"))


def engine(
    module: DepthModule, batch: dict[str, Any], masks: Tensor, scores: bool, new_tokens: int = NEW_TOKENS
) -> tuple[Tensor, Tensor]:
    return answer_masks(
        module.model,
        model_inputs(batch),
        masks,
        max_new_tokens=new_tokens,
        eos_token_id=module.tokenizer.eos_token_id,
        pad_token_id=module.pad_token_id,
        answer_ids=batch["answer_ids"] if scores else None,
    )


@torch.no_grad()
def sequential(
    module: DepthModule, batch: dict[str, Any], masks: Tensor, scores: bool, new_tokens: int = NEW_TOKENS
) -> tuple[Tensor, Tensor]:
    inputs, pad = model_inputs(batch), module.pad_token_id
    length = inputs["input_ids"].shape[1]
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=module.tokenizer.eos_token_id, pad_token_id=pad
    )
    tokens = torch.full((len(masks), len(inputs["input_ids"]), new_tokens), pad)
    logprobs = torch.zeros(len(masks), len(inputs["input_ids"]) if scores else 0)
    for index, mask in enumerate(masks):
        with masked(module.model, mask):
            found = module.model.generate(**inputs, generation_config=config)[:, length:]
            if scores:
                logprobs[index] = reference_logprob(module.model, inputs, batch["answer_ids"], pad_token_id=pad)
        tokens[index, :, : found.shape[1]] = found
    return tokens, logprobs


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def alternate(repeats: int, a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[dict[str, float], Any, Any]:
    """Median seconds of a and of b, the median of b / a over neighbouring runs, and what both returned last."""
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            second, of_b = timed(*b)
            first, of_a = timed(*a)
        else:
            first, of_a = timed(*a)
            second, of_b = timed(*b)
        pairs.append((first, second))
    columns = list(zip(*pairs))
    medians = [round(statistics.median(column), 3) for column in columns]
    ratio = round(statistics.median(y / x for x, y in pairs), 2)
    return {"engine_s": medians[0], "sequential_s": medians[1], "ratio": ratio}, of_a, of_b


def measure(module: DepthModule, name: str, masks: Tensor, batch_size: int, repeats: int) -> dict[str, Any]:
    (batch,) = batches(module, batch_size)
    engine(module, batch, masks, False)
    sequential(module, batch, masks[:2], False)
    row, fast, slow = alternate(
        repeats, (engine, module, batch, masks, False), (sequential, module, batch, masks, False)
    )
    assert torch.equal(fast[0], slow[0]), "the answers differ: their times mean nothing"
    if batch_size == 8:
        scored, fast, slow = alternate(
            1, (engine, module, batch, masks, True), (sequential, module, batch, masks, True)
        )
        torch.testing.assert_close(fast[1], slow[1], atol=1e-3, rtol=1e-4)
        row["ratio_with_scores"] = scored["ratio"]
    trie = MaskTrie(masks)
    counts = {
        "block_forwards": trie.block_forwards,
        "sequential_block_forwards": trie.sequential_block_forwards,
    }
    return {"sweep": name, "masks": len(masks), "batch_size": batch_size, **row, **counts}


def teacher_forced(module: DepthModule, masks: Tensor, batch_size: int, repeats: int) -> dict[str, Any]:
    """Scores of all importance masks against one plain evaluation pass (the full model answers, transformers' own)."""
    (batch,) = batches(module, batch_size)
    engine(module, batch, masks, True, 0)
    full = masks[:1]
    found, _, _ = alternate(repeats, (sequential, module, batch, full, False), (engine, module, batch, masks, True, 0))
    plain, sweep, cost = found.values()
    return {"batch_size": batch_size, "plain_s": plain, "sweep_s": sweep, "cost": cost}


def peak_memory(model: str, sweep: str, side: str, batch_size: int) -> dict[str, int]:
    """Largest resident memory, in MiB, of a process that does nothing but one side once: in all, and what it added."""
    command = [sys.executable, __file__, "--peak", model, sweep, side, str(batch_size)]
    before, after = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:])
    return {"peak": round(after), "added": round(after - before)}


def print_peak(model: str, sweep: str, side: str, batch_size: str) -> None:
    module = MODELS[model]()
    run = engine if side == "engine" else sequential
    (batch,), masks = batches(module, int(batch_size)), mask_sets(module.num_blocks)[sweep]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    run(module, batch, masks, True)
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def processes(num_samples: int) -> dict[str, Any]:
    """The whole importance command by one and by two processes of one thread each."""
    found = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"]
            command += ["-m", "lit_depth", "importance", f"--num_samples={num_samples}", f"--output_dir={folder}"]
            command += ["--data.batch_size=16", "--trainer.accelerator=cpu", f"--trainer.devices={count}"]
            command += ["--trainer.strategy=ddp"]
            environ = {**os.environ, "OMP_NUM_THREADS": "1"}
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environ)
            found[count] = time.perf_counter() - start
    return {
        "num_samples": num_samples,
        "one_process_s": round(found[1], 1),
        "two_processes_s": round(found[2], 1),
        "ratio": round(found[1] / found[2], 2),
    }


def main() -> None:
    """Measure, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description="Time the one-pass engine against one mask after another (CPU).")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs per ratio (default 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--quick", action="store_true", help="batch size 8 only, no processes")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--sweeps", nargs="+", choices=list(BATCH_SIZES), default=list(BATCH_SIZES))
    parser.add_argument("--samples", type=int, default=768, help="samples for the comparison of processes")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print_peak(*arguments.peak)
        return
    result: dict[str, Any] = {"environment": environment(arguments.threads), "new_tokens": NEW_TOKENS, "models": {}}
    print(
        f"{'model':<9}{'sweep':<12}{'batch':>5}{'engine s':>10}{'sequential s':>14}{'ratio':>7}{'with scores':>13}"
        f"{'block forwards':>16}"
    )
    for name in arguments.models:
        module = MODELS[name]()
        rows = []
        for sweep in arguments.sweeps:
            masks = mask_sets(module.num_blocks)[sweep]
            for batch_size in (8,) if arguments.quick else BATCH_SIZES[sweep]:
                row = measure(
                    module, sweep, masks, batch_size, arguments.repeats if name == "bundled" or batch_size <= 8 else 1
                )
                rows.append(row)
                print(
                    f"{name:<9}{sweep:<12}{batch_size:>5}{row['engine_s']:>10.3f}{row['sequential_s']:>14.3f}"
                    f"{row['ratio']:>7.2f}{row.get('ratio_with_scores', ''):>13}"
                    f"{row['block_forwards']:>8} / {row['sequential_block_forwards']}",
                    flush=True,
                )
        forced = teacher_forced(module, mask_sets(module.num_blocks)["importance"], 8, 5)
        print(f"{name}: a teacher-forced importance sweep costs {forced['cost']:.2f} plain evaluation passes")
        memory = {
            sweep: {side: peak_memory(name, sweep, side, 8) for side in ("engine", "sequential")}
            for sweep in arguments.sweeps
        }
        print(f"{name}: peak memory in MiB at batch size 8: {memory}", flush=True)
        result["models"][name] = {"sweeps": rows, "teacher_forced": forced, "peak_memory_mib": memory}
    if not arguments.quick:
        result["processes"] = processes(arguments.samples)
        print(f"two processes against one: {result['processes']}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
