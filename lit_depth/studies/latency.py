"""``lit-depth latency``: what each number of blocks takes, stage by stage, paired by request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.checks import MAX_TOKENS, check_least, check_range
from lit_depth.functional.selection import fit_line
from lit_depth.functional.statistics import Interval, paired_comparisons
from lit_depth.module import DepthModule
from lit_depth.results.latency_figures import write_latency_figure
from lit_depth.results.report import Section, write_report
from lit_depth.results.store import write_json, write_parquet
from lit_depth.results.tables import format_p_value, format_table
from lit_depth.results.verdicts import SIMULTANEOUS
from lit_depth.studies.importance import read_importance, to_importance
from lit_depth.studies.plan import PlannedMask, check_plan, plan_indices, plan_masks
from lit_depth.studies.run import check_shares, check_whole_blocks, log_to, open_run
from lit_depth.studies.timing import STAGES, clock_settings, summarize_masks, time_masks

RESULT, DETAILS = "latency.json", "latency_details.json"
HEADERS = (
    "policy",
    "blocks",
    "vision",
    "prefill",
    "decode/token",
    "total P50",
    "P95",
    "of full",
    "interval",
    "p (Holm)",
)


def latency(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    *,
    policies: Sequence[str],
    num_active_blocks: Sequence[int] | None,
    active_block_indices: Sequence[Sequence[int]] | None,
    keep: Sequence[int] | None,
    num_seeds: int,
    importance: str | None,
    num_samples: int,
    batch_size: int,
    new_tokens: int,
    confidence: float,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """Measure; arguments and result as for `lit_depth.DepthTrainer.latency`."""
    check_whole_blocks(model, "latency")
    num_blocks = model.num_blocks
    keep = list(keep or ())
    names, counts = check_plan(policies, num_active_blocks, num_blocks, num_seeds, keep)
    check_shares(confidence, 0.0)
    check_least(1, num_samples=num_samples, batch_size=batch_size)
    check_range(1, MAX_TOKENS, new_tokens=new_tokens)
    if num_samples < batch_size:
        raise ValueError(f"num_samples ({num_samples}) must be at least batch_size ({batch_size})")
    if len(datamodule.tasks) > 1:
        raise ValueError(f"latency takes its requests from one task, got {[task.name for task in datamodule.tasks]}")
    if trainer.world_size > 1:
        raise ValueError(f"latency is measured by one process, got {trainer.world_size}: give --trainer.devices 1")
    scores = None
    if "importance" in names and active_block_indices is None:
        if importance is None:
            raise ValueError("the importance policy needs --importance FILE, as `lit-depth importance` writes it")
        scores = to_importance(read_importance(importance, model, datamodule), num_blocks, importance, keep)
    plan = (
        plan_masks(names, counts, num_blocks, scores, num_seeds, keep)
        if active_block_indices is None
        else plan_indices(active_block_indices, num_blocks)
    )
    device = trainer.strategy.root_device
    datamodule.take("validation", num_samples)
    arguments = {
        "masks": [[planned.policy, planned.id] for planned in plan],
        "num_samples": num_samples,
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        **clock_settings(device),
        "confidence": confidence,
    }
    run = open_run(trainer, model, datamodule, ["validation"], arguments, output_dir, "latency", name)
    with run as (folder, identity):
        full = "1" * num_blocks
        masks = list(dict.fromkeys([full, *(planned.id for planned in plan)]))
        records = time_masks(
            trainer,
            model,
            datamodule,
            "validation",
            masks,
            folder / "records" / datamodule.task.name / "validation" / "rank0.jsonl",
            num_requests=num_samples // batch_size,
            batch_size=batch_size,
            new_tokens=new_tokens,
            threads=arguments["threads"],
        )
        result = {
            "command": "latency",
            "task": datamodule.task.name,
            "device": arguments["device"],
            "batch_size": batch_size,
            "new_tokens": new_tokens,
            **_describe(records, plan, masks, num_blocks, confidence),
        }
        _write(folder, result, records, identity)
    log_to(trainer, "log_latency", result, folder)
    print(_summary(result, folder))
    return result


def _describe(
    records: pd.DataFrame, plan: Sequence[PlannedMask], masks: Sequence[str], num_blocks: int, confidence: float
) -> dict[str, Any]:
    """Percentiles of every mask, its times relative to the full model's, and the line through all of them."""
    summaries = summarize_masks(records)
    times = {stage: records.pivot(index="mask", columns="sample", values=stage).astype(float) for stage in STAGES}
    images = records.drop_duplicates("sample").set_index("sample")["image"].reindex(times["total"].columns)
    full = "1" * num_blocks
    names: dict[str, list[str]] = {mask: [] for mask in masks}
    for planned in plan:
        names[planned.id].append(planned.policy)
    peaks = records.groupby("mask")["peak_memory_bytes"].max()
    tokens = records.groupby("mask")["num_output_tokens"].sum()
    ratios = {
        stage: _ratios(frame.loc[list(masks)], full, list(images), confidence)
        for stage, frame in times.items()
        # no block is in the vision stage, and a single token takes no decode step
        if stage != "vision" and (frame.loc[list(masks)] > 0).all(axis=None)
    }
    configurations = [
        {
            "mask_id": mask,
            "policies": list(dict.fromkeys(names[mask])) or ["full"],
            "num_active_blocks": mask.count("1"),
            "active_block_indices": _indices(mask),
            "latency_ms": summaries[mask],
            "output_tokens_per_second": float(tokens[mask] / times["total"].loc[mask].sum() * 1000),
            "peak_memory_bytes": int(peaks[mask]) if pd.notna(peaks[mask]) else None,  # of a GPU
            "of_full": {stage: found[mask] for stage, found in ratios.items()},
        }
        for mask in masks
    ]
    fits = {}
    for stage, frame in times.items():
        medians = frame.loc[list(masks)].median(axis=1)
        if len({mask.count("1") for mask in masks}) > 1 and medians.notna().all():
            fits[stage] = fit_line([mask.count("1") for mask in masks], medians.tolist())._asdict()
    return {
        "num_blocks": num_blocks,
        "num_requests": len(images),
        "confidence": confidence,
        "configurations": configurations,
        "fits": fits,
    }


