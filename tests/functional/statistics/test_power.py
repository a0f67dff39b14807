"""The planned number of samples shows the difference as often as promised, by simulation of the paired test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from lit_depth.functional.statistics.power import samples_needed, shown_difference


@pytest.mark.parametrize(("difference", "discordance"), [(0.05, 0.1), (0.1, 0.3), (0.1, 0.1)])
def test_mcnemar_s_exact_test_has_about_the_planned_power(difference, discordance):
    number = samples_needed(difference, discordance)
    generator = np.random.default_rng(0)
    better, worse = (discordance + difference) / 2, (discordance - difference) / 2
    draws = generator.multinomial(number, [better, worse, 1 - better - worse], size=4000)
    least = np.minimum(draws[:, 0], draws[:, 1])
    p_values = np.minimum(1, 2 * binom.cdf(least, draws[:, 0] + draws[:, 1], 0.5))
    assert 0.7 < np.mean(p_values < 0.05) < 0.9  # exact tests of few discordant pairs are conservative


@pytest.mark.parametrize("discordance", [0.05, 0.2])
def test_the_difference_shown_is_the_inverse(discordance):
    for number in (300, 5000):
        found = shown_difference(number, discordance)
        assert found is not None
        assert samples_needed(found, discordance) in (number, number + 1)


def test_impossible_assumptions_are_refused():
    with pytest.raises(ValueError, match="expected discordance from 0.1 to 1, got 0.05"):
        samples_needed(0.1, 0.05)
