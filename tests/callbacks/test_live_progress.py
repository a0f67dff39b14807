"""What is logged while a sweep runs: means counted by hand, the band of the very values, and no other result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_depth.callbacks import LiveProgress, MaskSweep
from lit_depth.functional.statistics import confidence_sequence


def sweep_of(scores: dict[str, list[float]], images: list[str], folder: Path) -> MaskSweep:
    """A sweep that has answered these samples and is to answer as many again."""
    sweep = MaskSweep([[bit == "1" for bit in mask] for mask in scores], folder)
    sweep.num_of_process = 2 * len(images)
    return sweep


def looked(scores: dict[str, list[float]], images: list[str], folder: Path, **options: Any) -> dict[str, float]:
    sweep = sweep_of(scores, images, folder)
    live = LiveProgress(sweep, **options)
    sweep.running = {
        mask: {str(index): (image, value) for index, (image, value) in enumerate(zip(images, values))}
        for mask, values in scores.items()
    }
    live._rows = sum(map(len, scores.values()))
    return live.look(seconds=2.0)


def test_means_and_speed_are_those_of_what_was_answered(tmp_path: Path) -> None:
    scores = {"111": [1.0, 1.0, 0.0, 1.0], "101": [1.0, 0.0, 0.0, 0.0]}
    found = looked(scores, list("abcd"), tmp_path)
    assert found["live/quality/full"] == 0.75 and found["live/quality/without_1"] == 0.25
    assert (found["live/samples"], found["live/rows_per_second"], found["live/seconds_left"]) == (4, 4.0, 2.0)


def test_a_group_is_the_mean_over_its_masks_on_each_sample(tmp_path: Path) -> None:
    scores = {"110": [1.0, 0.0], "011": [1.0, 1.0]}
    found = looked(scores, list("ab"), tmp_path, names={"random_2": ["110", "011"]}, stage="task/validation")
    assert found["live/task/validation/quality/random_2"] == 0.75


def test_the_band_holds_the_mean_and_counts_an_image_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).binomial(1, 0.7, 300).astype(float)
    once = looked({"11": list(values)}, [str(index) for index in range(300)], tmp_path)
    low, high = once["live/low/full"], once["live/high/full"]
    assert low <= values.mean() <= high and 0 < high - low < 0.3
    lows, highs = confidence_sequence(values, 0.95, 0.0, 1.0, 200)
    assert (low, high) == (lows[-1], highs[-1])
    twice = looked({"11": [v for v in values for _ in range(2)]}, [str(i // 2) for i in range(600)], tmp_path)
    assert (twice["live/low/full"], twice["live/high/full"]) == (low, high)


@pytest.mark.slow
def test_bands_that_are_looked_at_all_the_time_hold_the_true_mean(tmp_path: Path) -> None:
    """A band leaves the truth at any of 60 looks in at most a twentieth of the runs."""
    generator, missed = np.random.default_rng(1), 0
    for _ in range(100):
        values = generator.binomial(1, 0.6, 60).astype(float)
        lows, highs = confidence_sequence(values, 0.95, 0.0, 1.0, 200)
        missed += bool(((lows > 0.6) | (highs < 0.6)).any())
    assert missed <= 11  # more has probability 0.5% where each run misses with 5%


def test_it_needs_a_number_of_seconds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected every_seconds of at least 0, got -1"):
        LiveProgress(MaskSweep([[True]], tmp_path), every_seconds=-1)