def _ratios(frame: pd.DataFrame, full: str, images: Sequence[str], confidence: float) -> dict[str, dict[str, Any]]:
    """Geometric mean over requests of each mask's time relative to the full model's on the same request.

    Args:
        frame: Times in ms, one row per mask and one column per request.
        full: Id of the full model's mask.
        images: Image of each request.
        confidence: Coverage of each interval, and of the simultaneous ones together.
    """
    nothing = dict.fromkeys(("ci", "simultaneous_ci", "p_value", "p_holm"))
    result: dict[str, dict[str, Any]] = {full: {"ratio": 1.0, **nothing}}  # by definition, nothing is estimated
    others = [mask for mask in frame.index if mask != full]
    logs = np.log(frame.loc[others].to_numpy() / frame.loc[full].to_numpy())
    if not others:
        return result
    if len(set(images)) < 2:
        return result | {mask: {"ratio": float(np.exp(row.mean())), **nothing} for mask, row in zip(others, logs)}
    # a coarse clock may show the same ratio for every request; another one may then still take twice as long
    family = paired_comparisons(logs, images, confidence, score_range=None, scale=np.log(2))
    for mask, (interval, p_value, p_holm, together) in zip(others, family):
        result[mask] = {
            "ratio": float(np.exp(interval.estimate)),
            "ci": _ratio_limits(interval),
            "simultaneous_ci": _ratio_limits(together),
            "p_value": p_value,
            "p_holm": p_holm,
        }
    return result


def _ratio_limits(interval: Interval) -> list[float]:
    """Limits of a ratio; one beside 1 stays there, though the nearest logarithms to 0 would give 1 itself."""
    low, high = np.exp([interval.low, interval.high])
    low = max(low, np.nextafter(1.0, 2.0)) if interval.low > 0 else low
    high = min(high, np.nextafter(1.0, 0.0)) if interval.high < 0 else high
    return [float(low), float(high)]


