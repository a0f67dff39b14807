"""Policies: rules that make a block mask, a bool tensor ``[num_blocks]`` with True where the block runs.

Each rule takes ``keep``, indices of blocks that always run. They count toward ``k``; the rule fills the remaining
places from the other blocks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lit_depth.functional.checks import MAX_UNITS, check_range, checked, shorten

Importance = Tensor | Sequence[float] | Mapping[str, float] | Mapping[int, float]


@checked
def prefix(num_blocks: int, k: int, *, keep: Sequence[int] = ()) -> Tensor:
    """Keep the first ``k`` blocks (after those in ``keep``).

    Raises:
        ValueError: ``k`` outside 1..num_blocks or below ``len(keep)``; an index in ``keep`` out of range or repeated.

    >>> prefix(4, 2).tolist()
    [True, True, False, False]
    >>> prefix(4, 2, keep=[3]).tolist()
    [True, False, False, True]
    """
    return _fill(num_blocks, k, keep, range(num_blocks))


@checked
def suffix(num_blocks: int, k: int, *, keep: Sequence[int] = ()) -> Tensor:
    """Keep the last ``k`` blocks (after those in ``keep``). Raises as :func:`prefix`.

    >>> suffix(4, 1).tolist()
    [False, False, False, True]
    """
    return _fill(num_blocks, k, keep, reversed(range(num_blocks)))


@checked
def uniform(num_blocks: int, k: int, *, keep: Sequence[int] = ()) -> Tensor:
    """Keep ``k`` evenly spaced blocks: block ``floor(j * (num_blocks - 1) / (k - 1) + 1/2)`` for j = 0..k-1.

    The first and the last block are among them where ``k >= 2``; ``k = 1`` keeps block 0. With ``keep``, the rule
    spaces the remaining places evenly over the blocks that are not in ``keep``. Raises as :func:`prefix`.

    >>> uniform(7, 3).nonzero().flatten().tolist()
    [0, 3, 6]
    """
    always = _check(num_blocks, k, keep)
    others = [block_idx for block_idx in range(num_blocks) if block_idx not in always]
    places = k - len(always)
    # floor(x + 1/2) in integers: round() would send halves to the even neighbour and break the even spacing
    steps = max(2 * (places - 1), 1)
    spaced = [others[(2 * j * (len(others) - 1) + (places - 1)) // steps] for j in range(places)]
    return _mask(num_blocks, [*always, *spaced])


@checked
def random(num_blocks: int, k: int, seed: int, *, keep: Sequence[int] = ()) -> Tensor:
    """Keep ``k`` blocks drawn without replacement; the same for the same arguments, whatever the global RNG state.

    The global generator is neither read nor advanced. Raises as :func:`prefix`.

    >>> int(random(8, 3, seed=0).sum()), bool((random(8, 3, seed=0) == random(8, 3, seed=0)).all())
    (3, True)
    """
    _check(num_blocks, k, keep)
    check_range(0, 2**64 - 1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return _fill(num_blocks, k, keep, torch.randperm(num_blocks, generator=generator).tolist())


@checked
def top_k(importance: Importance, k: int, *, keep: Sequence[int] = ()) -> Tensor:
    """Keep the ``k`` most important blocks; of equally important ones the lower index.

    Args:
        importance: one finite score per block: ``[num_blocks]``, or a mapping ``{"0": 0.6, "1": 0.04, ...}``.
        k: number of active blocks, 1..num_blocks.
        keep: indices that always run; they count toward ``k``.

    Raises:
        ValueError: as :func:`prefix`, or scores that are not finite or do not cover blocks 0..num_blocks-1.

    >>> top_k([0.1, 0.5, 0.1, 0.9], 3).tolist()
    [True, True, False, True]
    """
    scores = _scores(importance)
    order = sorted(range(len(scores)), key=lambda block_idx: (-scores[block_idx], block_idx))
    return _fill(len(scores), k, keep, order)


@checked
def threshold(importance: Importance, fraction: float, *, keep: Sequence[int] = ()) -> Tensor:
    """Keep the blocks whose importance is at least ``fraction`` times the largest one, and those in ``keep``.

    Args:
        importance: as in :func:`top_k`; the largest score must be positive.
        fraction: 0..1.
        keep: indices that always run.

    Raises:
        ValueError: ``fraction`` outside 0..1, no positive score, or scores as refused by :func:`top_k`.

    >>> threshold({"0": 1.0, "1": 0.2, "2": 0.5}, 0.5).tolist()
    [True, False, True]
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"expected a fraction between 0 and 1, given {fraction}")
    scores = _scores(importance)
    largest = max(scores)
    if largest <= 0:
        raise ValueError(f"expected at least one positive importance, the largest given is {largest}")
    chosen = [block_idx for block_idx, score in enumerate(scores) if score >= fraction * largest]
    return _mask(len(scores), {*chosen, *_check_indices(len(scores), keep)})


