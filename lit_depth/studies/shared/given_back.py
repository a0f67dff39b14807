"""A caller's model and datamodule come back from a command as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lit_depth.data import DepthDataModule
from lit_depth.functional.model_state import evaluation_mode
from lit_depth.module import DepthModule


@contextmanager
def given_back(model: DepthModule, datamodule: DepthDataModule) -> Iterator[None]:
    """Both get their public attributes back, the model its device and modes too, also after an exception.

    Inside, the model is in evaluation mode.
    """
    device = model.device
    before = [
        (owner, {name: value for name, value in vars(owner).items() if not name.startswith("_")})
        for owner in (model, datamodule)
    ]
    with evaluation_mode(model):
        try:
            yield
        finally:
            if model.device != device:
                model.to(device)
            for owner, attributes in before:
                vars(owner).update(attributes)
