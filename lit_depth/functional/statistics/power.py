"""How many paired samples a difference takes to be shown, before anything is measured."""

import math

from scipy.optimize import brentq
from scipy.stats import norm

from lit_depth.functional.arguments import check_range, check_share


def samples_needed(difference: float, discordance: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Independent pairs of answers, right or wrong, that show a difference of two accuracies with some probability.

    ``n = (z(1 - alpha / 2) sqrt(d) + z(power) sqrt(d - difference ** 2)) ** 2 / difference ** 2`` for the two-sided
    test of paired proportions (Connor 1987, doi:10.2307/2531961), d being the discordance.

    Args:
        difference: Of the accuracies, between 0 and 1.
        discordance: Share of the samples that only one of the two answers rightly; at least the difference.
        alpha: Level of the test.
        power: Probability of showing it.

    >>> samples_needed(0.02, 0.05), samples_needed(0.02, 0.1)
    (979, 1960)
    """
    check_share(alpha=alpha, power=power)
    check_range(1e-9, 1, difference=difference)
    check_range(difference, 1, discordance=discordance)
    root = norm.ppf(1 - alpha / 2) * math.sqrt(discordance)
    root += norm.ppf(power) * math.sqrt(discordance - difference**2)
    return math.ceil((root / difference) ** 2)


def shown_difference(num_samples: int, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The least difference that so many pairs show, see `samples_needed`; None if they show none at this discordance.

    >>> round(shown_difference(979, 0.05), 4), shown_difference(20, 0.05)
    (0.02, None)
    """
    check_share(alpha=alpha, power=power)
    check_range(1e-9, 1, discordance=discordance)

    def missing(difference: float) -> float:
        root = norm.ppf(1 - alpha / 2) * math.sqrt(discordance)
        root += norm.ppf(power) * math.sqrt(max(discordance - difference**2, 0.0))
        return (root / difference) ** 2 - num_samples

    return None if missing(discordance) > 0 else float(brentq(missing, 1e-9, discordance))
