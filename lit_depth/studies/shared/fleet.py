"""Sweeps whose batches are answered by the workers of a Ray cluster (``--executor ray``)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_depth.callbacks import MaskSweep
from lit_depth.module import DepthModule


def check_executor(trainer: Trainer, model: DepthModule) -> None:
    """Refuse what other processes could not answer as this one would.

    Raises:
        ValueError: For several processes of Lightning's, mixed precision, or a model that was placed on loading.
    """
    if getattr(trainer, "executor", "lightning") != "ray":
        return
    if trainer.world_size > 1:
        raise ValueError(
            f"--executor ray runs in one process, whose workers are Ray's, got {trainer.world_size} processes: give "
            "--trainer.devices 1, and --executor_workers for the number of workers"
        )
    if str(trainer.precision) != "32-true":
        raise ValueError(
            f"--executor ray: expected --trainer.precision 32-true, got {trainer.precision}; --model.dtype loads the "
            "weights in another number format"
        )
    if model.is_placed:
        raise ValueError(
            "--executor ray: expected a model that a worker can place itself, got a quantised one or --model.device_map"
        )
    try:
        import lit_depth.integrations.ray  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"--executor ray: expected the package {error.name}; pip install 'lit_depth[ray]'") from error


def answered_by_ray(trainer: Trainer, model: DepthModule, loader: Any, sweep: MaskSweep) -> Any:
    """The batches of a loader with their predictions; the workers stay for the trainer's next sweep."""
    from lit_depth.integrations.ray import Fleet, RemoteBatches

    owner: Any = trainer
    if owner.fleet is None:
        owner.fleet = Fleet(owner.executor_workers, torch.get_num_threads())
    assert sweep.weights is not None
    owner.fleet.hold(model, sweep.weights)
    return RemoteBatches(loader, owner.fleet, model, sweep.wanted)