@checked
def from_indices(num_blocks: int, indices: Sequence[int], *, keep: Sequence[int] = ()) -> Tensor:
    """Keep exactly the blocks in ``indices`` and those in ``keep``.

    Raises:
        ValueError: no block at all, or an index out of range or given twice within one argument.

    >>> from_indices(4, [3, 0]).tolist()
    [True, False, False, True]
    """
    check_range(1, MAX_UNITS, num_blocks=num_blocks)
    chosen = {*_check_indices(num_blocks, indices), *_check_indices(num_blocks, keep)}
    if not chosen:
        raise ValueError("expected at least one active block, given no index")
    return _mask(num_blocks, chosen)


@checked
def leave_one_out(num_blocks: int) -> Tensor:
    """Return the bool ``[num_blocks, num_blocks]`` masks whose row i skips block i only.

    Raises:
        ValueError: fewer than two blocks (a mask needs an active one).

    >>> leave_one_out(2).tolist()
    [[False, True], [True, False]]
    """
    check_range(1, MAX_UNITS, num_blocks=num_blocks)
    if num_blocks < 2:
        raise ValueError(f"expected at least 2 blocks to leave one out, given {num_blocks}")
    return ~torch.eye(num_blocks, dtype=torch.bool)


def _fill(num_blocks: int, k: int, keep: Sequence[int], order: Iterable[int]) -> Tensor:
    """Mask of ``keep`` and then the first blocks of ``order`` until ``k`` are active."""
    always = _check(num_blocks, k, keep)
    others = [block_idx for block_idx in order if block_idx not in always]
    return _mask(num_blocks, [*always, *others[: k - len(always)]])


def _mask(num_blocks: int, indices: Iterable[int]) -> Tensor:
    mask = torch.zeros(num_blocks, dtype=torch.bool)
    mask[list(indices)] = True
    return mask


def _check(num_blocks: int, k: int, keep: Sequence[int]) -> list[int]:
    check_range(1, MAX_UNITS, num_blocks=num_blocks)
    if not 1 <= k <= num_blocks:
        raise ValueError(f"expected k, the number of active blocks, between 1 and {num_blocks}, given {k}")
    always = _check_indices(num_blocks, keep)
    if k < len(always):
        raise ValueError(f"expected k of at least {len(always)}, the number of blocks in keep, given {k}")
    return always


def _check_indices(num_blocks: int, indices: Sequence[int]) -> list[int]:
    checked = [int(block_idx) for block_idx in indices]
    for block_idx in checked:
        if not 0 <= block_idx < num_blocks:
            raise ValueError(f"expected block indices between 0 and {num_blocks - 1}, given {block_idx}")
    if len(set(checked)) != len(checked):
        raise ValueError(f"expected distinct block indices, given {checked}")
    return checked


def _block_idx(key: str | int) -> int:
    return int(key) if isinstance(key, str) else operator.index(key)


def _scores(importance: Importance) -> list[float]:
    if isinstance(importance, Mapping):
        try:
            by_block = {_block_idx(key): float(value) for key, value in importance.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"expected importance as {{block index: score}}, given {shorten(importance)}") from error
        if sorted(by_block) != list(range(len(importance))):
            raise ValueError(f"expected importance for blocks 0..{len(importance) - 1}, given keys {list(importance)}")
        scores = [by_block[block_idx] for block_idx in range(len(by_block))]
    else:
        values = torch.as_tensor(
            importance if isinstance(importance, Tensor) else list(importance), dtype=torch.float64
        )
        if values.ndim != 1:
            raise ValueError(f"expected importance of shape [num_blocks], given {list(values.shape)}")
        scores = values.tolist()
    if not scores or not all(map(math.isfinite, scores)):
        raise ValueError(f"expected one finite importance per block, given {scores}")
    return scores
