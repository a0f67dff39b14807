"""A run's folder with its manifest, for exactly these arguments, model and data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lit_depth.callbacks import BlockMask
from lit_depth.data import DepthDataModule
from lit_depth.module import DepthModule
from lit_depth.results.store import (
    MANIFEST,
    check_name,
    current_versions,
    locked_folder,
    prepare_folder,
    write_manifest,
)
from lit_depth.studies.shared.given_back import given_back
from lit_depth.studies.shared.identity import identify, read_manifest, refuse_other_run, run_id
from lit_depth.studies.shared.processes import meet, on_first_process, own_error, wait_for


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

    The folder is locked against other runs inside the ``with`` statement, and afterwards model and datamodule are what
    they were before it.

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
            f"expected --trainer.precision 32-true, bf16-mixed or 16-mixed, got {trainer.precision}; "
            "--model.dtype loads the weights in another number format"
        )
    folder = Path(output_dir) / command / name
    constant = command not in ("latency", "tokens")
    meet(trainer)
    with given_back(model, datamodule), ExitStack() as held:
        datamodule.attach(model)
        datamodule.check_seen(splits)

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
