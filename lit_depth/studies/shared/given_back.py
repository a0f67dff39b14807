"""A caller's model and datamodule come back from a command as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_depth.data import DepthDataModule
from lit_depth.functional.model_state import evaluation_mode
from lit_depth.module import DepthModule

# what a command sets; everything else is left to whoever owns it, such as a counter in a module of the caller's own
_OF_MODEL = ("max_new_tokens", "requested_masks", "on_mask")
_OF_DATA = ("prompter", "context", "max_new_tokens")


@contextmanager
def given_back(model: DepthModule, datamodule: DepthDataModule) -> Iterator[None]:
    """Both get back what a command sets in them, the model its device and modes too, also after an exception.

    Inside, the model is in evaluation mode.
    """
    device = model.device
    before: list[tuple[Any, dict[str, Any]]] = [
        (model, {name: getattr(model, name) for name in _OF_MODEL}),
        (datamodule, {name: getattr(datamodule, name) for name in _OF_DATA}),
    ]
    with evaluation_mode(model):
        try:
            yield
        finally:
            if model.device != device:
                model.to(device)
            for owner, values in before:
                for name, value in values.items():
                    setattr(owner, name, value)
