"""The evaluation of masks on one split, in Lightning's predict loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from torch import Tensor

from lit_depth.callbacks import MaskSweep
from lit_depth.data import DepthDataModule
from lit_depth.functional.fingerprints import weights_sample
from lit_depth.module import DepthModule
from lit_depth.studies.shared.batch_size import settle_batch_size
from lit_depth.studies.shared.constant_answer import constant_scores
from lit_depth.studies.shared.scores import Scores


def evaluate(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    split: str,
    masks: Sequence[Tensor],
    folder: Path,
    description: str,
    max_bad_samples: float,
) -> tuple[Scores, MaskSweep]:
    """Answer a split under masks in Lightning's predict loop; what the run's records hold already is not repeated.

    Args:
        folder: The run's folder.
        description: Text before the progress bar.

    Returns:
        Scores of all masks on the same samples (of all processes), with the best constant answer on these, and the
        callback that collected them.

    Raises:
        ValueError: If records are missing, or fewer than two images could be evaluated.
    """
    records = folder / "records" / datamodule.task.name / split
    sweep = sweep_samples(trainer, model, datamodule, split, masks, records, description, max_bad_samples)
    assert sweep.records is not None
    num_images = sweep.records["image"].nunique()
    if num_images < 2:
        raise ValueError(f"{split} split: intervals need samples of at least 2 images, got {num_images}")
    scores = Scores.from_records(sweep.records, sweep.metric.max_score)
    return scores._replace(constant=constant_scores(datamodule, split, scores.samples)), sweep


def sweep_samples(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    split: str,
    masks: Sequence[Tensor],
    records: Path,
    description: str,
    max_bad_samples: float,
    positions: Sequence[int] | None = None,
) -> MaskSweep:
    """`evaluate` on some samples of a split, or all, with the records in a folder of their own.

    Args:
        positions: Positions in ``datamodule.eval_dataset(split)``; None = all.

    Returns:
        The callback with complete records of all processes.
    """
    sweep = MaskSweep(
        masks,
        records,
        metric=datamodule.task.metric,
        max_bad_samples=max_bad_samples,
        description=description,
    )
    model.use_task(datamodule.task.max_new_tokens)
    num_samples = len(datamodule.eval_dataset(split)) if positions is None else len(positions)
    if not num_samples:
        raise ValueError(f"{split} split of {datamodule.task.name}: there are no samples to evaluate")
    # a finished run that is started again only renders once more
    if not _is_complete(sweep, num_samples):
        _predict(trainer, model, datamodule, split, sweep, positions)
    if sweep.records is None:
        raise ValueError("the strategy runs in processes of its own (such as ddp_spawn): use ddp, or torchrun")
    sweep.check_bad_samples(num_samples)
    sweep.check_complete(num_samples - len(sweep.bad_samples))
    return sweep


def _is_complete(sweep: MaskSweep, num_samples: int) -> bool:
    if not any(sweep.folder.glob("rank*.jsonl")):
        return False
    sweep.read()
    try:
        sweep.check_complete(num_samples - len(sweep.bad_samples))
    except ValueError:
        sweep.records = None
        sweep.bad_samples = {}
        return False
    return True


def _predict(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    split: str,
    sweep: MaskSweep,
    positions: Sequence[int] | None,
) -> None:
    fixed = datamodule
    if datamodule.batch_size == "auto":
        fixed = copy.copy(datamodule)
        fixed.batch_size = settle_batch_size(trainer, model, datamodule, split, sweep.folder)
    sweep.weights = weights_sample(model)
    shard = (trainer.global_rank, trainer.world_size)
    loader = fixed.eval_dataloader(split, shard=shard, positions=positions)
    trainer.callbacks.append(sweep)  # type: ignore[attr-defined]
    if trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.disable()  # it counts batches; the sweep's own counts masks too
    try:
        trainer.predict(model, loader, return_predictions=False)
    finally:
        trainer.callbacks.remove(sweep)  # type: ignore[attr-defined]
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.enable()
