"""What the studies share: a run's folder with its manifest, and the evaluation of masks on one split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lit_depth.callbacks import MaskSweep
from lit_depth.data import DepthDataModule
from lit_depth.module import DepthModule
from lit_depth.results.store import locked_folder, prepare_folder, write_manifest
from lit_depth.studies.comparison import Scores

# arguments of the model that change an answer; the others are about training or speed
_MODEL_ARGUMENTS = ("checkpoint", "revision", "dtype", "attn_implementation", "blocks")


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
        ValueError: If the folder holds a run with other arguments, is in use, or cannot be written to.
    """
    datamodule.processor = datamodule.processor if datamodule.processor is not None else model.processor
    model.use_task(datamodule.task.max_new_tokens)
    identity = {
        **arguments,
        **{f"model.{key}": model.hparams[key] for key in _MODEL_ARGUMENTS},
        "max_new_tokens": model.max_new_tokens,
        "trainer.precision": str(trainer.precision),
        "data.task": datamodule.task.name,
        "data.path": datamodule.path,
        "data.seed": datamodule.seed,
        "data.max_prompt_tokens": datamodule.max_prompt_tokens,
        "checkpoint fingerprint": checkpoint_fingerprint(model),
        **{f"data fingerprint, {split}": datamodule.eval_dataset(split).fingerprint() for split in splits},
    }
    identity = json.loads(json.dumps(identity, default=str))
    folder = prepare_folder(Path(output_dir) / command / name)
    # the other processes of a distributed run work under the first one's lock
    first = getattr(rank_zero_only, "rank", 0) == 0
    with locked_folder(folder) if first else nullcontext():
        _refuse_other_run(folder, identity)
        if first:
            write_manifest(folder, identity, command=command)
        yield folder, identity


def _refuse_other_run(folder: Path, identity: Mapping[str, Any]) -> None:
    try:
        earlier = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["arguments"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'manifest.json'} cannot be read ({error}): delete {folder} or give another --name"
        ) from error
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
    sweep = MaskSweep(
        masks,
        folder / "records" / split,
        metric=datamodule.task.metric,
        max_bad_samples=max_bad_samples,
        description=description,
    )
    loader = datamodule.eval_dataloader(split)
    if len(loader.dataset) < trainer.world_size:  # type: ignore[arg-type]
        raise ValueError(f"{split} split: {len(loader.dataset)} samples are too few for {trainer.world_size} processes")  # type: ignore[arg-type]
    trainer.callbacks.append(sweep)  # type: ignore[attr-defined]
    if trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.disable()  # it counts batches; the sweep's own counts masks too
    try:
        trainer.predict(model, loader, return_predictions=False)
    finally:
        trainer.callbacks.remove(sweep)  # type: ignore[attr-defined]
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.enable()
    if sweep.records is None:
        raise ValueError("the strategy runs in processes of its own (such as ddp_spawn): use ddp, or torchrun")
    num_samples = len(datamodule.eval_dataset(split)) - len(sweep.bad_samples)
    sweep.check_complete(num_samples)
    num_images = sweep.records["image"].nunique()
    if num_images < 2:
        raise ValueError(f"{split} split: intervals need samples of at least 2 images, got {num_images}")
    return Scores.from_records(sweep.records), sweep
