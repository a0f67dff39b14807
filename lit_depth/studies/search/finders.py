"""What finds ablations on the calibration split: the search, and its baselines."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lit_depth.functional import (
    Ablation,
    SearchResult,
    beam_search,
    contiguous_spans,
    exhaustive_search,
    importance_order,
    score_ablations,
)
from lit_depth.functional.search.ablations import Removed
from lit_depth.functional.search.beam import second_of
from lit_depth.functional.search.pairwise import PairwiseResult, pairwise_search
from lit_depth.results.terminal import remark
from lit_depth.studies.search.arguments import SearchArguments
from lit_depth.studies.search.score_cache import ScoreCache

# samples of the first rounds of a race; of no other number, so that any number of processes decides alike
ROUND = 64
Baselines = Mapping[str, Sequence[Ablation | None]]


def run_search(cache: ScoreCache, arguments: SearchArguments, seed: int) -> SearchResult:
    """The search that the arguments ask for."""
    if arguments.exhaustive:
        cache.describe = lambda masks, positions: f"exhaustive search, {len(masks)} combinations"
        return exhaustive_search(cache, cache.num_units, cache.num_samples, **_shared(cache, arguments))
    trainer, batch_size = cache.run.trainer, int(cache.run.datamodule.batch_size)
    num_idle = trainer.world_size - math.ceil(ROUND / batch_size)
    # two rounds are one: see `race`
    if arguments.racing and trainer.is_global_zero and num_idle > 0 and cache.num_samples > 2 * ROUND:
        remark(
            f"racing takes {ROUND} samples at first, which leaves {num_idle} of {trainer.world_size} processes idle: "
            "--racing false may take less time"
        )
    cache.describe = Progress(cache, arguments)
    return _beam_search(cache, arguments.beam_width, arguments, seed)


def run_pairwise(cache: ScoreCache, arguments: SearchArguments, seed: int) -> PairwiseResult:
    """The search by singles and pairs that the arguments ask for."""
    cache.describe = lambda masks, positions: f"pairwise search, {len(masks)} masks"
    options = {"beam_width": arguments.beam_width, "seed": seed, **_shared(cache, arguments)}
    return pairwise_search(cache, cache.num_units, cache.num_samples, **options)


def _beam_search(cache: ScoreCache, width: int, arguments: SearchArguments, seed: int) -> SearchResult:
    racing = {"racing": arguments.racing, "epsilon": arguments.epsilon, "batch": ROUND}
    options = {"beam_width": width, "seed": seed, **racing, **_shared(cache, arguments)}
    return beam_search(cache, cache.num_units, cache.num_samples, **options)


def _shared(cache: ScoreCache, arguments: SearchArguments) -> dict[str, Any]:
    """What every kind of search is given."""
    return {
        "keep": arguments.keep,
        "rank_by": arguments.rank_by,
        "delta": arguments.delta,
        "max_removed": arguments.max_blocks_to_remove,
        "clusters": cache.clusters,
    }


class Progress:
    """Where a search is, and how long the rest would take at most: as if no further sample were saved."""

    def __init__(self, cache: ScoreCache, arguments: SearchArguments) -> None:
        self.cache, self.num_levels = cache, arguments.max_blocks_to_remove
        num_free = cache.num_units - len(arguments.keep)
        # of each level, what its candidates cannot exceed
        self.most = [
            min(arguments.beam_width * (num_free - size + 1), math.comb(num_free, size))
            for size in range(1, self.num_levels + 1)
        ]
        self.level = self.round = self.asked = 0

    def __call__(self, masks: Tensor, positions: Sequence[int]) -> str:
        level = int((~masks[0]).sum())
        if level != self.level:
            self.level, self.round, self.asked = level, 0, 0
        self.round += 1
        left = len(masks) * (self.cache.num_samples - self.asked) + sum(self.most[level:]) * self.cache.num_samples
        self.asked += len(positions)
        text = f"level {level} of {self.num_levels}, round {self.round}"
        seconds = self.cache.seconds_per_score
        return text if seconds is None else f"{text}, at most {_duration(left * seconds)} left"


def _duration(seconds: float) -> str:
    """
    >>> _duration(42.3), _duration(600), _duration(20000)
    ('42 s', '10 min', '5.6 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def run_baselines(
    cache: ScoreCache, found: SearchResult, arguments: SearchArguments, seed: int
) -> tuple[Ablation, Baselines]:
    """The full model, and each baseline's best ablation of every size (None: there is none).

    The order of importance is that of the first level: with racing the mean of a block that was dropped is over fewer
    samples. Of a single block the best span is the search's own choice.
    """
    most = arguments.max_blocks_to_remove
    spans = [_spans(cache, length, arguments) for length in range(2, most + 1 if arguments.baselines else 2)]
    asked: list[Removed] = [(), *(span for same_length in spans for span in same_length)]
    cache.describe = lambda masks, positions: f"baselines, {len(masks)} contiguous spans and the full model"
    full, *scored = _score(cache, asked, arguments)
    if not arguments.baselines:
        return full, {}
    by_removed = {ablation.removed: ablation for ablation in scored}
    best_spans = [
        max((by_removed[span] for span in same_length), key=lambda found: _goodness(found, arguments), default=None)
        for same_length in spans
    ]
    cache.describe = lambda masks, positions: f"baselines, greedy search, {int((~masks[0]).sum())} removed"
    greedy = _beam_search(cache, 1, arguments, seed)
    cache.describe = lambda masks, positions: "baselines, order of importance"
    importance, second = _importance(found, cache.num_units, arguments)
    ordered = _score(cache, importance_order(importance, most, keep=arguments.keep, second=second), arguments)
    first = found.levels[0].best
    return full, {
        "greedy": [level.best for level in greedy.levels],
        "importance_order": ordered,
        "span": [first, *best_spans],
    }


def _spans(cache: ScoreCache, length: int, arguments: SearchArguments) -> list[Removed]:
    try:
        return contiguous_spans(cache.num_units, length, keep=arguments.keep)
    except ValueError:  # those that are kept leave no such stretch
        return []


def _score(cache: ScoreCache, ablations: Sequence[Removed], arguments: SearchArguments) -> Sequence[Ablation]:
    return score_ablations(cache, cache.num_units, cache.num_samples, ablations, rank_by=arguments.rank_by)


def _goodness(ablation: Ablation, arguments: SearchArguments) -> tuple[float, float]:
    """The score, and what orders equal ones; higher is better."""
    return ablation.score, second_of(ablation, arguments.rank_by)


def _importance(found: SearchResult, num_units: int, arguments: SearchArguments) -> tuple[list[float], list[float]]:
    """Of every unit by its own score, and what orders equal ones."""
    importance = np.full((2, num_units), 1.0)  # of those that are kept: no score is below -1
    for ablation in found.levels[0].ablations:
        importance[:, ablation.removed[0]] = [-score for score in _goodness(ablation, arguments)]
    return importance[0].tolist(), importance[1].tolist()
