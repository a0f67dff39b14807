"""A comparison result with curves as a 16-block model shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

NUM_BLOCKS = 16
QUALITY = {
    "prefix": {4: 0.61, 6: 0.78, 8: 0.79, 10: 0.83},
    "importance": {4: 0.82, 6: 0.96, 8: 0.97, 10: 0.98},
    "random": {4: 0.51, 6: 0.54, 8: 0.82, 10: 0.82},
}


def summary(median: float) -> dict[str, float | None]:
    return {
        "P50": median,
        "P95": 1.2 * median,
        "P99": None,
        "mean": median,
        "std": 0.1 * median,
        "min": 0.9 * median,
        "max": 1.4 * median,
    }


def latency(num_active: int, noise: float) -> dict[str, Any]:
    prefill, token = (4 + 2.1 * num_active) * noise, (0.8 + 0.55 * num_active) * noise
    return {
        "vision": summary(11.0 * noise),
        "prefill": summary(prefill),
        "decode_per_token": summary(token),
        "total": summary(11.0 * noise + prefill + 5 * token),
    }


def mask_result(active: list[int], quality: float, seed: int | None, noise: float) -> dict[str, Any]:
    return {
        "mask_id": "".join("1" if block in active else "0" for block in range(NUM_BLOCKS)),
        "seed": seed,
        "active_block_indices": active,
        "quality": quality,
        "quality_ci": [quality - 0.04, min(1.0, quality + 0.035)],
        "drop": 0.99 - quality,
        "drop_ci": [0.99 - quality - 0.03, 0.99 - quality + 0.03],
        "reference_logprob": -2 * (1 - quality) - 0.05,
        "latency_ms": latency(len(active), noise),
    }


@pytest.fixture
def comparison() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    strategies = []
    for policy, curve in QUALITY.items():
        for count, quality in curve.items():
            masks = []
            for seed in range(5) if policy == "random" else [None]:
                active = (
                    list(range(count)) if policy == "prefix" else generator.permutation(NUM_BLOCKS)[:count].tolist()
                )
                shift = 0.06 * (seed - 2) if seed is not None else 0.0
                masks.append(mask_result(sorted(active), quality + shift, seed, float(generator.normal(1, 0.02))))
            mean = mask_result(list(range(count)), quality, None, float(generator.normal(1, 0.01)))
            keys = ("quality", "quality_ci", "drop", "drop_ci", "reference_logprob", "latency_ms")
            shared = {key: mean[key] for key in keys}
            shared |= {"policy": policy, "num_active_blocks": count, "num_total_blocks": NUM_BLOCKS, "masks": masks}
            strategies.append(shared)
    answer = {"answer": "yes", "text": "Yes: 0.93 against 0.75.", "difference": 0.18}
    return {
        "command": "compare",
        "task": "shapes",
        "metric": "ExactMatch",
        "num_blocks": NUM_BLOCKS,
        "num_samples": 256,
        "num_bad_samples": 0,
        "confidence": 0.95,
        "importance": {
            "source": "accuracy_drop",
            "num_samples": 256,
            "scores": {str(block): 0.6 / (1 + block) for block in range(NUM_BLOCKS)},
            "intervals": {str(block): [0.5 / (1 + block), 0.7 / (1 + block)] for block in range(NUM_BLOCKS)},
        },
        "full": mask_result(list(range(NUM_BLOCKS)), 0.99, None, 1.0),
        "strategies": strategies,
        "comparisons": [
            {
                "a": "importance",
                "b": "prefix",
                "num_active_blocks": None,
                "difference": 0.18,
                "ci": [0.15, 0.21],
                "p_value": 0.0001,
                "p_holm": 0.0003,
                "verdict": "a",
            }
        ],
        "answers": {
            "importance_beats_prefix": answer,
            "random_worse_than_prefix": {**answer, "answer": "not shown"},
            "choice_of_blocks_matters": dict(answer),
            "depth_is_a_scalar": {**answer, "answer": "no"},
        },
    }
