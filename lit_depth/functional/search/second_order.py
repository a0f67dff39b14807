"""A second-order model of what removing units costs: their own drops, and the interaction of every pair.

It is the Moebius expansion of the score as a set function of the removed units, cut after its second order (Grabisch &
Roubens 1999, doi:10.1007/s001820050125): exact for no unit, one and two, and for all sets where no three units interact
beyond their pairs. How far it can be trusted elsewhere, held-out sets tell (`held_out_ablations`).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lit_depth.functional.arguments import check_least, checked, shorten
from lit_depth.functional.search.ablations import Removed, free_units
from lit_depth.functional.statistics import Floats

Order = Literal[1, 2]
MAX_ENUMERATED = 200_000  # predicted sets of one size, some tenths of a second
_BEAM = 500


class SecondOrder(NamedTuple):
    """What each unit costs alone, and every pair beyond that. Trailing dimensions, such as samples, are free.

    Attributes:
        units: The units that may be removed, ascending; they number the rows and columns below.
        full: ``[...]`` score of the full model.
        drops: ``[units, ...]`` score lost when one unit is removed.
        interactions: ``[units, units, ...]`` score that a pair loses beyond its two drops; symmetric, 0 on the
            diagonal. Positive: each stands in for the other. Negative: the two share what they do.
    """

    units: tuple[int, ...]
    full: Floats
    drops: Floats
    interactions: Floats

    def predict_drops(self, ablations: Sequence[Sequence[int]], order: Order = 2) -> Floats:
        """Score lost by each ablation, ``[ablations, ...]``; of order 1 the sum of its units' own drops.

        Raises:
            ValueError: If an ablation removes a unit that the model does not know, or one twice.
        """
        place = {unit: index for index, unit in enumerate(self.units)}
        predicted = []
        for removed in ablations:
            if not place.keys() >= set(removed) or len(set(removed)) < len(removed):
                raise ValueError(f"expected different units among {list(self.units)}, got {list(removed)}")
            places = [place[unit] for unit in removed]
            total = self.drops[places].sum(axis=0)
            if order == 2:  # each pair stands twice in the matrix
                total = total + self.interactions[np.ix_(places, places)].sum(axis=(0, 1)) / 2
            predicted.append(total)
        return np.array(predicted).reshape(len(ablations), *self.full.shape)


@checked
def singles_and_pairs(units: Sequence[int]) -> list[Removed]:
    """The full model, every unit alone, every pair: what `fit_second_order` is fitted to, in its order.

    >>> singles_and_pairs([0, 2, 3])
    [(), (0,), (2,), (3,), (0, 2), (0, 3), (2, 3)]
    """
    return [removed for size in range(3) for removed in itertools.combinations(sorted(units), size)]


@checked
def fit_second_order(units: Sequence[int], scores: ArrayLike) -> SecondOrder:
    """The second-order model through the scores of the full model, of every unit removed alone and of every pair.

    Args:
        units: Units that may be removed, at least two.
        scores: ``[1 + n + n (n - 1) / 2, ...]``, in the order of `singles_and_pairs`; higher is better.

    Raises:
        ValueError: On another number of scores, fewer than two units or one that is given twice.

    Example:
        >>> model = fit_second_order([0, 1], [0.9, 0.8, 0.7, 0.5])
        >>> [round(float(model.interactions[0, 1]), 2), model.predict_drops([(), (0,), (0, 1)]).round(2).tolist()]
        [0.1, [0.0, 0.1, 0.4]]
    """
    try:
        values, known = np.asarray(scores, dtype=np.float64), tuple(sorted(units))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected scores as numbers, got {shorten(scores)}") from error
    if len(known) < 2 or len(set(known)) < len(known):
        raise ValueError(f"expected two or more different units, got {list(units)}")
    num = len(known)
    count = 1 + num + math.comb(num, 2)
    if not values.ndim or len(values) != count:
        raise ValueError(f"expected {count} scores of {num} units (full, singles, pairs), got {values.shape}")
    drops = values[0] - values[1 : 1 + num]
    interactions = np.zeros((num, num, *values.shape[1:]))
    for (a, b), pair in zip(itertools.combinations(range(num), 2), values[1 + num :]):
        interactions[a, b] = interactions[b, a] = values[0] - pair - drops[a] - drops[b]
    return SecondOrder(known, values[0], drops, interactions)


@checked
def held_out_ablations(
    num_units: int, units: Sequence[int], num_ablations: int, max_removed: int, seed: int
) -> list[Removed]:
    """Random ablations of three units up to ``max_removed``: what no single and no pair has shown.

    The sizes take turns, every set of a size is equally likely, and none comes twice; where a size has no further set
    the others take its turn.

    Args:
        num_units: Units that a mask switches; one always stays.
        units: Those that may be removed.

    Returns:
        Up to ``num_ablations``, by size, then lexicographically: fewer where there are no more.

    >>> held_out_ablations(4, [0, 1, 2, 3], 10, 3, seed=0)
    [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
    """
    check_least(0, num_ablations=num_ablations, seed=seed)
    known = sorted(set(units))
    generator = np.random.default_rng(seed)
    left = {size: math.comb(len(known), size) for size in range(3, min(max_removed, len(known), num_units - 1) + 1)}
    found: set[Removed] = set()
    turns = itertools.cycle(left)
    while len(found) < min(num_ablations, sum(left.values())):
        size = next(turns)
        if sum(len(removed) == size for removed in found) == left[size]:
            continue
        before = len(found)
        while len(found) == before:
            found.add(tuple(sorted(generator.choice(known, size, replace=False).tolist())))
    return sorted(found, key=lambda removed: (len(removed), removed))


@checked
def best_predicted(
    model: SecondOrder,
    num_units: int,
    size: int,
    num_best: int = 1,
    *,
    second: SecondOrder | None = None,
    max_enumerated: int = MAX_ENUMERATED,
) -> list[Removed]:
    """The ablations of one size that the model predicts to cost least, of equal ones the lexicographically first.

    All sets are compared where they are at most ``max_enumerated``; else a beam of 500 sets grows by one unit at a
    time, which may miss the best.

    Args:
        model: Without trailing dimensions.
        second: Model of another score of the same units, which orders what is equal by the first.

    Raises:
        ValueError: A size that leaves no unit or is no number of units, or a model of many samples.

    >>> model = fit_second_order([0, 1, 2], [0.9, 0.8, 0.8, 0.7, 0.3, 0.6, 0.5])
    >>> best_predicted(model, 4, 2, num_best=2)  # 0 and 1 stand in for one another
    [(0, 2), (1, 2)]
    """
    if model.full.ndim:
        raise ValueError(f"expected a model of mean scores, got one of shape {list(model.full.shape)}")
    check_least(1, num_best=num_best, max_enumerated=max_enumerated)
    kept = [unit for unit in range(num_units) if unit not in model.units]
    free_units(num_units, size, kept)
    num = len(model.units)
    if math.comb(num, size) <= max_enumerated:
        sets = np.array(list(itertools.combinations(range(num), size)))
        sets = _first(model, second, sets, num_best)
    else:
        sets = np.empty((1, 0), dtype=np.int64)
        for length in range(1, size + 1):
            longer = {tuple(sorted((*row, unit))) for row in sets.tolist() for unit in range(num) if unit not in row}
            sets = _first(model, second, np.array(sorted(longer)), num_best if length == size else max(_BEAM, num_best))
    return [tuple(model.units[place] for place in row) for row in sets.tolist()]


def _first(model: SecondOrder, second: SecondOrder | None, sets: np.ndarray, count: int) -> np.ndarray:
    """Of sets of places ``[sets, size]``, in lexicographic order, those of the smallest predicted drops."""
    keys = [_drops(each, sets) for each in (second, model) if each is not None]
    return sets[np.lexsort(keys)[:count]]


def _drops(model: SecondOrder, sets: np.ndarray) -> Floats:
    drops = model.drops[sets].sum(axis=1)
    for a, b in itertools.combinations(range(sets.shape[1]), 2):
        drops += model.interactions[sets[:, a], sets[:, b]]
    # sums in another order differ in their last bits; equal costs are to stay equal
    return drops.round(12)
