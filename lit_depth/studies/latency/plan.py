"""What each mask takes in memory, told from a configuration before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.arguments import MAX_TOKENS, check_range
from lit_depth.functional.latency.footprint import RequestBytes, WeightBytes, request_bytes, weight_bytes
from lit_depth.functional.latency.time_model import STAGES, TimeModel
from lit_depth.functional.masking.blocks import context_length
from lit_depth.functional.masks import full_id
from lit_depth.models.quantization import method_name, planned_bytes, stored_method
from lit_depth.models.weight_files import floating
from lit_depth.module import DepthModule
from lit_depth.results.report import Report, Section, Table
from lit_depth.results.store import check_name, locked_folder, prepare_folder, write_manifest
from lit_depth.results.table import Cell
from lit_depth.studies.latency.fitting import describe_errors
from lit_depth.studies.shared.mask_grid import PlannedMask
from lit_depth.studies.shared.publish import publish
from lit_depth.studies.shared.run_folder import Run, given_back
from lit_depth.studies.shared.stored_times import request_of, stored_model

RESULT = "plan.json"
GIB = 2**30
# questions whose prompts are made to find the longest
QUESTIONS = 8
TIME_HEADERS = ("policy", "blocks", "batch", "vision", "prefill", "decode/token", "total")
HEADERS = ("policy", "blocks", "batch", "weights", "KV cache", "activations", "total", "masked")


def plan_memory(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    masks: Sequence[PlannedMask],
    batch_sizes: Sequence[int],
    prompt_tokens: int | None,
    new_tokens: int,
    memory_gib: float | None,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """The content of ``plan.json``, which is written; an earlier plan of that name is replaced.

    Args:
        model: Made with ``meta=True``.
        masks: To plan for, beside the full model.

    Raises:
        ValueError: If the model has weights, a number is out of range or beyond the model's context, there is no
            tokenizer to count the tokens of a prompt with, or blocks cannot run without values.
    """
    if not model.hparams["meta"]:
        raise ValueError("expected a model without weights for a plan, DepthModule(..., meta=True), got one with them")
    if model.hparams["phase"] != "both":
        raise ValueError(
            f"a plan is for masks of all forwards: expected --model.phase both, got {model.hparams['phase']}"
        )
    if not batch_sizes:
        raise ValueError("expected plan_batches with at least one number, got none")
    for size in batch_sizes:
        check_range(1, MAX_TOKENS, plan_batches=size)
    check_range(1, MAX_TOKENS, prompt_tokens=prompt_tokens)
    if memory_gib is not None and not memory_gib > 0:  # NaN too
        raise ValueError(f"--memory_gib: expected GiB of memory, more than 0, got {memory_gib:g}")
    check_name(name)
    length = prompt_tokens or longest_prompt(model, datamodule)
    context = context_length(model.model)
    if context is not None and length + new_tokens > context:
        raise ValueError(
            f"expected prompt and new tokens within the model's context of {context} tokens, got {length} and "
            f"{new_tokens}: give less of --prompt_tokens or --new_tokens"
        )
    if memory_gib is None and torch.cuda.is_available():
        memory_gib = torch.cuda.get_device_properties(0).total_memory / GIB
    packed = planned_bytes(model.model, model.hparams["quantization"])
    blocks = model.hparams["blocks"]
    weights = weight_bytes(model.model, blocks, packed)
    requests = {
        size: request_bytes(model.model, size, length, new_tokens, blocks) for size in dict.fromkeys(batch_sizes)
    }
    arguments = {
        "checkpoint": model.hparams["checkpoint"],
        "dtype": floating(model.model.dtype),
        "quantization": _quantization(model),
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "memory_gib": memory_gib,
    }
    result = {"command": "plan", **arguments, **describe(weights, requests, masks, memory_gib)}
    stored = stored_model(trainer, model, output_dir, new_tokens)
    result["time_model"] = add_times(result["plans"], stored, length, new_tokens)
    with locked_folder(folder := prepare_folder(Path(output_dir) / "plan" / name)):
        write_manifest(folder, arguments, command="plan")
        publish(Run(trainer, model, datamodule, folder, arguments, 0.0), report(result), RESULT, result)
    return result


def _quantization(model: DepthModule) -> str:
    told = stored_method(model.model.config)
    return str(model.hparams["quantization"]) if told is None else method_name(told)


def longest_prompt(model: DepthModule, datamodule: DepthDataModule) -> int:
    """Tokens of the longest prompt of the task's first questions, images included.

    Raises:
        ValueError: If the checkpoint has no tokenizer, or no question can be read.
    """
    if model.processor is None:
        raise ValueError(
            f"expected --prompt_tokens, because {model.hparams['checkpoint']} has no tokenizer to count those of the "
            "task's questions with"
        )
    with given_back(model, datamodule):
        data = datamodule.take("validation", QUESTIONS)
        data.attach(model)
        lengths = [batch["input_ids"].shape[1] for batch in data.eval_dataloader("validation") if batch["sample_ids"]]
    if not lengths:
        raise ValueError(
            f"expected questions that can be read, got none in the first {QUESTIONS}: give --prompt_tokens"
        )
    return max(lengths)


def describe(
    weights: WeightBytes,
    requests: dict[int, RequestBytes],
    masks: Sequence[PlannedMask],
    memory_gib: float | None,
) -> dict[str, Any]:
    """Bytes of every mask at every batch size; of the full model first.

    Args:
        requests: By batch size.
    """
    num_blocks = len(weights.blocks)
    policies: dict[str, list[str]] = {full_id(num_blocks): []}
    for planned in masks:
        policies.setdefault(planned.id, []).append(planned.policy)
    whole = weights.total(range(num_blocks))
    plans = []
    for mask, names in policies.items():
        active = [index for index, bit in enumerate(mask) if bit == "1"]
        kept = weights.total(active)
        for size, request in requests.items():
            cache, activations = request.cache_total(active), request.activations_peak(active)
            total = kept + cache + activations
            plans.append(
                {
                    "mask_id": mask,
                    "policies": list(dict.fromkeys(names)) or ["full"],
                    "num_active_blocks": len(active),
                    "active_block_indices": active,
                    "batch_size": size,
                    "weight_bytes": kept,
                    "cache_bytes": cache,
                    "activation_bytes": activations,
                    "total_bytes": total,
                    "masked_total_bytes": total - kept + whole,
                    "fits": None if memory_gib is None else total <= memory_gib * GIB,
                }
            )
    return {
        "num_blocks": num_blocks,
        "weight_bytes": {"blocks": list(weights.blocks), "text": weights.text, "vision": weights.vision},
        "plans": plans,
    }


def add_times(
    plans: Sequence[dict[str, Any]], stored: tuple[Path, TimeModel] | None, prompt_tokens: int, new_tokens: int
) -> dict[str, Any] | None:
    """Add ``predicted_ms`` to every plan: by stage and of the whole request, None without a model of time.

    Returns:
        What the predictions rest on: the model's ``path`` and its ``held_out`` error; None without a model.
    """
    for entry in plans:
        entry["predicted_ms"] = None
        if stored is not None:
            request = request_of(entry["mask_id"], entry["batch_size"], prompt_tokens, new_tokens)
            times = stored[1].predict(request)
            entry["predicted_ms"] = {**times._asdict(), "total": times.total(new_tokens)}
            entry["extrapolated"] = stored[1].extrapolates(request)
    if stored is None:
        return None
    path, model = stored
    return {"path": str(path), "held_out": model.to_dict()["held_out"]}


def report(result: dict[str, Any]) -> Report:
    """The report of the content of ``plan.json``."""
    memory, plans = result["memory_gib"], result["plans"]
    headers = (*HEADERS, *(() if memory is None else (f"fits {memory:g} GiB",)))
    rows = [_row(entry) for entry in plans]
    return Report(
        title=f"Memory plan, {result['checkpoint']}",
        headline=_headline(result),
        sections=[Section("Memory", _notes(result), Table(headers, rows)), _time_section(result)],
        kind="plan",
        scalars={
            "plan/full_weight_bytes": plans[0]["weight_bytes"],
            "plan/vision_bytes": result["weight_bytes"]["vision"],
        },
        metadata={"dtype": result["dtype"]},
    )


def _row(entry: dict[str, Any]) -> list[Cell]:
    parts = ("weight_bytes", "cache_bytes", "activation_bytes", "total_bytes", "masked_total_bytes")
    fits = [] if entry["fits"] is None else ["yes" if entry["fits"] else "no"]
    counts = [", ".join(entry["policies"]), entry["num_active_blocks"], entry["batch_size"]]
    return [*counts, *(f"{entry[part] / GIB:.3f}" for part in parts), *fits]


def _time_section(result: dict[str, Any]) -> Section:
    """Predicted times, or how to get them."""
    basis = result["time_model"]
    if basis is None:
        how = "`lit-depth latency --fit_time_model true` measures one, into the same --output_dir."
        return Section("Time", f"No model of time of this checkpoint on this machine was found. {how}")
    rows: list[list[Cell]] = []
    for entry in result["plans"]:
        times, mark = entry["predicted_ms"], " *" if entry["extrapolated"] else ""
        shown = [None if times[stage] is None else f"{times[stage]:.2f}" for stage in (*STAGES, "total")]
        shape: list[Cell] = [", ".join(entry["policies"]), entry["num_active_blocks"], f"{entry['batch_size']}{mark}"]
        rows.append([*shape, *shown])
    note = (
        f"Milliseconds, predicted from {basis['path']}; nothing was timed now. {describe_errors(basis)} * = beyond the "
        "batches, prompts and outputs that were measured."
    )
    return Section("Time", note, Table(TIME_HEADERS, rows))


def _headline(result: dict[str, Any]) -> str:
    weights, whole = result["weight_bytes"], result["plans"][0]["weight_bytes"]
    packed = result["quantization"] != "none"
    how = f"quantised by {result['quantization']} (about)" if packed else f"in {result['dtype']}"
    parts = f"{sum(weights['blocks']) / GIB:.3f} in {result['num_blocks']} blocks and {weights['vision'] / GIB:.3f}"
    return (
        f"Nothing was loaded. Weights {how}: {whole / GIB:.3f} GiB, of which {parts} in vision tower and connector. "
        f"Requests of {result['prompt_tokens']} prompt tokens and {result['new_tokens']} new ones."
    )


def _notes(result: dict[str, Any]) -> str:
    return (
        "GiB. 'weights' and 'total' are those of a checkpoint without the skipped blocks (lit-depth export); a model "
        "that is masked in memory keeps the weights of all blocks, which 'masked' counts. Weights and cache are exact"
        f"{' but for quantised weights' if result['quantization'] != 'none' else ''}; activations are the most that is "
        "alive during the prompt, without those of images, kernels' workspaces and what an allocator holds in reserve."
    )
