"""Heal the masked model in memory before it is written, and measure what that gives back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from lit_depth.functional import patch
from lit_depth.functional.healing.healed_weights import HealedWeights
from lit_depth.functional.healing.patch import Patch
from lit_depth.functional.masks import MaskSet, full_id
from lit_depth.models.certify import digest
from lit_depth.module import labelled
from lit_depth.studies.export.arguments import Choice, whole_blocks
from lit_depth.studies.export.training import SPLIT as TRAIN_SPLIT
from lit_depth.studies.export.training import Training, train
from lit_depth.studies.shared.evaluate import sweep_masks, sweep_samples
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.scores import Scores, family_entry, interval_entry

Heal = Literal["none", "patch", "lora", "full"]

SPLIT, REPORT_SPLIT, CONFIDENCE = "calibration", "validation", 0.95
# three to fit and one to choose the ridge
LEAST_QUESTIONS = 4


class Healing(NamedTuple):
    """What was changed, by which questions, and what it gives back on others."""

    patch: Patch | None
    """What heals, or what the training begins with; None = nothing, as the mask skips block 0."""
    task: str
    num_questions: int  # that the patch was fitted to
    seed: int  # chooses questions, images and adapters
    quality: dict[str, Any]
    """Of the ``whole``, the ``masked`` and the ``healed`` model, on the same questions; ``regained`` by healing."""
    training: Training | None = None

    def entry(self) -> dict[str, Any]:
        """As JSON."""
        asked = {"split": SPLIT, "num_questions": self.num_questions}
        spans = [] if self.patch is None else self.patch.spans
        fitted = {"spans": [{**span._asdict(), "ridge": _finite(span.ridge)} for span in spans]}
        if self.training is None:
            how = {"method": "patch", "task": self.task, **asked, "seed": self.seed, **fitted}
        else:
            begun = None if self.patch is None else {**asked, **fitted}
            how = {**self.training.entry(), "task": self.task, "split": TRAIN_SPLIT, "seed": self.seed, "patch": begun}
        return {**how, "quality": self.quality}

    def expected(self) -> dict[str, Any]:
        """The healed model's quality, as a `Choice` has it."""
        about = {key: self.quality[key] for key in ("task", "metric", "num_samples", "confidence")}
        return about | {key: self.quality["healed"][key] for key in ("quality", "quality_ci", "drop", "drop_ci")}


def check_heal(heal: Heal, masks: MaskSet, weights: bool) -> None:
    """Refuse masks that cannot be healed before the work is done.

    Raises:
        ValueError: If no weights are written, or the mask skips no block, or for a patch the first one.
    """
    if heal == "none":
        return
    whole = whole_blocks(masks)
    if not weights or whole is None:
        raise ValueError("--heal changes the weights of whole blocks that are written: leave out --weights false")
    if bool(whole[0].all()):
        raise ValueError("expected a mask that skips blocks, got none: there is nothing to heal; leave out --heal")
    if heal == "patch" and not is_patched(heal, masks):
        raise ValueError(
            "cannot patch a mask that skips block 0: no block before it can take its part; keep block 0, give --heal "
            "lora or full, or leave out --heal"
        )


def is_patched(heal: Heal, masks: MaskSet) -> bool:
    """Whether a patch is fitted: for itself, or for a training to begin with."""
    whole = whole_blocks(masks)
    return heal != "none" and whole is not None and bool(whole[0][0])


@contextmanager
def healed(
    run: Run, choice: Choice, heal: Heal, training: Training | None = None
) -> Iterator[tuple[Choice, Healing | None]]:
    """The run's model with healed weights inside a ``with`` statement; leaving it gives the old ones back bit for bit.

    What is known of the quality of the mask is not that of the healed model: it gives way to what is measured here.

    Raises:
        ValueError: If the model cannot be patched or trained, there are too few questions to heal by, or they share an
            image with those that are reported on.
    """
    whole = whole_blocks(choice.masks)
    if heal == "none" or whole is None:
        yield choice, None
        return
    model, data = run.model, run.datamodule
    model.to(run.trainer.strategy.root_device)
    fitted, num_questions = _patch(run, whole[0]) if is_patched(heal, choice.masks) else (None, 0)
    if training is None:
        assert fitted is not None
        found: HealedWeights = fitted
    else:
        found = train(run, whole[0], {} if fitted is None else fitted.weights, training)
    before = sweep_masks(run, REPORT_SPLIT, choice.masks, "Without healing")
    with found.applied():
        # by their weights: the same questions in other batches give others, by rounding
        records = run.folder / "records" / data.task.name / f"{REPORT_SPLIT}_healed" / digest(found.weights)[:16]
        text = f"Healed, {data.task.name}, {REPORT_SPLIT} split"
        after = sweep_samples(run, REPORT_SPLIT, list(choice.masks), records, text)
        scores = Scores.from_records(after.records, after.metric.max_score)
        quality = {"task": data.task.name, "metric": data.task.metric} | compare(before.scores, scores)
        healing = Healing(fitted, data.task.name, num_questions, data.seed, quality, training)
        yield choice._replace(expected=healing.expected()), healing


def _patch(run: Run, mask: Tensor) -> tuple[Patch, int]:
    """A patch, fitted to the calibration split, and the number of its questions."""
    model, data = run.model, run.datamodule
    data.check_disjoint(SPLIT, REPORT_SPLIT)
    batches = labelled(model, data.eval_dataloader(SPLIT))
    num_questions = sum(len(batch["input_ids"]) for batch in batches)
    if num_questions < LEAST_QUESTIONS:
        raise ValueError(
            f"--heal {run.arguments['heal']}: expected at least {LEAST_QUESTIONS} questions of the {SPLIT} split, got "
            f"{num_questions}: raise --data.calibration_samples, or add questions"
        )
    return patch(model.model, mask, batches, blocks=model.hparams["blocks"]), num_questions


def compare(before: Scores, after: Scores) -> dict[str, Any]:
    """Quality of whole, masked and healed model on the same samples; their three differences are one family.

    Args:
        before: Of the whole model and the masked one.
        after: Of the healed one.

    Raises:
        ValueError: If samples differ.
    """
    if before.samples != after.samples:
        raise ValueError("expected the healed model's answers to the same questions, got others")
    (name,) = after.mask_ids
    rows = np.concatenate([before.rows([full_id(len(name)), name]), after.rows([name])])
    whole, masked, mended = rows
    differences = before.compare(np.stack([whole - masked, whole - mended, mended - masked]), CONFIDENCE)
    qualities = [interval_entry(each, "quality") for each in before.mean_intervals(rows, CONFIDENCE)]
    lost, left, regained = (
        {**family_entry(each, key), f"{key}_p_holm": each.p_holm}
        for each, key in zip(differences, ("drop", "drop", "regained"))
    )
    return {
        "split": REPORT_SPLIT,
        "num_samples": len(before.samples),
        "confidence": CONFIDENCE,
        "whole": qualities[0],
        "masked": qualities[1] | lost,
        "healed": qualities[2] | left,
        **regained,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
