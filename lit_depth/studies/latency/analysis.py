"""From times of masks on the same requests to percentiles, ratios to the full model, and lines over the depth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lit_depth.functional.latency.budget import fit_line
from lit_depth.functional.statistics import Interval, paired_comparisons
from lit_depth.studies.shared.mask_grid import PlannedMask
from lit_depth.studies.shared.time_masks import STAGES, median_limits, summarize_masks


def describe(
    records: pd.DataFrame, plan: Sequence[PlannedMask], masks: Sequence[str], num_blocks: int, confidence: float
) -> dict[str, Any]:
    """Percentiles of every mask, its times relative to the full model's, and the line through all of them."""
    summaries, limits = summarize_masks(records), median_limits(records, confidence)
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
            "active_block_indices": [index for index, bit in enumerate(mask) if bit == "1"],
            "latency_ms": summaries[mask],
            "latency_limits_ms": limits[mask],
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
    """Geometric mean over requests (columns) of each mask's time relative to the full model's on the same request."""
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


def scripted(result: dict[str, Any], records: pd.DataFrame) -> dict[str, Any]:
    """The format that users have scripts for: ``summary`` and ``all_samples``, in milliseconds."""
    by_mask = {
        entry["mask_id"]: {
            "num_active_blocks": entry["num_active_blocks"],
            "num_total_blocks": result["num_blocks"],
            "active_block_indices": entry["active_block_indices"],
        }
        for entry in result["configurations"]
    }
    return {
        "summary": [
            by_mask[entry["mask_id"]] | {stage: entry["latency_ms"][stage] for stage in ("prefill", "decode")}
            for entry in result["configurations"]
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
