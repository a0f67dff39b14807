"""A model whose weights several processes hold together (tensor parallel): who has what, and what all must agree on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def holders_of(model: nn.Module) -> int:
    """Processes that hold a model together, each a part of every weight that is split; 1 = this one holds all of it.

    >>> holders_of(nn.Linear(2, 1))
    1
    """
    return getattr(model, "tp_size", None) or 1


def whole(weight: Tensor) -> Tensor:
    """All values of a weight. Those of a split one every process must ask for at the same time."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def own_part(weight: Tensor) -> Tensor:
    """What this process holds of a weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def least_of_holders(model: nn.Module, value: int) -> int:
    """The least of what the processes say that hold a model together, where they must do the same.

    Each of them asks at the same time.
    """
    if holders_of(model) == 1:
        return value
    found = torch.tensor(value, device=next(model.parameters()).device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return int(found)
