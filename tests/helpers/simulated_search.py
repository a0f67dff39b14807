"""A model of sixteen blocks whose answers follow from what was removed, so that a search is over in a second."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_depth import DepthModule
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.module import MaskedPredictions

# four blocks that cost little, alone or together with one another, but for one pair
COSTS = np.array([0.6, 0.5, 0.4, 0.01, 0.5, 0.4, 0.6, 0.02, 0.0, 0.5, 0.4, 0.5, 0.05, 0.4, 0.5, 0.6])


def quality(removed: tuple[int, ...]) -> float:
    return max(0.02, 0.95 - COSTS[list(removed)].sum() - (0.3 if {3, 8} <= set(removed) else 0.0))


def simulated(sample: str, removed: tuple[int, ...]) -> tuple[float, float]:
    """Whether the simulated model is right, and its log-probability: the same for the same sample and mask."""
    ease, noise = (zlib.crc32(f"{sample} {kind}".encode()) / 2**32 for kind in ("ease", removed))
    right = quality(removed) + 0.04 * (noise - 0.5) > ease
    return float(right), math.log(quality(removed) * (0.7 + 0.3 * noise))


class Simulated(DepthModule):
    """Answers by `simulated`, and counts its answers."""

    answered = 0

    def predict_step(self, batch: dict[str, Any], batch_idx: int = 0) -> MaskedPredictions:
        masks = self.requested_masks
        if not masks or not batch["sample_ids"]:
            return MaskedPredictions([], [], [], torch.zeros(0, 0))
        scores = [[simulated(s, removed_by(mask)) for s in batch["sample_ids"]] for mask in masks]
        references = [sample.references[0] for sample in batch["samples"]]
        texts = [[ref if right else "wrong" for ref, (right, _) in zip(references, row)] for row in scores]
        self.answered += len(masks) * len(references)
        logprobs = torch.tensor([[logprob for _, logprob in row] for row in scores], dtype=torch.float64)
        return MaskedPredictions(list(batch["sample_ids"]), list(masks.ids), texts, logprobs)


def removed_by(mask: Tensor) -> tuple[int, ...]:
    return tuple((~mask).nonzero().flatten().tolist())


def data(module: DepthModule, task: ShapesVQA | None = None, **options: Any) -> DepthDataModule:
    sizes = {"batch_size": 32, "num_samples": 40, "calibration_samples": 200} | options
    return DepthDataModule(module.prompter, task or ShapesVQA(num_images=60), **sizes)
