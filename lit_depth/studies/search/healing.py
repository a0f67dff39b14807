"""``--heal patch``: the best masks of each size, patched one after another, and what they answer then."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning.pytorch import Trainer
from torch import Tensor

from lit_depth.data import DepthDataModule
from lit_depth.functional import SearchResult, ablation_masks, patch
from lit_depth.functional.arguments import check_least
from lit_depth.functional.healing.patch import Patch
from lit_depth.functional.masks import mask_id
from lit_depth.functional.search.ablations import Removed
from lit_depth.models.certify import digest
from lit_depth.models.quantization import is_quantized
from lit_depth.module import DepthModule, labelled
from lit_depth.results.store import read_of_run, write_of_run
from lit_depth.studies.shared.batch_size import settle_batch_size
from lit_depth.studies.shared.checks import check_all_tokens, check_asks, check_one_process, check_whole_blocks
from lit_depth.studies.shared.evaluate import is_recorded, sweep_samples
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.scores import Scores

Heal = Literal["none", "patch"]
SPLIT, REPORT_SPLIT = "calibration", "validation"
# three to fit and one to choose the ridge
LEAST_QUESTIONS = 4
# of fewer masks no order can be told from chance
LEAST_MASKS = 4
_FILE = "patch.json"


@dataclass(frozen=True)
class HealArguments:
    """What masks are healed by; a run that heals holds these beside its `SearchArguments`.

    Raises:
        ValueError: If one is out of range.
    """

    heal: Literal["patch"]
    heal_candidates: int
    heal_steps: int

    def __post_init__(self) -> None:
        check_least(1, heal_candidates=self.heal_candidates)
        check_least(0, heal_steps=self.heal_steps)


def heal_arguments(heal: Heal, candidates: int | None, steps: int, beam_width: int) -> HealArguments | None:
    """The arguments of healing; None without.

    >>> heal_arguments("patch", None, 0, 3).heal_candidates, heal_arguments("none", None, 0, 3)
    (6, None)

    Raises:
        ValueError: If one is out of range, or given though nothing is healed.
    """
    if heal == "none":
        if candidates is not None or steps:
            raise ValueError("--heal_candidates and --heal_steps go with --heal patch: give it, or leave them out")
        return None
    return HealArguments("patch", max(LEAST_MASKS, 2 * beam_width) if candidates is None else candidates, steps)


class Parts(NamedTuple):
    """Positions in the calibration split, no image in both parts."""

    fit: list[int]
    choice: list[int]


def split_in_parts(images: Sequence[str]) -> Parts:
    """The first images, with half of the questions or a few more, to fit on; the others to choose by.

    >>> split_in_parts(["a", "a", "b", "c", "b", "d"])
    Parts(fit=[0, 1, 2, 4], choice=[3, 5])
    """
    of_image: dict[str, list[int]] = {}
    for position, image in enumerate(images):
        of_image.setdefault(image, []).append(position)
    fit: list[int] = []
    for positions in of_image.values():
        if 2 * len(fit) < len(images):
            fit += positions
    chosen = set(fit)
    return Parts(sorted(fit), [position for position in range(len(images)) if position not in chosen])


def check_heal(trainer: Trainer, model: DepthModule, datamodule: DepthDataModule) -> None:
    """Refuse what cannot be healed before anything is searched.

    Raises:
        ValueError: Several processes, masks of sublayers or of one phase, texts without answers, weights that cannot be
            changed, or too few questions.
    """
    rule = "search --heal patch"
    check_one_process(trainer, f"{rule} fits in one process")
    check_whole_blocks(model, rule)
    check_all_tokens(model, rule)
    check_asks(datamodule, rule)
    if model.hparams["phase"] != "both":
        raise ValueError(
            f"{rule} skips blocks in all forwards: expected --model.phase both, got {model.hparams['phase']}"
        )
    if is_quantized(model.model) or any(weight.is_meta for weight in model.model.parameters()):
        raise ValueError(
            f"{rule} changes weights: expected a model in full precision on devices that hold it, got quantised or "
            "offloaded weights; leave out --model.quantization, or --heal"
        )
    images = [image for _, image in datamodule.eval_dataset(SPLIT).recorded_ids()]
    parts = split_in_parts(images)
    num_fit, num_images = len(parts.fit), len({images[position] for position in parts.choice})
    if num_fit < LEAST_QUESTIONS or num_images < 2:
        raise ValueError(
            f"{rule}: expected at least {LEAST_QUESTIONS} questions of the {SPLIT} split to fit on and 2 more images "
            f"to choose by, got {num_fit} and {num_images}: raise --data.calibration_samples, or add questions"
        )


def candidates(found: SearchResult, count: int) -> list[list[Removed]]:
    """Of each level the ablations that are patched: the best on the calibration split, in this order."""
    return [[ablation.removed for ablation in level.ablations[:count]] for level in found.levels]


class PatchedMask(NamedTuple):
    """What a patch changed, and the scores of the patched mask: to choose by, and to report."""

    removed: Removed
    spans: list[dict[str, Any]]
    choice: Scores
    report: Scores


def patch_each(
    run: Run, arguments: HealArguments, images: Sequence[str], ablations: Sequence[Removed]
) -> list[PatchedMask]:
    """Patch every mask alone and answer the questions to choose by and those to report; weights are given back.

    A run that was killed continues: a mask that is done is read, any other is fitted again, which gives the same
    weights.

    Args:
        images: Of each question of the calibration split.
        ablations: What the masks skip.

    Raises:
        ValueError: As `lit_depth.functional.patch`, and if fewer questions than it takes can be read.
    """
    # bad samples count as a share of the split, which the search did; here they are those of a part
    run = replace(run, max_bad_samples=1.0)
    if run.datamodule.batch_size == "auto":  # once, not for every mask
        datamodule = copy.copy(run.datamodule)
        datamodule.batch_size = settle_batch_size(
            run, REPORT_SPLIT, run.folder / "records" / datamodule.task.name / "patched"
        )
        run = replace(run, datamodule=datamodule)
    healer = _Healer(run, arguments, split_in_parts(images))
    masks = ablation_masks(run.model.num_units, ablations)
    total = len(ablations)
    return [
        healer(removed, mask, f"mask {number} of {total}")
        for number, (removed, mask) in enumerate(zip(ablations, masks), 1)
    ]


class _Healer:
    """Patches masks of one run, one at a time."""

    def __init__(self, run: Run, arguments: HealArguments, parts: Parts) -> None:
        self.run, self.arguments, self.parts = run, arguments, parts
        self._batches: list[dict[str, Tensor]] | None = None

    def __call__(self, removed: Removed, mask: Tensor, text: str) -> PatchedMask:
        folder = self.run.folder / "records" / self.run.datamodule.task.name / "patched" / mask_id(mask)
        done = self._done(mask, folder)
        if done is not None:
            return PatchedMask(removed, done["spans"], *self._answers(mask, folder / done["weights"], text))
        found = self._fit(mask)
        # by the weights: the same questions in other batches give others, by rounding
        weights, spans = digest(found.weights)[:16], list(_describe_spans(found))
        with found.applied():
            answers = list(self._answers(mask, folder / weights, text))
        write_of_run(folder / _FILE, {"weights": weights, "spans": spans})
        return PatchedMask(removed, spans, *answers)

    def _done(self, mask: Tensor, folder: Path) -> dict[str, Any] | None:
        """Which patch all answers were given by; None where some are missing."""
        if not (folder / _FILE).is_file():
            return None
        content = read_of_run(folder / _FILE, weights=str, spans=list)
        records = folder / content["weights"]
        complete = all(
            is_recorded(self.run, split, [mask], records / split, positions)
            for split, positions in self._questions().items()
        )
        return content if complete else None

    def _questions(self) -> dict[str, list[int] | None]:
        return {SPLIT: self.parts.choice, REPORT_SPLIT: None}

    def _fit(self, mask: Tensor) -> Patch:
        model, data = self.run.model, self.run.datamodule
        model.to(self.run.trainer.strategy.root_device)
        if self._batches is None:
            self._batches = labelled(model, data.eval_dataloader(SPLIT, positions=self.parts.fit))
        num_questions = sum(len(batch["input_ids"]) for batch in self._batches)
        if num_questions < LEAST_QUESTIONS:
            raise ValueError(
                f"--heal patch: expected at least {LEAST_QUESTIONS} questions of the {SPLIT} split that can be read, "
                f"got {num_questions}: raise --data.calibration_samples, or add questions"
            )
        return patch(model.model, mask, self._batches, blocks=model.hparams["blocks"], steps=self.arguments.heal_steps)

    def _answers(self, mask: Tensor, records: Path, text: str) -> Iterator[Scores]:
        for split, positions in self._questions().items():
            label = f"patched {text}, {self.run.datamodule.task.name}, {split} split"
            sweep = sweep_samples(self.run, split, [mask], records / split, label, positions)
            assert sweep.records is not None
            yield Scores.from_records(sweep.records, sweep.metric.max_score)


def _describe_spans(found: Patch) -> Iterator[dict[str, Any]]:
    for span in found.spans:
        # no ridge: nothing was better than no change
        numbers = {"ridge": span.ridge, "unexplained": span.unexplained}
        known = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        yield {"skipped": list(span.skipped), "block": span.block, **known, "num_tokens": span.num_tokens}
