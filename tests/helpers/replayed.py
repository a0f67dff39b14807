"""Stands for a CUDA graph on a CPU: the operations of a step run again on the same tensors, without the Python code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Recorded(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        found = _tensors(out)
        storages = {each.untyped_storage().data_ptr() for each in _tensors((args, kwargs))}
        is_view = all(each.untyped_storage().data_ptr() in storages for each in found)
        if found and (_writes(func) or not is_view):
            self.calls.append((func, args, kwargs, [] if _writes(func) else found))
        return out


def replayed(step: Callable[[], None], reset: Callable[[], None]) -> Callable[[], None]:
    """What runs a step as it was recorded: whatever its code would do now, and wherever its tensors would lie now."""
    step()  # as before a recording, which leaves the buffers changed
    reset()
    with _Recorded() as recorded:
        step()
    reset()

    @torch.no_grad()
    def replay() -> None:
        for func, args, kwargs, results in recorded.calls:
            found = _tensors(func(*args, **kwargs))
            for room, result in zip(results, found):
                room.copy_(result)

    return replay


def _tensors(value: Any) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, Tensor)]


def _writes(func: Any) -> bool:
    return any(each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments)
