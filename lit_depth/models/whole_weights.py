"""Conversion of fused weights where each process of a tensor-parallel run reads only its share of them.

transformers hands an operation the share that the first target's plan names. Of weights that stand in one tensor behind
one another (query, key and value; the two halves of the MLP) that is no share of each: the rows of one process may all
be queries.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.distributed.utils import is_dtensor


class OnWhole(ConversionOps):
    """An operation on whole weights: processes put their shares together first, and keep their share of the result.

    In a run of one process it is the operation itself.

    Args:
        operation: Of one source to several targets, or of several sources to one.
    """

    def __init__(self, operation: ConversionOps) -> None:
        self.operation = operation

    def __repr__(self) -> str:
        return f"OnWhole({self.operation!r})"

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        model, first = kwargs["model"], kwargs["full_layer_name"]
        like = model.get_parameter(first)
        if is_dtensor(like):
            input_dict = {name: _put_together(single(part), like) for name, part in input_dict.items()}
        found = self.operation.convert(input_dict, source_patterns, target_patterns, **kwargs)
        if not is_dtensor(like):
            return found
        targets = {name: model.get_parameter(first.replace(target_patterns[0], name)) for name in found}
        return {name: _share(single(weight), targets[name]) for name, weight in found.items()}

    @property
    def reverse_op(self) -> ConversionOps:
        return self.operation.reverse_op


def _put_together(share: Tensor, like: Any) -> Tensor:
    """A whole weight from the shares of all processes, which are dealt out as ``like`` is."""
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    (dim,) = {placement.dim for placement in placements}
    size = torch.tensor(share.shape[dim], device=share.device)
    dist.all_reduce(size, group=mesh.get_group())  # the last share may be a shorter one
    shape = list(share.shape)
    shape[dim] = int(size)
    stride = torch.empty(shape, device="meta").stride()
    shares = DTensor.from_local(
        share.contiguous(), mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )
    return shares.full_tensor()


def _share(weight: Tensor, like: Any) -> Tensor:
    """This process's share of a whole weight, dealt out as ``like`` is; a copy, so that the whole is given up."""
    from torch.distributed.tensor import distribute_tensor

    if not is_dtensor(like):
        return weight
    return distribute_tensor(weight, like.device_mesh, like.placements, src_data_rank=None).to_local().clone()


def single(tensors: Tensor | list[Tensor]) -> Tensor:
    """The tensor that transformers hands to an operation, bare or in a list."""
    return tensors[0] if isinstance(tensors, list) else tensors
