"""A few samples rule out what is surely worse, and hardly ever anything else."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lit_depth.studies.select import screening
from lit_depth.studies.select.screening import NUM_SAMPLES, screen, surely_beaten
from lit_depth.studies.shared.scores import Scores

MASKS = ["0001", "0011", "0110", "0111", "1111"]


def drawn(shares: list[float], seed: int = 0, num_samples: int = NUM_SAMPLES) -> Scores:
    """Right or wrong answers, each mask's as often right as its share says."""
    generator = np.random.default_rng(seed)
    quality = (generator.random((len(MASKS), num_samples)) < np.array(shares)[:, None]).astype(float)
    return Scores(MASKS, quality, np.zeros_like(quality), [str(index) for index in range(num_samples)])


def test_a_mask_that_is_worse_than_one_of_no_more_blocks_is_ruled_out() -> None:
    # 0110 loses to 0011, which is as large; 0111 to smaller ones; the small 0001 to none of its size
    assert surely_beaten(drawn([0.05, 0.95, 0.2, 0.3, 0.9]), 0.95) == {"0110", "0111"}
    # the full model stays, whatever it is worth
    assert surely_beaten(drawn([0.9, 0.9, 0.9, 0.9, 0.0]), 0.95) == set()


def test_among_equal_masks_none_is_ruled_out_but_in_one_of_twenty_draws() -> None:
    wrong = sum(bool(surely_beaten(drawn([0.6] * len(MASKS), seed, num_samples=24), 0.95)) for seed in range(200))
    assert wrong <= 10 + 3 * (200 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("num_samples", [10, 3 * NUM_SAMPLES - 1])
def test_a_small_split_is_not_screened(num_samples: int) -> None:
    datamodule = SimpleNamespace(eval_dataset=lambda split: range(num_samples))
    plan = [SimpleNamespace(id="0001")]
    assert screen(SimpleNamespace(datamodule=datamodule), plan, 0.95) == plan


def test_the_first_samples_are_asked_and_the_rest_of_the_plan_is_kept(tmp_path, monkeypatch) -> None:
    asked = {}

    def sweep_samples(run, split, masks, records, text, positions):
        asked.update(split=split, masks=len(masks), records=records, positions=list(positions))
        return SimpleNamespace(records=object(), metric=SimpleNamespace(max_score=1.0))

    monkeypatch.setattr(screening, "sweep_samples", sweep_samples)
    scores = drawn([0.05, 0.95, 0.2, 0.3, 0.9])
    monkeypatch.setattr(screening, "Scores", SimpleNamespace(from_records=lambda records, most: scores))
    datamodule = SimpleNamespace(
        eval_dataset=lambda split: range(3 * NUM_SAMPLES), task=SimpleNamespace(name="shapes_vqa")
    )
    run = SimpleNamespace(datamodule=datamodule, folder=tmp_path, model=SimpleNamespace(num_units=4))
    plan = [SimpleNamespace(id=mask, mask=mask) for mask in MASKS[:-1]]
    assert [planned.id for planned in screen(run, plan, 0.95)] == ["0001", "0011"]
    assert asked["positions"] == list(range(NUM_SAMPLES)) and asked["masks"] == 5 and asked["split"] == "calibration"
    assert asked["records"] == tmp_path / "records" / "shapes_vqa" / "screening"
