"""When enough requests are timed: a few planned looks at a percentile's interval, which holds at whichever ends it.

An interval that is computed again after every request, until it looks narrow enough, misses its percentile more often
than it says. Here the looks are planned, and the error that is allowed is divided among them (Bonferroni's inequality;
group sequential designs, Jennison and Turnbull 2000): with the stated probability no look's bound is too low, and so
neither is that of the look at which one stops, for whatever reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from lit_depth.functional.arguments import check_share, checked


class Look(NamedTuple):
    """A planned look at the times of a mask."""

    num_requests: int
    """Timed until then."""
    confidence: float
    """Of the percentile's bound at this look."""


class PercentileInterval(NamedTuple):
    """Limits of a percentile, each with the confidence of the look."""

    low: float
    high: float

    def is_narrow(self, tolerance: float) -> bool:
        """Whether the upper limit is at most that share above the lower one.

        >>> PercentileInterval(10.0, 11.0).is_narrow(0.1), PercentileInterval(10.0, 11.1).is_narrow(0.1)
        (True, False)
        """
        return self.high <= self.low * (1 + tolerance)


@checked
def planned_looks(share: float = 0.95, confidence: float = 0.95, num_looks: int = 2) -> list[Look]:
    """Looks at which the largest, the second largest, ... of the times is a bound of the percentile.

    The first look takes three quarters of the allowed error, and each further one three quarters of what is left: most
    masks are settled early, and a later look allows one more outlier.

    Args:
        share: The percentile, between 0 and 1.
        confidence: Probability that no look's upper bound is too low.
        num_looks: How many, 1 to 8.

    >>> looks = planned_looks()
    >>> [look.num_requests for look in looks], sum(1 - look.confidence for look in looks) <= 0.05
    ([65, 122], True)
    """
    check_share(share=share, confidence=confidence)
    if not 1 <= num_looks <= 8:
        raise ValueError(f"expected 1 to 8 looks, got {num_looks}")
    looks: list[Look] = []
    left = 1 - confidence
    for index in range(num_looks):
        error = left if index == num_looks - 1 else 0.75 * left
        count = looks[-1].num_requests + 1 if looks else 1
        # P(at most `index` of so many times lie beyond the percentile): the bound is then too low
        while binom.cdf(index, count, 1 - share) > error:
            count += 1
        looks.append(Look(count, 1 - float(binom.cdf(index, count, 1 - share))))
        left -= 1 - looks[-1].confidence
    return looks


@checked
def percentile_interval(times_ms: Sequence[float], share: float, confidence: float) -> PercentileInterval:
    """Lower and upper confidence limit of a percentile, two of the times themselves, free of any distribution.

    The r-th smallest of n times is at least the percentile with probability P(Binomial(n, share) < r), and at most the
    percentile with probability P(Binomial(n, share) >= r) (Wilks 1941). Where so few times cannot give a limit it is
    the least or the largest of them.

    Args:
        times_ms: Times of single requests in ms.
        share: The percentile, between 0 and 1.
        confidence: Of each limit.

    >>> percentile_interval(list(range(1, 101)), 0.95, 0.95)
    PercentileInterval(low=91.0, high=99.0)
    """
    check_share(share=share, confidence=confidence)
    ordered = np.sort(np.asarray(times_ms, dtype=float))
    if not len(ordered) or not np.isfinite(ordered).all():
        raise ValueError("expected at least one finite time, got none or one that is not finite")
    below = binom.cdf(np.arange(len(ordered)), len(ordered), share)  # P(fewer than r) for r = 1..n
    above = np.flatnonzero(1 - below >= confidence)
    enough = np.flatnonzero(below >= confidence)
    low, high = (above[-1] if len(above) else 0), (enough[0] if len(enough) else -1)
    return PercentileInterval(float(ordered[low]), float(ordered[high]))
