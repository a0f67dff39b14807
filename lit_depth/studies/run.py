"""What the studies share: a run's folder with its manifest, and the evaluation of masks on one split."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lit_depth.callbacks import MaskSweep
from lit_depth.data import DepthDataModule
from lit_depth.functional.answering import affordable_bytes, bytes_per_row
from lit_depth.module import DepthModule, model_inputs
from lit_depth.results.reading import read_own
from lit_depth.results.store import locked_folder, prepare_folder, write_json, write_manifest
from lit_depth.studies.comparison import Scores

_MAX_AUTO_BATCH = 64
_MAX_WAIT_SECONDS = 600
# arguments of the model that change an answer; the others are about training or speed
_MODEL_ARGUMENTS = (
    "checkpoint",
    "revision",
    "dtype",
    "attn_implementation",
    "blocks",
    "granularity",
    "phase",
    "decode_without_prompt",
)


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
    """Create or reopen ``<output_dir>/<command>/<name>/`` for exactly these arguments, checkpoint and data.

    The folder is locked against other runs inside the ``with`` statement.

    Args:
        splits: Splits whose chosen samples the run depends on.
        arguments: The command's own arguments as far as they change its result.

    Yields:
        The folder, and everything that identifies the run.

    Raises:
        ValueError: If the folder holds a run with other arguments, is in use, or cannot be written to; or if the
            trainer would convert the weights.
    """
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
    identity = {
        **arguments,
        **model_identity(trainer, model),
        "max_new_tokens": [model.hparams["max_new_tokens"] or task.max_new_tokens for task in datamodule.tasks],
        "data.tasks": [task.name for task in datamodule.tasks],
        "data.path": datamodule.path,
        "data.repositories": {
            task.name: [getattr(task, key) for key in ("repository", "config", "revision")]
            for task in datamodule.tasks
            if hasattr(task, "repository") and datamodule.path is None
        },
        "data.seed": datamodule.seed,
        "data.max_prompt_tokens": datamodule.max_prompt_tokens,
        **{
            f"data fingerprint, {each.task.name}, {split}": each.eval_dataset(split).fingerprint()
            for each in datamodule.for_each_task()
            for split in splits
        },
    }
    identity = json.loads(json.dumps(identity, default=str))
    folder = prepare_folder(Path(output_dir) / command / name)
    # the other processes of a distributed run work under the first one's lock
    first = getattr(rank_zero_only, "rank", 0) == 0
    with locked_folder(folder) if first else nullcontext():
        _refuse_other_run(folder, identity)
        if first:
            # changes no answer, so it may differ when the run is continued
            execution = {"data.batch_size": datamodule.batch_size, "processes": trainer.world_size}
            write_manifest(folder, identity, command=command, execution=execution)
        yield folder, identity


def model_identity(trainer: Trainer, model: DepthModule) -> dict[str, Any]:
    """What of the model an answer depends on."""
    return {
        **{f"model.{key}": model.hparams[key] for key in _MODEL_ARGUMENTS},
        "trainer.precision": str(trainer.precision),
        "checkpoint fingerprint": checkpoint_fingerprint(model),
    }


def check_same_model(file: str | Path, name: str, expected: Mapping[str, Any]) -> None:
    """Refuse the result file of another run that was made with another model, as its manifest beside it says.

    Raises:
        ValueError: Naming the first entry of ``expected`` that differs.
    """
    try:
        there = read_own(Path(file).with_name("manifest.json"), "arguments", kind=dict)
    except FileNotFoundError:
        return  # a file that was moved away says nothing of its run
    except ValueError as error:
        raise ValueError(f"{name}: what stands beside {file} cannot be read: {error}") from error
    for key, now in json.loads(json.dumps(dict(expected), default=str)).items():
        if key in there and there[key] != now:
            raise ValueError(
                f"{name}: {file} was made with another {key}: there {_short(there[key])}, here {_short(now)}"
            )


def _refuse_other_run(folder: Path, identity: Mapping[str, Any]) -> None:
    try:
        earlier = read_own(folder / "manifest.json", "arguments", kind=dict)
    except FileNotFoundError:
        return
    for key in dict.fromkeys([*identity, *earlier]):
        there, now = earlier.get(key), identity.get(key)
        if there != now:
            raise ValueError(
                f"{folder} holds a run with another {key}: there {_short(there)}, now {_short(now)}. "
                "Give another --name, or delete the folder to start over."
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def checkpoint_fingerprint(model: DepthModule) -> str:
    """Hash of the weights' names, shapes and a sample of their values: cheap, and another training changes it."""
    digest = hashlib.sha256()
    for name, value in model.model.state_dict().items():
        flat = value.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu().numpy()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]


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
        Scores of all masks on the same samples (of all processes), and the callback that collected them.

    Raises:
        ValueError: If records are missing, or fewer than two images could be evaluated.
    """
    records = folder / "records" / datamodule.task.name / split
    sweep = sweep_samples(trainer, model, datamodule, split, masks, records, description, max_bad_samples)
    assert sweep.records is not None
    num_images = sweep.records["image"].nunique()
    if num_images < 2:
        raise ValueError(f"{split} split: intervals need samples of at least 2 images, got {num_images}")
    return Scores.from_records(sweep.records), sweep


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
    if trainer.is_global_zero:
        if not path.is_file():
            found = find_batch_size(model, datamodule, split, trainer.strategy.root_device, trainer.world_size)
            write_json(path, {"batch_size": found})
    else:
        deadline = time.monotonic() + _MAX_WAIT_SECONDS
        while not path.is_file():
            if time.monotonic() > deadline:
                raise ValueError(f"no {path} from the first process in {_MAX_WAIT_SECONDS} s: give --data.batch_size")
            time.sleep(0.2)
    return max(1, read_own(path, "batch_size", kind=int))


def find_batch_size(
    model: DepthModule, datamodule: DepthDataModule, split: str, device: torch.device, processes: int = 1
) -> int:
    """Largest power of two, up to 64 samples and ``max_rows``, at which the full model answers without memory trouble.

    Every one of the processes gets at least one batch.

    It is found by answering the split's first samples once, never per mask: all masks must see the same batches.
    Beyond some dozens of samples a larger batch no longer gains speed, because masks are rows too.
    """
    share = len(datamodule.eval_dataset(split)) // processes
    limit = min(_MAX_AUTO_BATCH, model.hparams["max_rows"] or _MAX_AUTO_BATCH, share)
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
    """Raise ValueError for shares that are none."""
    if not 0 < confidence < 1 or not 0 <= max_bad_samples <= 1:
        raise ValueError(
            f"confidence and max_bad_samples must lie between 0 and 1, got {confidence} and {max_bad_samples}"
        )


def log_to(trainer: Trainer, function: str, result: Mapping[str, Any], folder: Path) -> None:
    """Log a result by a function of `lit_depth.integrations.wandb`, where that logger is active."""
    for logger in trainer.loggers:
        if type(logger).__name__ == "WandbLogger":
            from lit_depth.integrations import wandb

            getattr(wandb, function)(logger, result, folder)
