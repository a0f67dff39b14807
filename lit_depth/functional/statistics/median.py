"""An interval of a median that assumes nothing about the distribution."""

from collections.abc import Sequence

from scipy.stats import binom

from lit_depth.functional.arguments import check_share


def median_interval(values: Sequence[float], confidence: float = 0.95) -> list[float]:
    """Limits of the median of what independent values were drawn from: two of the values themselves.

    The k-th smallest and the k-th largest of n values hold it with probability ``1 - 2 P(Binomial(n, 1/2) < k)`` at
    least (Thompson 1936, doi:10.1214/aoms/1177732563). Of less than 6 values even the least and the greatest hold it
    with less than 95%; they are then given all the same.

    Args:
        values: At least one.
        confidence: Coverage, in (0, 1).

    >>> median_interval([5.0, 1.0, 2.0, 3.0, 4.0, 9.0, 7.0, 8.0, 6.0])
    [2.0, 8.0]
    """
    check_share(confidence=confidence)
    if not len(values):
        raise ValueError("expected at least one value, got none")
    ordered, number = sorted(map(float, values)), len(values)
    cut = max(int(binom.ppf((1 - confidence) / 2, number, 0.5)), 1)  # P(fewer than cut) is at most half the rest
    return [ordered[cut - 1], ordered[number - cut]]
