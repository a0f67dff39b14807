"""Evidence that may be looked at after every sample: confidence sequences and betting."""

import numpy as np
from numpy.typing import ArrayLike

from lit_depth.functional.arguments import check_share
from lit_depth.functional.statistics.clusters import Floats


def confidence_sequence(
    values: ArrayLike, confidence: float = 0.95, low: float = -1.0, high: float = 1.0, resolution: int = 1000
) -> tuple[Floats, Floats]:
    """Intervals for a mean that hold at all sample sizes at once: look after every sample, stop whenever you like.

    The probability that the mean leaves *any* of the intervals is at most ``1 - confidence`` (a bootstrap interval
    looked at n times has no such guarantee). A mean is ruled out when a gambler who bets on it being too low, or too
    high, has multiplied the stake by ``1 / (1 - confidence)``: the hedged capital process with predictable plug-in bets
    of Waudby-Smith & Ramdas 2024 (doi:10.1093/jrsssb/qkad009, equations 24 to 26).

    Args:
        values: ``[n]`` in ``[low, high]``, independent given what came before, such as paired differences of scores in
            [-1, 1]. Samples that share an image are not independent: give one value per image.
        confidence: Coverage, in (0, 1).
        low: Smallest possible value.
        high: Largest possible value.
        resolution: Steps between ``low`` and ``high`` at which means are tried; limits err outwards by up to a step.

    Returns:
        Lower and upper limits after each sample, both ``[n]``; they never widen.

    Raises:
        ValueError: If a value lies outside the bounds, or is not finite.

    Example:
        >>> lows, highs = confidence_sequence([0.5, 0.3, 0.4] * 40)
        >>> print(f"[{lows[9]:.2f}, {highs[9]:.2f}] after 10, [{lows[-1]:.2f}, {highs[-1]:.2f}] after 120")
        [-0.26, 0.69] after 10, [0.32, 0.44] after 120
    """
    observed = np.asarray(values, dtype=np.float64)
    if observed.ndim != 1:
        raise ValueError(f"expected values of shape [n], got {list(observed.shape)}")
    if not np.all((observed >= low) & (observed <= high)):  # false for NaN too
        raise ValueError(f"expected finite values in [{low}, {high}]")
    check_share(confidence=confidence)
    scaled = (observed - low) / (high - low)
    bets = _predictable_bets(scaled, 1 - confidence)
    means = np.linspace(0, 1, resolution + 1)
    # half of the stake on each side; a bet can lose at most half of what it has
    rising, falling = np.zeros_like(means), np.zeros_like(means)
    with np.errstate(divide="ignore"):
        most_rising, most_falling = 0.5 / means, 0.5 / (1 - means)
    threshold = np.log(2 / (1 - confidence))
    possible = np.ones(len(means), dtype=bool)
    limits = np.empty((2, len(scaled)))
    first, last = 0, resolution
    for index, (value, bet) in enumerate(zip(scaled, bets)):
        rising += np.log1p(np.minimum(bet, most_rising) * (value - means))
        falling += np.log1p(-np.minimum(bet, most_falling) * (value - means))
        # the larger of the halves is at most their sum, and its set of means is always an interval
        possible &= np.maximum(rising, falling) < threshold
        kept = np.flatnonzero(possible)
        if len(kept):  # otherwise what is left lies between two tried means, and the last interval holds it
            first, last = kept[0], kept[-1]
        limits[:, index] = first - 1, last + 1
    scale = (high - low) / resolution
    lows, highs = low + scale * limits.clip(0, resolution)
    return lows, highs


# shares of the largest possible bet, and of the stake that is laid so: from means that lie next to the bound to those
# of values that hardly vary
_BETS = ((0.05, 0.1), (0.1, 0.1), (0.2, 0.1), (0.35, 0.1), (0.5, 0.1), (0.7, 0.1), (0.95, 0.4))


def log_evidence(values: ArrayLike, bounds: ArrayLike = 0.0) -> Floats:
    """Evidence, value by value, that values in [-1, 1] come from means above their bounds.

    The logarithm of the capital of a gambler who bets on it from 1, the stake spread over bets of several sizes, for
    many rows at once. If each value, given those before it, has a mean of at most its bound, the probability that the
    evidence *ever* reaches ``log(1 / alpha)`` is at most ``alpha`` (Ville's inequality; Waudby-Smith & Ramdas 2024,
    doi:10.1093/jrsssb/qkad009). It falls with the bound: whoever errs at one bound errs at all smaller ones, and
    several bounds need no correction.

    Args:
        values: ``[..., n]`` in [-1, 1].
        bounds: Of any shape that broadcasts against the values; that of a value may depend on those before it. A value
            with a bound below -1 is infinite evidence: no such mean exists.

    Returns:
        ``[..., n]``.

    Raises:
        ValueError: If a value lies outside [-1, 1] or is not finite.

    Example:
        >>> evidence = log_evidence([1.0, 0.0, 1.0, 1.0] * 10)
        >>> int(np.argmax(evidence >= np.log(1 / 0.001))) + 1  # values until it is settled at 0.001
        16
    """
    observed = np.asarray(values, dtype=np.float64)
    if not np.all(np.abs(observed) <= 1):  # false for NaN too
        raise ValueError("expected finite values in [-1.0, 1.0]")
    room = 1 + np.asarray(bounds, dtype=np.float64)  # what a bet of 1 can lose
    possible = room > 0
    gains = (1 + observed) / np.where(possible, room, 1.0) - 1
    capital = np.full(gains.shape, -np.inf)
    for share, stake in _BETS:
        capital = np.logaddexp(capital, np.log(stake) + np.cumsum(np.log1p(share * gains), axis=-1))
    return np.where(np.logical_and.accumulate(possible & np.isfinite(gains), axis=-1), capital, np.inf)


def _predictable_bets(values: Floats, alpha: float) -> Floats:
    """Size of each bet ``[..., n]``, from values before it: sqrt(2 log(2 / alpha) / (variance * t * log(t + 1)))."""
    t = np.arange(1, values.shape[-1] + 1)
    means = (0.5 + np.cumsum(values, axis=-1)) / (t + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2, axis=-1)) / (t + 1)
    before = np.concatenate([np.full_like(variances[..., :1], 0.25), variances[..., :-1]], axis=-1)
    return np.sqrt(2 * np.log(2 / alpha) / (before * t * np.log(t + 1)))
