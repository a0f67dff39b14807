"""The evaluation of masks on one split, in Lightning's predict loop."""

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lit_depth.callbacks import LiveProgress, MaskSweep
from lit_depth.data import Task
from lit_depth.data.task import Nouns
from lit_depth.functional import MaskSet
from lit_depth.functional.fingerprints import weights_sample
from lit_depth.metrics.base import readings
from lit_depth.results.progress import write_plan
from lit_depth.studies.shared.against_full import ACCEPTANCE_TOKENS
from lit_depth.studies.shared.batch_size import settle_batch_size
from lit_depth.studies.shared.constant_answer import constant_scores
from lit_depth.studies.shared.fleet import answered_by_ray
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.scores import Scores

# ids of masks by the name of their group
Names = Mapping[str, Sequence[str]]
LIVE_SECONDS = 30.0


class Measured(NamedTuple):
    """Some masks and the full model on the samples of one split of one task."""

    task: Task
    split: str
    scores: Scores
    sweep: MaskSweep

    @property
    def nouns(self) -> Nouns:
        """What the samples are called, and what intervals are clustered by."""
        return _nouns(self.task, self.sweep)


def evaluate(
    run: Run,
    split: str,
    masks: Iterable[Tensor],
    what: str,
    names: Names | None = None,
    lens: bool = False,
    acceptance: bool = False,
) -> Measured:
    """Answer a split under masks in Lightning's predict loop; what the run's records hold already is not repeated.

    ``masks`` are those besides the full model's, ``what`` begins the text before the progress bar. The best constant
    answer stands beside the scores, on the same samples of all processes. ``names`` are those of groups of masks, as
    loggers are told of while it goes. ``lens`` is that of `MaskSweep`, and
    ``acceptance`` whether to read 16 tokens of the full model's own answers under every mask.

    Raises:
        ValueError: If records are missing, or fewer than two images could be evaluated.
    """
    measured = sweep_masks(run, split, masks, what, names, lens, acceptance)
    if measured.scores.is_bounded:
        constant = constant_scores(run.datamodule, split, measured.scores.samples)
        measured = measured._replace(scores=measured.scores._replace(constant=constant))
    return measured


def sweep_masks(
    run: Run,
    split: str,
    masks: Iterable[Tensor],
    what: str,
    names: Names | None = None,
    lens: bool = False,
    acceptance: bool = False,
) -> Measured:
    """`evaluate` without the constant answer."""
    task = run.datamodule.task
    records, text = run.folder / "records" / task.name / split, f"{what}, {task.name}, {split} split"
    every = [*MaskSet.full(run.model.num_units), *masks]
    sweep = sweep_samples(run, split, every, records, text, names=names, lens=lens, acceptance=acceptance)
    assert sweep.records is not None
    num_images = sweep.records["image"].nunique()
    if num_images < 2:
        cluster = _nouns(task, sweep).cluster
        raise ValueError(f"{split} split: intervals need at least 2 {cluster}s, got {num_images}")
    is_scored = not getattr(sweep.metric, "against_full", False)
    scores = Scores.from_records(sweep.records, sweep.metric.max_score, is_scored)
    return Measured(task, split, scores, sweep)


def _nouns(task: Any, sweep: MaskSweep) -> Nouns:
    nouns, records = Nouns.of(task), sweep.records
    # of a single document the windows are the clusters
    if nouns.sample == "window" and records is not None and (records["image"] == records["sample"]).all():
        return Nouns("window", "window")
    return nouns


