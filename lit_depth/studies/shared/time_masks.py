"""Time masks against each other on the same requests, and keep every time."""

import copy
import platform
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lit_depth.functional import from_mask_id
from lit_depth.functional.engine.static_decode import StaticDecoder
from lit_depth.functional.inputs import with_answers
from lit_depth.functional.latency.stage_timer import summarize, time_generation
from lit_depth.functional.latency.static_timing import Decoding, time_static_generation
from lit_depth.functional.statistics.median import median_interval
from lit_depth.module import DepthModule, model_inputs
from lit_depth.results.records import RecordWriter, read_records
from lit_depth.studies.shared.run_folder import Run

# lengths of prompts, in pieces, that steps of every mask are kept for on static buffers
_SHAPES = 4
STAGES = ("vision", "prefill", "decode", "decode_per_token", "ttft", "total")


def time_masks(
    run: Run,
    split: str,
    masks: Sequence[str],
    path: Path,
    *,
    num_requests: int,
    new_tokens: int,
    threads: int,
    batch_size: int = 1,
    more_tokens: int = 0,
    decoding: Decoding = "dynamic",
) -> pd.DataFrame:
    """Time the same requests under every mask; a request that was interrupted is measured again, under all masks.

    Each pair of requests visits the masks in a random order of its own, there and back, so that a steady drift of the
    machine cancels. The first request is answered under every mask before anything counts.

    What ``path`` holds already is not measured again. Requests are fewer where the split has no more readable samples;
    each generates ``new_tokens`` whatever the end tokens. ``more_tokens`` make each prompt longer. With
    ``decoding="static"`` tokens are decoded on static buffers (`StaticDecoder`). The rows, one per (mask, request),
    have the times of all `STAGES` in milliseconds, the numbers of tokens, and on a GPU the peak memory in bytes,
    weights included.

    Raises:
        ValueError: If not a single request could be made.
    """
    trainer, model = run.trainer, run.model
    device, before = trainer.strategy.root_device, torch.get_num_threads()
    earlier = read_records([path] if path.is_file() else [], keep="last")
    counts = earlier[earlier["mask"].isin(masks)].groupby("sample")["mask"].nunique()
    done = set(counts[counts == len(masks)].index)
    run.effort.read(path, bool(done))
    each = copy.copy(run.datamodule.for_each_task()[0])
    each.batch_size, each.max_new_tokens = batch_size, new_tokens
    made: list[str] = []
    model.to(device)
    torch.set_num_threads(threads)
    blocks = model.hparams["blocks"]
    static = StaticDecoder(model.model, blocks=blocks, max_steps=_SHAPES * len(masks)) if decoding == "static" else None
    warm, num_new, started = False, 0, time.perf_counter()
    try:
        with (
            torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
            trainer.precision_plugin.forward_context(),
            tqdm(total=num_requests * len(masks), desc="latency", unit="request", file=sys.stderr) as progress,
            RecordWriter(path) as writer,
        ):
            for batch in each.eval_dataloader(split):
                # a last batch that is smaller, or has an unreadable sample, is another kind of request
                if len(batch["sample_ids"]) < batch_size:
                    continue
                if len(made) == num_requests:
                    break
                sample = "+".join(batch["sample_ids"])
                made.append(sample)
                if sample in done:
                    progress.update(len(masks))
                    continue
                inputs = _longer(model, model_inputs(model.transfer_batch_to_device(batch, device, 0)), more_tokens)
                if not warm:
                    for mask in masks:
                        _time(model, inputs, mask, new_tokens, static)
                    warm = True
                num_new += len(masks)
                measured = {}
                for mask in visiting_order(masks, len(made) - 1, each.seed):
                    measured[mask] = _time(model, inputs, mask, new_tokens, static)
                    progress.update()
                for mask, times in measured.items():
                    writer.write({"mask": mask, "sample": sample, "image": batch["samples"][0].image_id, **times})
    finally:
        torch.set_num_threads(before)
        model.cpu()
    run.effort.add("timed requests", num_new, time.perf_counter() - started)
    if not made:
        raise ValueError(f"no request of {batch_size} readable samples could be made from the {split} split")
    # of an interrupted request only the second measurement is complete, and only within it are masks comparable
    frame = read_records([path], keep="last")
    return frame[frame["mask"].isin(masks) & frame["sample"].isin(made)].reset_index(drop=True)


def visiting_order(masks: Sequence[str], index: int, seed: int) -> list[str]:
    """Each pair of requests visits the masks in an order of its own, there and back: a steady drift cancels in it.

    >>> first, second = (visiting_order(["10", "01", "11"], index, seed=0) for index in (0, 1))
    >>> first == second[::-1]
    True
    """
    order = random.Random(f"{seed} {index // 2}").sample(list(masks), len(masks))
    return order[::-1] if index % 2 else order


def summarize_masks(records: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None] | None]]:
    """``{mask: {stage: percentiles}}`` of the records of `time_masks`; None where no token was decoded after the first.

    See `lit_depth.functional.latency.stage_timer.summarize`.
    """
    return {
        str(mask): {
            stage: summarize(rows[stage].astype(float).tolist()) if rows[stage].notna().all() else None
            for stage in STAGES
        }
        for mask, rows in records.groupby("mask")
    }


def median_limits(records: pd.DataFrame, confidence: float) -> dict[str, dict[str, list[float]]]:
    """``{mask: {stage: [low, high]}}``: intervals of the medians of `summarize_masks`, in milliseconds."""
    return {
        str(mask): {
            stage: median_interval(rows[stage].astype(float).tolist(), confidence)
            for stage in STAGES
            if rows[stage].notna().all()
        }
        for mask, rows in records.groupby("mask")
    }


def clock_settings(device: torch.device) -> dict[str, Any]:
    """What times depend on besides the model: times of other settings are not to be mixed with these."""
    named = {"cuda": lambda: torch.cuda.get_device_name(device), "cpu": cpu_name}
    return {"device": named.get(device.type, lambda: str(device))(), "threads": torch.get_num_threads()}


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the processor as far as the system tells, else ``cpu``; Python's own answer is empty on most Linux."""
    if cpuinfo.is_file():
        fields = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
        name = next((value.strip() for key, _, value in fields if key.strip() == "model name"), "")
        if name:
            return name
    return platform.processor() or "cpu"


def _longer(model: DepthModule, inputs: dict[str, Tensor], more_tokens: int) -> dict[str, Tensor]:
    """The prompts with their last token so many times more behind them."""
    if not more_tokens:
        return inputs
    last = inputs["input_ids"][:, -1:].expand(-1, more_tokens)
    return with_answers(model.model, inputs, last, model.pad_token_id)


def _time(
    model: DepthModule, inputs: Mapping[str, Tensor], mask: str, new_tokens: int, static: StaticDecoder | None
) -> dict[str, Any]:
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(model.device)
    if static is not None:
        times = time_static_generation(static, inputs, from_mask_id(mask), new_tokens=new_tokens)
    else:
        with model.masked(from_mask_id(mask)):
            times = time_generation(model.model, inputs, new_tokens=new_tokens, blocks=model.hparams["blocks"])
    peak = torch.cuda.max_memory_allocated(model.device) if cuda else None
    return {**times, "ttft": times["vision"] + times["prefill"], "peak_memory_bytes": peak}
