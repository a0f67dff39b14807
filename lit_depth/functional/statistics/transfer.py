"""What a choice made on one task costs on another, against that task's own choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lit_depth.functional.arguments import checked
from lit_depth.functional.statistics.clusters import Floats, Labels, as_numbers
from lit_depth.functional.statistics.stability import Rule

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@checked
def transfer_regret(
    drops: ArrayLike, chosen: ArrayLike, rule: Rule, clusters: Labels | None = None, seed: int = 0
) -> Floats:
    """Per-sample quality lost by rows that were chosen elsewhere, against the rows that these samples choose.

    The samples must not judge a choice that they made themselves: it looks best where it was made. So the images are
    dealt into two halves, each half chooses, and pays by the other half's choice (cross-fitting). The own choice then
    rests on half of the samples, which makes it a little worse; a negative mean says that the other task chose better.

    Args:
        drops: ``[rows, num_samples]`` quality lost with each row; rows chosen together cost their sum.
        chosen: bool ``[rows]``, chosen elsewhere.
        rule: The choice, given mean drops ``[draws, rows]``, as `least`.
        clusters: ``[num_samples]`` cluster (image) of each sample; None makes every sample its own cluster.
        seed: Of the halves.

    Returns:
        ``[num_samples]``; `paired_intervals` gives the mean's interval.

    Raises:
        ValueError: On a wrong shape, and on fewer than two clusters.

    Example:
        >>> drops = np.array([[0.0] * 4, [1.0] * 4])
        >>> transfer_regret(drops, [False, True], lambda means: means == means.min(axis=1, keepdims=True)).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    values, elsewhere = as_numbers(float, drops=drops), as_numbers(bool, chosen=chosen)
    if values.ndim != 2 or elsewhere.shape != values.shape[:1]:
        shapes = f"{list(values.shape)} and {list(elsewhere.shape)}"
        raise ValueError(f"expected drops of shape [rows, num_samples] and chosen of shape [rows], got {shapes}")
    if clusters is not None and len(clusters) != values.shape[1]:
        raise ValueError(f"expected one cluster per sample ({values.shape[1]}), got {len(clusters)}")
    _, place = np.unique(np.arange(values.shape[1]) if clusters is None else np.asarray(clusters), return_inverse=True)
    if place.max(initial=0) < 1:
        raise ValueError(f"expected at least 2 clusters (images) to split, got {place.max(initial=-1) + 1}")
    number = int(place.max()) + 1
    is_first = np.isin(place, np.random.default_rng(seed).permutation(number)[: number // 2])
    own = np.empty(values.shape[1])
    for half in (is_first, ~is_first):
        own[half] = values[np.ix_(rule(values[:, ~half].mean(axis=1)[None])[0], half)].sum(axis=0)
    return values[elsewhere].sum(axis=0) - own