def sweep_samples(
    run: Run,
    split: str,
    masks: Sequence[Tensor],
    records: Path,
    text: str,
    positions: Sequence[int] | None = None,
    names: Names | None = None,
    lens: bool = False,
    acceptance: bool = False,
) -> MaskSweep:
    """`evaluate` on some samples of a split, or all, with the records in a folder of their own.

    ``positions`` count in ``datamodule.eval_dataset(split)``; None = all.
    """
    task = run.datamodule.task
    sweep = _new_sweep(run, masks, records, text, lens, acceptance)
    run.model.use_task(task.max_new_tokens)
    num_samples = _count(run, split, positions)
    if not num_samples:
        raise ValueError(f"{split} split of {task.name}: there are no samples to evaluate")
    # a finished run that is started again only renders once more
    if not _is_complete(sweep, num_samples):
        started = time.perf_counter()
        _predict(run, split, sweep, positions, names)
        run.effort.add_answers(run.model, sweep.masks, sweep.num_new, time.perf_counter() - started)
    if sweep.records is None:
        raise ValueError("the strategy runs in processes of its own (such as ddp_spawn): use ddp, or torchrun")
    run.effort.read(records, len(sweep.records) > sweep.num_new)
    if positions is not None and sweep.records["sample"].nunique() + len(sweep.bad_samples) > len(positions):
        _leave_out_others(run, split, sweep, positions)
    sweep.check_bad_samples(num_samples)
    sweep.check_complete(num_samples - len(sweep.bad_samples))
    return sweep


def _leave_out_others(run: Run, split: str, sweep: MaskSweep, positions: Sequence[int]) -> None:
    """Leave out records of other samples: an earlier version may have asked for more of them at once."""
    assert sweep.records is not None
    every = run.datamodule.eval_dataset(split).recorded_ids()
    asked = {every[position][0] for position in positions}
    sweep.records = sweep.records[sweep.records["sample"].isin(asked)].reset_index(drop=True)
    sweep.bad_samples = {name: reason for name, reason in sweep.bad_samples.items() if name in asked}


def is_recorded(
    run: Run, split: str, masks: Sequence[Tensor], records: Path, positions: Sequence[int] | None = None
) -> bool:
    """Whether `sweep_samples` would answer nothing: everything is in its records."""
    return _is_complete(_new_sweep(run, masks, records, ""), _count(run, split, positions))


def _new_sweep(
    run: Run, masks: Sequence[Tensor], records: Path, text: str, lens: bool = False, acceptance: bool = False
) -> MaskSweep:
    task = run.datamodule.task
    # of answers that are not scored, by what would score them
    also = (readings(task.read_by) or None) if getattr(task, "read_by", "") else None
    length = ACCEPTANCE_TOKENS if acceptance else 0
    return MaskSweep(masks, records, task.metric, run.max_bad_samples, text, also, lens, length)


def _count(run: Run, split: str, positions: Sequence[int] | None) -> int:
    return len(run.datamodule.eval_dataset(split)) if positions is None else len(positions)


def _is_complete(sweep: MaskSweep, num_samples: int) -> bool:
    if not any(sweep.folder.glob("rank*.jsonl")):
        return False
    sweep.read()
    try:
        sweep.check_complete(num_samples - len(sweep.bad_samples))
    except ValueError:
        # read again once the loop has added to them
        sweep.records = None
        sweep.bad_samples = {}
        return False
    return True


def _live(run: Run, split: str, sweep: MaskSweep, names: Names | None) -> list[LiveProgress]:
    """What tells the loggers how it goes; nothing where nobody listens."""
    seconds = getattr(run.trainer, "live_seconds", LIVE_SECONDS)
    if not run.trainer.loggers or seconds is None:
        return []
    return [LiveProgress(sweep, seconds, names, stage=f"{run.datamodule.task.name}/{split}")]


def _predict(
    run: Run, split: str, sweep: MaskSweep, positions: Sequence[int] | None, names: Names | None = None
) -> None:
    trainer, datamodule = run.trainer, run.datamodule
    if datamodule.batch_size == "auto":
        datamodule = copy.copy(datamodule)
        datamodule.batch_size = settle_batch_size(run, split, sweep.folder)
    sweep.weights = weights_sample(run.model)
    shard = (0, 1) if run.model.is_split else (trainer.global_rank, trainer.world_size)
    loader = datamodule.eval_dataloader(split, shard=shard, positions=positions)
    if trainer.is_global_zero:
        write_plan(sweep.folder, sweep.masks.ids, _count(run, split, positions))
    if getattr(trainer, "executor", "lightning") == "ray":
        loader = answered_by_ray(trainer, run.model, loader, sweep)
    callbacks = [sweep, *_live(run, split, sweep, names)]
    trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    if trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.disable()  # it counts batches; the sweep's own counts masks too
    try:
        trainer.predict(run.model, loader, return_predictions=False)
    finally:
        for callback in callbacks:
            trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.enable()
