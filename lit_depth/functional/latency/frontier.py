"""The Pareto frontier of points whose times and qualities are known up to intervals."""

from collections.abc import Sequence
from typing import NamedTuple


class Measured(NamedTuple):
    """A time and a quality, each with its limits ``(low, high)``."""

    time: float
    quality: float
    times: Sequence[float]
    qualities: Sequence[float]


def clear_frontier(points: Sequence[Measured]) -> list[int]:
    """Which points are on the frontier beyond their intervals, by increasing time.

    Of any two of them, one is surely better and the other surely faster: the intervals of their qualities do not meet,
    and neither do those of their times. Where they meet, the fastest point stays that is not surely worse.

    Args:
        points: In any order.

    Returns:
        Positions in ``points``; at least one where there are points.

    >>> fast, alike, good = (Measured(t, q, (t, t), (q - 0.1, q + 0.1)) for t, q in ((1, 0.4), (2, 0.5), (3, 0.9)))
    >>> clear_frontier([good, fast, alike])
    [1, 0]
    """
    kept: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index].time, -points[index].quality)):
        point = points[index]
        if kept and not point.qualities[0] > points[kept[-1]].qualities[1]:
            continue
        while kept and not points[kept[-1]].times[1] < point.times[0]:
            kept.pop()
        kept.append(index)
    return kept
