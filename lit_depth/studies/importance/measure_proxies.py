"""Proxy scores of one split for a study, and what they cost: measured once, kept in the folder of the run."""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lit_depth.callbacks import ProxyImportance
from lit_depth.callbacks.mask_sweep import located
from lit_depth.functional import MaskSet, ProxyScores, leave_one_out, reference_logprob
from lit_depth.module import DepthModule, model_inputs
from lit_depth.results.store import read_of_run, write_of_run
from lit_depth.studies.shared.run_folder import Run

PROXIES = "proxy_scores.json"
# key of what one pass for all proxies costs
TOGETHER = "all proxies in one pass"
_REPEATS = 3
# of a batch size that is found automatically: a backward holds the activations of all blocks
_FIRST_BATCH = 32


def measure_proxies(run: Run, split: str, methods: Sequence[str], blocks: Sequence[int]) -> dict[str, Any]:
    """Scores of a split and what they cost; kept in the run's folder, so that a run started again only reads them.

    Returns:
        ``{"scores": {method: [num_blocks]}, "forwards": {method: cost}, "forward_seconds", "batch_size"}``, of which
        ``forwards`` has the drops too, and all proxies together.

    Raises:
        ValueError: If a method has no score for some block, or cannot be taken of this model.
    """
    path, model, trainer = run.folder / PROXIES, run.model, run.trainer
    if path.is_file():
        return read_of_run(path, scores=dict, forwards=dict, forward_seconds=float, batch_size=int)
    each = copy.copy(run.datamodule)
    automatic = each.batch_size == "auto"
    each.batch_size = _FIRST_BATCH if automatic else each.batch_size
    model.use_task(each.task.max_new_tokens)
    trainer.precision_plugin.convert_module(model)
    model.to(trainer.strategy.root_device)
    try:
        while True:
            try:
                found = _measure(replace(run, datamodule=each), split, methods, blocks)
                break
            except torch.OutOfMemoryError:
                # a batch size that was asked for is kept
                if not automatic or each.batch_size == 1:
                    raise
                each.batch_size = int(each.batch_size) // 2
                torch.cuda.empty_cache()
    finally:
        model.cpu()
    write_of_run(path, found)
    return found


def _measure(run: Run, split: str, methods: Sequence[str], blocks: Sequence[int]) -> dict[str, Any]:
    model, plugin = run.model, run.trainer.precision_plugin
    scores = ProxyScores(model.model, methods, model.hparams["blocks"])
    inputs_of, first = ProxyImportance(methods).inputs_of, None
    loader = run.datamodule.eval_dataloader(split)
    with plugin.forward_context():
        for batch in tqdm(loader, desc=f"proxy scores, {split} split", unit="batch", file=sys.stderr):
            if not batch["sample_ids"]:  # all bad
                continue
            batch = plugin.convert_input(batch)
            batch = model.transfer_batch_to_device(batch, model.device, 0)
            first = batch if first is None else first
            with located(f"samples {', '.join(batch['sample_ids'])}", model, run.trainer.precision):
                scores.update(*inputs_of(model, batch))
        if first is None:
            raise ValueError(f"{split} split of {run.datamodule.task.name}: there are no samples to evaluate")
        found = {method: values.tolist() for method, values in scores.compute().items()}
        for method, values in found.items():
            missing = [block_idx for block_idx, value in enumerate(values) if not np.isfinite(value)]
            if missing:
                raise ValueError(f"--methods: {method} has no score for blocks {missing} of this model: leave it out")
        del scores  # its gradients
        seconds = _time_passes(_passes(model, first, methods, blocks))
    plain = seconds.pop("forward")
    return {
        "scores": found,
        "forwards": {name: value / plain for name, value in seconds.items()},
        "forward_seconds": plain,
        "batch_size": len(first["sample_ids"]),
    }


def _passes(
    model: DepthModule, batch: Mapping[str, Any], methods: Sequence[str], blocks: Sequence[int]
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """What is timed of one batch: each prepares what does not count, and returns what does."""
    inputs, answers, pad = model_inputs(batch), batch["answer_ids"], model.pad_token_id
    masks = MaskSet.full(model.num_blocks).union(MaskSet.of(leave_one_out(model.num_blocks)[list(blocks)]))
    extended = ProxyImportance(methods).inputs_of(model, batch)

    def forward() -> Any:
        with torch.no_grad():
            return reference_logprob(model.model, inputs, answers, pad_token_id=pad)

    def proxies(names: Sequence[str]) -> Callable[[], Any]:
        # one of its own each time: gradients of several would fill the memory
        scores = ProxyScores(model.model, names, model.hparams["blocks"])
        return lambda: scores.update(*extended)

    return {
        "forward": lambda: forward,
        "accuracy_drop": lambda: partial(model.answer, batch, masks, model.max_new_tokens),
        "reference_logprob_drop": lambda: partial(model.answer, batch, masks, 0),
        **{method: lambda method=method: proxies([method]) for method in methods},  # type: ignore[misc]
        TOGETHER: lambda: proxies(methods),
    }


def _time_passes(passes: Mapping[str, Callable[[], Callable[[], Any]]]) -> dict[str, float]:
    """Median seconds of each pass; they take turns, so that a drift of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(_REPEATS):
        for name, prepare in passes.items():
            run = prepare()
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
