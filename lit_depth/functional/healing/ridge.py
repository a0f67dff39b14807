"""Weighted ridge least squares from sums over batches; the strength is chosen on rows that the fit does not see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# strengths that are tried, in units of the features' mean square
RIDGES = tuple(10.0**exponent for exponent in range(-10, 3))


class RidgeFit(NamedTuple):
    """What `RidgeSums.solve` found.

    Attributes:
        coefficients: float64 ``[features, outputs]``; of a fit channel by channel ``[outputs]``.
        ridge: The chosen strength; infinite where no map was better than none, and all coefficients are 0.
        unexplained: Share of the targets' square that is left on the held-out rows.
    """

    coefficients: Tensor
    ridge: float
    unexplained: float


@dataclass
class _Part:
    gram: Tensor
    cross: Tensor
    square: float = 0.0


class RidgeSums:
    """Sums of a regression of targets on features, in float64; memory does not depend on the number of rows.

    Args:
        num_features: Features of a row.
        num_outputs: Targets of a row.
        by_channel: Target c depends on feature c alone (a diagonal map), of which there are then equally many.

    >>> sums = RidgeSums(1, 1)
    >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    >>> sums.add(x, 3 * x, torch.ones(4), held_out=torch.tensor([False, False, False, True]))
    >>> round(sums.solve().coefficients.item(), 6)
    3.0
    """

    def __init__(self, num_features: int, num_outputs: int, by_channel: bool = False) -> None:
        self.by_channel = by_channel
        gram, cross = (num_outputs,), (num_outputs,)
        if not by_channel:
            gram, cross = (num_features, num_features), (num_features, num_outputs)  # type: ignore[assignment]
        self._fitted, self._held = (
            _Part(torch.zeros(gram, dtype=torch.float64), torch.zeros(cross, dtype=torch.float64)) for _ in range(2)
        )

    def add(self, features: Tensor, targets: Tensor, weights: Tensor, held_out: Tensor) -> None:
        """Add rows.

        Args:
            features: ``[rows, features]``.
            targets: ``[rows, outputs]``.
            weights: ``[rows]``, not negative.
            held_out: bool ``[rows]``: rows that choose the ridge.
        """
        for part, rows in ((self._fitted, ~held_out), (self._held, held_out)):
            x, y, weight = (each[rows].double() for each in (features, targets, weights[:, None]))
            weighted = x * weight
            if self.by_channel:
                gram, cross = (weighted * x).sum(0), (weighted * y).sum(0)
            else:
                gram, cross = weighted.T @ x, weighted.T @ y
            part.gram += gram.cpu()
            part.cross += cross.cpu()
            part.square += float((weight * y.square()).sum())

    def solve(self, ridges: tuple[float, ...] = RIDGES) -> RidgeFit:
        """Choose the ridge on the held-out rows, then fit all rows with it.

        Raises:
            ValueError: No rows to fit, or none held out.
        """
        fitted, held = self._fitted, self._held
        if not all(float(part.gram.abs().sum()) for part in (fitted, held)):
            raise ValueError("expected rows to fit and rows held out to choose the ridge, got none of one kind")
        best = (1.0, math.inf)
        if held.square:
            solutions = zip(ridges, self._path(fitted, ridges))
            best = min([best, *((self._left(held, each) / held.square, ridge) for ridge, each in solutions)])
        unexplained, ridge = best
        if ridge == math.inf:
            return RidgeFit(torch.zeros_like(fitted.cross), ridge, 1.0)
        both = _Part(fitted.gram + held.gram, fitted.cross + held.cross)
        return RidgeFit(self._path(both, (ridge,))[0], ridge, max(0.0, unexplained))

    def _path(self, part: _Part, ridges: tuple[float, ...]) -> list[Tensor]:
        """Solutions of (G + ridge mean(diag G) I) C = X'Y (Hoerl & Kennard 1970) for every ridge."""
        if self.by_channel:
            return [part.cross / (part.gram + ridge * part.gram.mean()) for ridge in ridges]
        values, vectors = torch.linalg.eigh(part.gram)
        turned, scale = vectors.T @ part.cross, part.gram.diagonal().mean()
        return [vectors @ (turned / (values.clamp(min=0) + ridge * scale)[:, None]) for ridge in ridges]

    def _left(self, part: _Part, coefficients: Tensor) -> float:
        """Square of what a map leaves of the targets."""
        image = part.gram * coefficients if self.by_channel else part.gram @ coefficients
        return part.square + float((coefficients * (image - 2 * part.cross)).sum())