def _indices(mask: str) -> list[int]:
    return [index for index, bit in enumerate(mask) if bit == "1"]


def _scripted(result: dict[str, Any], records: pd.DataFrame) -> dict[str, Any]:
    """The format that users have scripts for: ``summary`` and ``all_samples``, in milliseconds."""
    shape = [
        {
            "num_active_blocks": entry["num_active_blocks"],
            "num_total_blocks": result["num_blocks"],
            "active_block_indices": entry["active_block_indices"],
        }
        for entry in result["configurations"]
    ]
    by_mask = {entry["mask_id"]: head for entry, head in zip(result["configurations"], shape)}
    return {
        "summary": [
            {**head, "prefill": entry["latency_ms"]["prefill"], "decode": entry["latency_ms"]["decode"]}
            for entry, head in zip(result["configurations"], shape)
        ],
        "all_samples": [
            {
                "sample_id": record["sample"],
                **by_mask[record["mask"]],
                "T_LLM_prefill": record["prefill"],
                "T_LLM_decode": record["decode"],
                "T_vision_total": record["vision"],
                "T_total": record["total"],
                "num_input_text_tokens": record["num_text_tokens"],
                "num_vision_tokens": record["num_vision_tokens"],
                "num_output_tokens": record["num_output_tokens"],
            }
            for record in records.to_dict("records")
        ],
    }


def _write(folder: Path, result: dict[str, Any], records: pd.DataFrame, identity: dict[str, Any]) -> None:
    figure = write_latency_figure(result, folder / "figures")
    write_parquet(folder / "records.parquet", records)
    sections = [
        Section("Latency", text=_headline(result), headers=HEADERS, rows=_rows(result), figures=[figure]),
        Section("Arguments", code=json.dumps(identity, indent=2, default=str)),
    ]
    write_report(folder, f"Latency against active blocks, {result['task']}", sections)
    write_json(folder / DETAILS, result)
    # last: whoever sees it may rely on all the rest
    write_json(folder / RESULT, _scripted(result, records))


def _rows(result: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for entry in result["configurations"]:
        times = entry["latency_ms"]
        share = entry["of_full"]["total"]
        per_token = times["decode_per_token"]
        rows.append(
            [
                ", ".join(entry["policies"]),
                entry["num_active_blocks"],
                *(f"{times[stage]['P50']:.2f}" for stage in ("vision", "prefill")),
                f"{per_token['P50']:.2f}" if per_token else None,
                f"{times['total']['P50']:.2f}",
                f"{times['total']['P95']:.2f}",
                f"{share['ratio']:.3f}",
                "[{:.3f}, {:.3f}]".format(*share["simultaneous_ci"]) if share["simultaneous_ci"] else None,
                None if share["p_holm"] is None else format_p_value(share["p_holm"]),
            ]
        )
    return rows


def _headline(result: dict[str, Any]) -> str:
    text = (
        f"{result['num_requests']} requests of batch size {result['batch_size']} on {result['device']}, "
        f"{result['new_tokens']} new tokens each; medians in milliseconds. 'of full' is the time relative to all "
        f"{result['num_blocks']} blocks on the same request (geometric mean, {result['confidence']:.0%} "
        f"{SIMULTANEOUS})."
    )
    if "total" in result["fits"]:
        line = result["fits"]["total"]
        fit = "" if line["r2"] is None else f" (R squared {line['r2']:.3f})"
        text += (
            f" Total = {line['intercept']:.2f} ms + {line['slope']:.2f} ms per block{fit}: the first part no skipped "
            "block saves."
        )
    return text


def _summary(result: dict[str, Any], folder: Path) -> str:
    lines = ["", _headline(result), "", format_table(_rows(result), HEADERS), ""]
    paths = [folder / RESULT, folder / DETAILS, *sorted((folder / "figures").glob("*.png")), folder / "report.html"]
    return "\n".join([*lines, "written:", *(f"  {path}" for path in paths)])
