"""The shell that per-sample metrics share: keeps one score per sample, reports the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class SampleMetric(Metric):
    """Mean of one score per sample. A subclass gives :meth:`score`; nothing else is needed.

    The per-sample scores stay in the state ``scores`` (gathered over processes by torchmetrics), so that paired
    statistics can be computed from them.

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[torch.Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    @staticmethod
    def score(prediction: str, references: Sequence[str]) -> float:
        """Score of one prediction against the references of its sample; higher is better."""
        raise NotImplementedError

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add a batch.

        Args:
            predictions: One answer per sample.
            references: One non-empty sequence of reference answers per sample.

        Raises:
            ValueError: If the two lengths differ, or if :meth:`score` refuses a sample.
        """
        if len(predictions) != len(references):
            raise ValueError(
                f"expected one list of references per prediction, got {len(predictions)} predictions "
                f"and {len(references)} lists of references"
            )
        if not predictions:
            return
        scores = [self.score(prediction, sample) for prediction, sample in zip(predictions, references)]
        self.scores.append(torch.tensor(scores, dtype=torch.float32, device=self.device))

    def compute(self) -> torch.Tensor:
        """Mean over all samples, a scalar tensor."""
        return dim_zero_cat(self.scores).mean()
