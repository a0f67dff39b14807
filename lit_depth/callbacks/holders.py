"""What a trainer must be like whose processes hold one model together (tensor parallel)."""

from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data.distributed import DistributedSampler


def check_holders(trainer: Trainer, holders: int) -> None:
    """Refuse a trainer of other processes than those that hold the model together, or of mixed precision.

    Args:
        trainer: Runs them.
        holders: How many hold the model.

    Raises:
        ValueError: Saying what to give.
    """
    if trainer.world_size != holders:
        raise ValueError(
            f"--model.tp_plan: expected the trainer to run the {holders} processes that hold the model, got "
            f"{trainer.world_size}: give --trainer.devices and --trainer.num_nodes as torchrun has them"
        )
    if str(trainer.precision) != "32-true":
        raise ValueError(
            f"--model.tp_plan: expected --trainer.precision 32-true, got {trainer.precision}; --model.dtype loads the "
            "weights in another number format"
        )


def check_same_batches(loaders: Any) -> None:
    """Refuse loaders that deal batches out: processes that hold a model together all need every batch.

    Args:
        loaders: One, or a list; None = none.

    Raises:
        ValueError: If Lightning, or their owner, has given them a sampler for each process.
    """
    for loader in loaders if isinstance(loaders, list) else [loaders]:
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise ValueError(
                "--model.tp_plan: expected loaders that give every process the same batches, got batches dealt out to "
                f"{sampler.num_replicas} processes: give --trainer.use_distributed_sampler false"
            )
