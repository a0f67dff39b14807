"""What a search is asked for, checked before anything is evaluated."""

import math
from dataclasses import InitVar, dataclass
from typing import Literal

from lit_depth.data import DepthDataModule
from lit_depth.functional.search.ablations import free_units
from lit_depth.functional.search.beam import MAX_COMBINATIONS
from lit_depth.metrics.base import resolve
from lit_depth.studies.shared.checks import check_one_task


@dataclass(frozen=True)
class SearchArguments:
    """The arguments of ``lit-depth search`` that change its result; the manifest and ``search.json`` hold all of them.

    Raises:
        ValueError: If one is out of range, or an exhaustive search would take too many combinations.
    """

    strategy: Literal["beam", "pairwise"]
    beam_width: int
    max_blocks_to_remove: int
    keep: list[int]
    rank_by: Literal["accuracy", "reference_logprob"]
    racing: bool
    epsilon: float
    delta: float
    exhaustive: bool
    baselines: bool
    confidence: float
    num_units: InitVar[int]

    def __post_init__(self, num_units: int) -> None:
        if self.beam_width < 1:
            raise ValueError(f"beam_width must be at least 1, got {self.beam_width}")
        if not 0 <= self.epsilon < math.inf or not 0 < self.delta < 1:
            raise ValueError(
                f"epsilon must be at least 0 and delta between 0 and 1, got {self.epsilon} and {self.delta}"
            )
        if self.strategy == "pairwise":
            self._check_pairwise()
        most, num_free = self.max_blocks_to_remove, num_units - len(self.keep)
        try:
            free_units(num_units, most, self.keep)
        except ValueError as error:
            raise ValueError(f"max_blocks_to_remove, keep: {error}") from error
        count = sum(math.comb(num_free, size) for size in range(1, most + 1))
        if self.exhaustive and count > MAX_COMBINATIONS:
            raise ValueError(
                f"exhaustive takes at most {MAX_COMBINATIONS:,} combinations, got {count:,} (1 to {most} of "
                f"{num_free} units): remove fewer, keep more, or leave it to the beam"
            )

    def _check_pairwise(self) -> None:
        if self.exhaustive:
            raise ValueError("exhaustive evaluates every combination, so strategy pairwise has nothing to predict")
        if self.max_blocks_to_remove < 3:
            raise ValueError(
                "strategy pairwise predicts masks of three and more removed units: expected max_blocks_to_remove of "
                f"at least 3, got {self.max_blocks_to_remove}"
            )


def check_task(datamodule: DepthDataModule) -> None:
    """Raise ValueError unless there is one task, whose metric scores each sample by itself."""
    check_one_task(datamodule, "search takes one task at a time")
    metric = datamodule.task.metric
    if getattr(resolve(metric), "corpus", None) is not None:
        raise ValueError(
            f"search needs a score of each sample by itself; {metric} of {datamodule.task.name} belongs to all samples "
            "together. Give another --data.task"
        )
