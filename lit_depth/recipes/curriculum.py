"""The training data of the shapes model in phases: which questions of two tasks, for which blocks, at which rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from lit_depth.data.task import TrainingItem
from lit_depth.data.tasks.easy_vqa import EasyVQATrainingSet
from lit_depth.data.tasks.shapes_vqa import Draws, ShapesTrainingSet, ShapesVQA, check_type_weights
from lit_depth.functional.arguments import check_least, check_range


@dataclass(frozen=True)
class TrainingPhase:
    """Steps of training in which one set of blocks learns from one mixture of questions.

    Args:
        steps: Optimiser steps.
        type_weights: Share of each question type of shapes_vqa, summing to 1.
        easy_vqa: Share of images that are easy_vqa's.
        blocks: The blocks that run and are trained; null = all.
        dropout: Largest probability with which a step skips a block of these, at the first step of the phase and
            behind its last one, with a line between; see `TrainInPhases`.
        rate: Factor of the learning rates at the first step and behind the last one, with half a cosine between.
        warmup_steps: Steps in which the rate rises to that in a line.
    """

    steps: int
    type_weights: dict[str, float]
    easy_vqa: float = 0.0
    blocks: list[int] | None = None
    dropout: tuple[float, float] = (0.0, 0.0)
    rate: tuple[float, float] = (1.0, 1.0)
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_least(1, steps=self.steps)
        check_least(0, warmup_steps=self.warmup_steps)
        check_type_weights(self.type_weights)
        for share in (self.easy_vqa, *self.dropout):
            check_range(0, 1, share=share)
        check_least(0, rate=min(self.rate))

    def peak_at(self, step: int) -> float:
        """The largest probability of skipping a block, at a step of the phase."""
        return self.dropout[0] + (self.dropout[1] - self.dropout[0]) * step / self.steps

    def rate_at(self, step: int) -> float:
        """The factor of the learning rates, at a step of the phase.

        >>> phase = TrainingPhase(100, {"color": 1.0}, rate=(1.0, 0.0), warmup_steps=4)
        >>> [round(phase.rate_at(step), 3) for step in (0, 1, 50, 99)]
        [0.25, 0.5, 0.5, 0.0]
        """
        first, last = self.rate
        rate = last + (first - last) * (1 + math.cos(math.pi * step / self.steps)) / 2
        return rate * min(1.0, (step + 1) / max(1, self.warmup_steps))


def find_phase(phases: Sequence[TrainingPhase], step: int) -> tuple[int, int]:
    """Return the number of the phase that a step of the training falls into, and the step's number within it.

    The step behind the last one belongs to the last phase: schedules ask for it.
    """
    for number, phase in enumerate(phases):
        if step < phase.steps or number == len(phases) - 1:
            return number, step
        step -= phase.steps
    raise ValueError("expected at least one phase, got none")


class ShapesCurriculum(ShapesVQA):
    """shapes_vqa, trained on in phases, with images of easy_vqa among its own.

    Args:
        phases: What comes after what.
        easy_vqa_path: As the path of `lit_depth.data.tasks.easy_vqa.EasyVQA.load`.
    """

    train_in_order = True

    def __init__(self, phases: list[TrainingPhase], easy_vqa_path: str | None = None) -> None:
        super().__init__()
        if not phases:
            raise ValueError("expected at least one phase, got none")
        self.phases, self.easy_vqa_path = phases, easy_vqa_path

    @property
    def num_steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def training_set(self, num_images: int, seed: int) -> Dataset[TrainingItem]:
        images_per_step, rest = divmod(num_images, self.num_steps)
        if rest:
            raise ValueError(
                f"expected data.train_images as a multiple of the phases' {self.num_steps} steps, got {num_images}"
            )
        mixed = any(phase.easy_vqa for phase in self.phases)
        easy = EasyVQATrainingSet(num_images, seed, self.easy_vqa_path) if mixed else None
        return CurriculumImages(num_images, seed, self.phases, images_per_step, easy)


@dataclass(eq=False)
class CurriculumImages(Dataset[TrainingItem]):
    """The images of all phases one after another, drawn on access.

    Args:
        num_images: Length.
        seed: As in `ShapesVQA`; it also chooses which images are easy_vqa's.
        phases: As in `ShapesCurriculum`.
        images_per_step: Images of one optimiser step.
        easy_vqa: Images to mix in, as many; None where no phase has any.
    """

    num_images: int
    seed: int
    phases: Sequence[TrainingPhase]
    images_per_step: int
    easy_vqa: EasyVQATrainingSet | None = None

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> TrainingItem:
        phase = self.phases[find_phase(self.phases, index // self.images_per_step)[0]]
        if self.easy_vqa is not None and Draws("mix", self.seed, index).below(1000) < 1000 * phase.easy_vqa:
            return self.easy_vqa[index]
        return ShapesTrainingSet(self.num_images, self.seed, phase.type_weights)[index]
