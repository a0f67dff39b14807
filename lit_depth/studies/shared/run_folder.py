"""A run's folder with its manifest, for exactly these arguments, model and data."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from lightning.pytorch import Trainer

from lit_depth.callbacks import BlockMask
from lit_depth.data import DepthDataModule
from lit_depth.functional.model_state import evaluation_mode
from lit_depth.module import DepthModule
from lit_depth.results.store import (
    MANIFEST,
    check_name,
    current_versions,
    locked_folder,
    prepare_folder,
    write_manifest,
)
from lit_depth.results.terminal import remark
from lit_depth.studies.shared.checks import check_has_images
from lit_depth.studies.shared.effort import Effort
from lit_depth.studies.shared.fleet import check_executor
from lit_depth.studies.shared.identity import identify, read_manifest, refuse_other_run, run_id
from lit_depth.studies.shared.loggers import open_loggers
from lit_depth.studies.shared.processes import meet, on_first_process, own_error, wait_for

AGREEMENT = "agreement"  # metric of tasks without answers
# what a command sets; everything else is left to whoever owns it, such as a counter in a module of the caller's own
_OF_MODEL = ("max_new_tokens", "requested_masks", "on_mask", "reads_lens", "acceptance")
_OF_DATA = ("prompter", "context", "max_new_tokens")


@dataclass(frozen=True)
class Run:
    """A run of a command: who answers, on which data, and where its files lie.

    It stops above a share ``max_bad_samples``, 0 to 1, of unreadable samples. The manifest names its ``arguments``, and
    tells the model in detail. ``effort`` counts what it does.
    """

    trainer: Trainer
    model: DepthModule
    datamodule: DepthDataModule
    folder: Path
    arguments: Mapping[str, Any]
    max_bad_samples: float
    effort: Effort = field(default_factory=Effort)

    @property
    def model_entry(self) -> dict[str, Any]:
        """The result's ``model`` entry: the checkpoint, the revision, experts and crops asked for, and who skips."""
        hparams = self.model.hparams
        names = ("experts_per_token", "max_crops", "skip_tokens")
        asked = {name: hparams[name] for name in names if hparams[name] not in (None, "all")}
        return {"model": {name: hparams[name] for name in ("checkpoint", "revision")} | asked}

    def for_each_task(self) -> list[Self]:
        """The same run on each of its tasks alone."""
        return [replace(self, datamodule=each) for each in self.datamodule.for_each_task()]


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
    max_bad_samples: float = 0.0,
    scores: bool = True,
) -> Iterator[Run]:
    """Create or reopen ``<output_dir>/<command>/<name>/`` for exactly these arguments, model and data.

    ``scores``: answers are scored, so questions need some.

    The folder is locked against other runs inside the ``with`` statement, and afterwards model and datamodule are what
    they were before it.

    Raises:
        ValueError: If the folder holds a run with other arguments, model, data or versions of packages, is in use, or
            cannot be written to; or if the trainer would convert the weights.
    """
    check_name(name)
    model.check_has_weights()
    if any(isinstance(callback, BlockMask) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            f"{command} chooses the blocks of every answer itself: leave the BlockMask out of --trainer.callbacks"
        )
    if scores and any(task.metric == AGREEMENT for task in datamodule.tasks):
        raise ValueError(
            f"{command} scores answers: expected right ones (--data.columns.answer NAME) and another "
            "--data.metric than agreement with the full model, which lit-depth answers tells"
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
    check_executor(trainer, model)
    model.check_processes(trainer)
    folder = Path(output_dir) / command / name
    constant = command not in ("latency", "tokens") and scores
    now = partial(identify, trainer, model, datamodule, splits, arguments, constant)
    meet(trainer)
    with given_back(model, datamodule), ExitStack() as held:
        datamodule.attach(model)
        datamodule.check_asked(splits)
        check_has_images(model, datamodule, splits)
        if model.is_split:  # all processes together tell which weights they hold
            now = partial(dict, now())

        # the other processes of a distributed run work under the first one's lock
        def claim() -> None:
            identity = now()
            held.enter_context(locked_folder(prepare_folder(folder)))
            # changes no answer, so it may differ when the run is continued
            execution = {
                "data.batch_size": datamodule.batch_size,
                "processes": trainer.world_size,
                "executor": getattr(trainer, "executor", "lightning"),
                "seed_everything": os.environ.get("PL_GLOBAL_SEED"),
            }
            _claim(folder, identity, getattr(trainer, "resume_versions", "same"), command, execution)

        on_first_process(trainer, claim)
        if trainer.is_global_zero:
            open_loggers(trainer.loggers, folder)
        if not trainer.is_global_zero:
            with own_error(trainer):  # files of another node may be others
                wait_for(folder / MANIFEST, "start the first process too, with an --output_dir that all nodes see")
                refuse_other_run(folder, read_manifest(folder) or {}, now(), "same")
        run = Run(trainer, model, datamodule, folder, (read_manifest(folder) or {})["arguments"], max_bad_samples)
        yield run
        if trainer.is_global_zero and (done := run.effort.describe()):
            remark(f"\n{done}")


@contextmanager
def given_back(model: DepthModule, datamodule: DepthDataModule) -> Iterator[None]:
    """Both get back what a command sets in them, the model its device and modes too, also after an exception.

    Inside, the model is in evaluation mode.
    """
    device = model.device
    # by value, not by copying the two: weights and datasets stay the caller's
    owners: tuple[tuple[Any, tuple[str, ...]], ...] = ((model, _OF_MODEL), (datamodule, _OF_DATA))
    before = [(owner, name, getattr(owner, name)) for owner, names in owners for name in names]
    with evaluation_mode(model):
        try:
            yield
        finally:
            if model.device != device:
                model.to(device)
            for owner, name, value in before:
                setattr(owner, name, value)


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
