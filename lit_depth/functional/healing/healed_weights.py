"""Weights that make up for skipped blocks, beside the model that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from lit_depth.functional.healing.outputs import swapped


@dataclass(frozen=True, eq=False)
class HealedWeights:
    """Weights that make up for skipped blocks; the model is unchanged until they are applied.

    Attributes:
        model: The model that they were found for.
        mask: bool ``[num_blocks]``, True = the block runs.
        weights: Name in ``model.state_dict()`` -> new value, in the weight's own dtype and on its device.
    """

    model: nn.Module
    mask: Tensor
    weights: dict[str, Tensor]

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with the weights, inside a ``with`` statement; leaving it gives the old ones back bit for bit.

        Blocks are not skipped by this: `masked` does that.
        """
        with swapped(self._values()):
            yield self.model

    def apply(self) -> nn.Module:
        """Give the model the weights for good."""
        for parameter, value in self._values().items():
            parameter.data = value.to(parameter.device)
        return self.model

    def _values(self) -> dict[nn.Parameter, Tensor]:
        parameters = dict(self.model.named_parameters())
        return {parameters[name]: value for name, value in self.weights.items()}
