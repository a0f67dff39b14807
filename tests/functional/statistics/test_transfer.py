"""Transfer regret against the truth of simulated tasks, and the bias that cross-fitting takes away."""

from __future__ import annotations

import numpy as np
import pytest

from lit_depth.functional.statistics.stability import least
from lit_depth.functional.statistics.transfer import transfer_regret


def test_the_mean_regret_is_what_the_choice_truly_costs():
    generator = np.random.default_rng(0)
    truth = np.array([0.05, 0.4, 0.3])
    drops = (generator.random((3, 4000)) < truth[:, None]).astype(float)
    found = transfer_regret(drops, [False, True, False], least(1))
    assert found.shape == (4000,)
    assert found.mean() == pytest.approx(0.35, abs=0.03)
    assert transfer_regret(drops, [True, False, False], least(1)).tolist() == [0.0] * 4000
    pair = transfer_regret(drops, [False, True, True], least(2))
    assert pair.mean() == pytest.approx(0.35, abs=0.03)  # .4 + .3 against .05 + .3


def test_of_tied_rows_nothing_is_lost_on_average():
    """By the samples' own choice on themselves it would look as if something were."""
    generator = np.random.default_rng(1)
    images = np.repeat(np.arange(60), 2)
    honest, naive = [], []
    for _ in range(300):
        drops = (generator.random((8, 60)) < 0.2).astype(float).repeat(2, axis=1)
        honest.append(transfer_regret(drops, np.arange(8) == 0, least(1), images).mean())
        naive.append(drops[0].mean() - drops.mean(axis=1).min())
    assert abs(np.mean(honest)) < 4 * np.std(honest) / np.sqrt(300)
    assert np.mean(naive) > 0.04


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="expected at least 2 clusters"):
        transfer_regret(np.zeros((2, 3)), [True, False], least(1), ["a"] * 3)
