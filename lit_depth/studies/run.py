"""What the studies share: a run's folder with its manifest, and the evaluation of masks on one split."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_depth.callbacks import BlockMask, MaskSweep
from lit_depth.data import DepthDataModule
from lit_depth.functional.answering import affordable_bytes, bytes_per_row
from lit_depth.functional.checks import check_range
from lit_depth.functional.fingerprints import weights_sample
from lit_depth.module import DepthModule, model_inputs
from lit_depth.results.store import (
    MANIFEST,
    check_name,
    current_versions,
    locked_folder,
    prepare_folder,
    read_of_run,
    write_manifest,
    write_of_run,
)
from lit_depth.studies.baseline import constant_scores
from lit_depth.studies.comparison import Scores
from lit_depth.studies.identity import identify, read_manifest, refuse_other_run, run_id
from lit_depth.studies.processes import meet, on_first_process, own_error, wait_for

_MAX_AUTO_BATCH = 64


@contextmanager
def open_run(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    splits: Sequence[str],
    arguments: Mapping[str, Any],
    output_dir: str,
    command: str,
    name: str,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Create or reopen ``<output_dir>/<command>/<name>/`` for exactly these arguments, model and data.

    The folder is locked against other runs inside the ``with`` statement.

    Args:
        splits: Splits whose chosen samples the run depends on.
        arguments: The command's own arguments as far as they change its result.

    Yields:
        The folder, and the arguments of the run; the manifest tells the model in detail.

    Raises:
        ValueError: If the folder holds a run with other arguments, model, data or versions of packages, is in use, or
            cannot be written to; or if the trainer would convert the weights.
    """
    check_name(name)
    if any(isinstance(callback, BlockMask) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            f"{command} chooses the blocks of every answer itself: leave the BlockMask out of --trainer.callbacks"
        )
    limit = trainer.limit_predict_batches
    if isinstance(limit, int) or limit != 1.0:  # 1.0 is the share of all batches; a number of them is an integer
        raise ValueError(
            f"expected all batches to be evaluated, got --trainer.limit_predict_batches {limit} (fast_dev_run sets it "
            "too): for fewer questions give --data.num_samples and --data.calibration_samples"
        )
    if str(trainer.precision) not in ("32-true", "bf16-mixed", "16-mixed"):
        raise ValueError(
            f"expected --trainer.precision 32-true, bf16-mixed or 16-mixed, given {trainer.precision}; "
            "--model.dtype loads the weights in another number format"
        )
    datamodule.attach(model)
    folder = Path(output_dir) / command / name
    constant = command not in ("latency", "tokens")
    meet(trainer)
    with ExitStack() as held:
        # the other processes of a distributed run work under the first one's lock
        def claim() -> None:
            identity = identify(trainer, model, datamodule, splits, arguments, constant)
            held.enter_context(locked_folder(prepare_folder(folder)))
            # changes no answer, so it may differ when the run is continued
            execution = {
                "data.batch_size": datamodule.batch_size,
                "processes": trainer.world_size,
                "seed_everything": os.environ.get("PL_GLOBAL_SEED"),
            }
            _claim(folder, identity, getattr(trainer, "resume_versions", "same"), command, execution)

        on_first_process(trainer, claim)
        if not trainer.is_global_zero:
            with own_error(trainer):  # files of another node may be others
                wait_for(folder / MANIFEST, "start the first process too, with an --output_dir that all nodes see")
                identity = identify(trainer, model, datamodule, splits, arguments, constant)
                refuse_other_run(folder, read_manifest(folder) or {}, identity, "same")
        yield folder, (read_manifest(folder) or {})["arguments"]


def _claim(folder: Path, identity: dict[str, Any], versions: str, command: str, execution: dict[str, Any]) -> None:
    """Make the folder that of this run, if it is not another's."""
    there = read_manifest(folder)
    if there is not None:
        refuse_other_run(folder, there, identity, versions)
    run = run_id(identity) if there is None else there["run"]
    history = [] if there is None else there.get("history", [])
    if not history or history[-1] != current_versions():
        history = [*history, current_versions()]
    extra = {"run": run, "model": identity["model"], "history": history}
    write_manifest(folder, identity["arguments"], command=command, execution=execution, **extra)


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


def settle_batch_size(
    trainer: Trainer, model: DepthModule, datamodule: DepthDataModule, split: str, folder: Path
) -> int:
    """`find_batch_size` by the first process, once per run: all processes and a resumed run make the same batches."""
    path = folder / "batch_size.json"

    def find() -> None:
        if not path.is_file():
            write_of_run(path, {"batch_size": find_batch_size(model, datamodule, split, trainer.strategy.root_device)})

    on_first_process(trainer, find)
    wait_for(path, "give --data.batch_size")
    return max(1, read_of_run(path, batch_size=int)["batch_size"])


def find_batch_size(model: DepthModule, datamodule: DepthDataModule, split: str, device: torch.device) -> int:
    """Largest power of two, up to 64 samples and ``max_rows``, at which the full model answers without memory trouble.

    It is found by answering the split's first samples once, never per mask: all masks must see the same batches. The
    number of processes does not count, so that their results are those of one, to the last digit; where there are fewer
    batches than processes, some have nothing to do. Beyond some dozens of samples a larger batch no longer gains speed,
    because masks are rows too.
    """
    limit = min(_MAX_AUTO_BATCH, model.hparams["max_rows"] or _MAX_AUTO_BATCH, len(datamodule.eval_dataset(split)))
    size = 1 << max(0, limit.bit_length() - 1)
    trial = copy.copy(datamodule)
    while True:
        trial.batch_size = size
        try:
            model.to(device)
            batch = model.transfer_batch_to_device(next(iter(trial.eval_dataloader(split))), device, 0)
            if not batch["sample_ids"]:  # all bad: nothing to try
                break
            # keys, values and logits must fit a share of the memory, as they must for the masks later
            row = bytes_per_row(
                model.model, model_inputs(batch), model.max_new_tokens, batch["answer_ids"], model.num_blocks
            )
            if size * row <= affordable_bytes(model.model):
                model.predict_step(batch)
                break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if size == 1:
            raise ValueError("not even a single sample fits in memory")
        size //= 2
    model.cpu()
    return size


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


def check_whole_blocks(model: DepthModule, command: str) -> None:
    """Raise ValueError for a model whose masks switch sublayers."""
    if model.hparams["granularity"] != "block":
        raise ValueError(
            f"{command} takes whole blocks only: leave out --model.granularity, which importance and consistency know"
        )


def check_shares(confidence: float, max_bad_samples: float) -> None:
    """Raise ValueError for shares that are none, or a confidence that no interval is told with."""
    check_range(0.5, 0.9999, confidence=confidence)
    check_range(0, 1, max_bad_samples=max_bad_samples)


def log_to(trainer: Trainer, function: str, result: Mapping[str, Any], folder: Path) -> None:
    """Log a result by a function of `lit_depth.integrations.wandb`, where that logger is active."""
    for logger in trainer.loggers:
        if type(logger).__name__ == "WandbLogger":
            from lit_depth.integrations import wandb

            getattr(wandb, function)(logger, result, folder)
