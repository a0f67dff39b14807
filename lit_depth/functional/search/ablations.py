"""Ablations, units removed together: their masks, what a search has to beat, and how units interact."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_depth.functional.arguments import MAX_UNITS, check_range, checked, shorten
from lit_depth.functional.masking.policies import Importance, from_indices, top_k

Removed = tuple[int, ...]


@checked
def free_units(num_units: int, max_removed: int, keep: Sequence[int]) -> list[int]:
    """Units that may be removed.

    Raises:
        ValueError: None may, or ``max_removed`` is not at least 1 and at most what leaves ``keep`` and a unit.
    """
    check_range(1, MAX_UNITS, num_units=num_units)
    always = from_indices(num_units, keep) if len(keep) else torch.zeros(num_units, dtype=torch.bool)
    free = (~always).nonzero().flatten().tolist()
    most = min(len(free), num_units - 1)
    if most < 1:
        raise ValueError(f"expected a unit that may be removed, got keep={list(keep)} of {num_units}")
    if not 1 <= max_removed <= most:
        kept = f", of which {len(keep)} are kept" if keep else " (one has to stay)"
        raise ValueError(f"expected to remove between 1 and {most} of {num_units} units{kept}, got {max_removed}")
    return free


@checked
def ablation_masks(num_units: int, ablations: Sequence[Sequence[int]]) -> Tensor:
    """Masks, bool ``[ablations, num_units]``, that are False at the removed units.

    Raises:
        ValueError: No ablation; an index out of range or repeated; an ablation that leaves no unit.

    >>> ablation_masks(3, [(0,), (0, 2)]).tolist()
    [[False, True, True], [False, True, False]]
    """
    check_range(1, MAX_UNITS, num_units=num_units)
    if not len(ablations):
        raise ValueError("expected at least one ablation, got none")
    masks = [
        ~from_indices(num_units, removed) if len(removed) else torch.ones(num_units).bool() for removed in ablations
    ]
    for mask, removed in zip(masks, ablations):
        if not mask.any():
            raise ValueError(f"expected an ablation that leaves a unit of {num_units}, got {list(removed)}")
    return torch.stack(masks)


@checked
def contiguous_spans(num_units: int, length: int, *, keep: Sequence[int] = ()) -> list[Removed]:
    """Ablations of ``length`` neighbouring units, none of them in ``keep``: the baseline that removes one stretch.

    Raises:
        ValueError: A length outside 1..num_units-1, no such span, or an index in ``keep`` out of range or repeated.

    >>> contiguous_spans(5, 2, keep=[1])
    [(2, 3), (3, 4)]
    """
    free = set(free_units(num_units, length, keep))
    spans = [tuple(range(start, start + length)) for start in range(num_units - length + 1)]
    spans = [span for span in spans if free.issuperset(span)]
    if not spans:
        raise ValueError(f"expected {length} neighbouring units that may be removed, got keep={list(keep)}")
    return spans


@checked
def importance_order(
    importance: Importance, max_removed: int, *, keep: Sequence[int] = (), second: Sequence[float] | None = None
) -> list[Removed]:
    """Ablations of 1 to ``max_removed`` units, least important first: the baseline that ignores interactions.

    Each leaves what `lit_depth.functional.top_k` keeps, so of equally important units the higher index goes first.

    Args:
        importance: One number for each unit.
        max_removed: Size of the largest.
        keep: Units that are never removed.
        second: Importance by another score, which orders units that are equal by the first.

    Raises:
        ValueError: As `lit_depth.functional.top_k`, more removals than units that may go, or a ``second`` of another
            length.

    >>> importance_order([0.5, 0.1, 0.3, 0.1], 3, keep=[1])
    [(3,), (2, 3), (0, 2, 3)]
    >>> importance_order([0.1, 0.1, 0.3], 2, second=[0.2, 0.7, 0.0])
    [(0,), (0, 1)]
    """
    num_units = importance.numel() if isinstance(importance, Tensor) else len(importance)
    free_units(num_units, max_removed, keep)
    if second is not None:
        importance = _ranks(importance, second)
    masks = [top_k(importance, num_units - size, keep=keep) for size in range(1, max_removed + 1)]
    return [tuple((~mask).nonzero().flatten().tolist()) for mask in masks]


def _ranks(importance: Importance, second: Sequence[float]) -> list[float]:
    """Numbers in the order of ``importance``, where that is equal in the order of ``second``."""
    pairs = list(zip(map(float, importance), map(float, second)))
    if len(second) != len(importance) or not all(math.isfinite(value) for pair in pairs for value in pair):
        raise ValueError(f"expected two finite numbers for each of {len(importance)} units, got {shorten(second)}")
    places = {pair: float(place) for place, pair in enumerate(sorted(set(pairs)))}
    return [places[pair] for pair in pairs]


@checked
def interaction(drop: float, single_drops: Sequence[float]) -> float:
    """What a combination costs beyond its parts: its drop minus the sum of its units' own drops.

    Positive: the units stand in for one another. Negative: they share what they do. All drops on the same samples.

    >>> round(interaction(0.30, [0.05, 0.10]), 2)
    0.15
    """
    return drop - math.fsum(single_drops)
