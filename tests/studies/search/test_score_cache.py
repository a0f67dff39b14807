"""A score is asked for once, whoever asks again."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lit_depth import DepthTrainer
from lit_depth.functional import MaskTrie, ablation_masks, mask_id
from lit_depth.metrics import ExactMatch
from lit_depth.studies.search.score_cache import ScoreCache
from lit_depth.studies.shared.evaluate import sweep_samples
from lit_depth.studies.shared.run_folder import Run, open_run
from tests.helpers.simulated_search import Simulated, data, removed_by, simulated


@pytest.fixture(scope="module")
def module(checkpoint) -> Simulated:
    return Simulated(str(checkpoint))


def test_rounds_are_those_of_one_process(module, tmp_path, monkeypatch):
    """Each asks for the scores that are missing, whatever the number of processes; masks that lack a sample together.

    No split of the missing cells into passes takes fewer block forwards than one pass of each sample's masks.
    """
    asked = []

    def sweep_samples(run, split, masks, records, text, positions):
        asked.append((records.name, list(positions)))
        names = [run.datamodule.eval_dataset(split).recorded_ids()[p] for p in positions]
        rows = [(mask_id(m), s, i, *simulated(s, removed_by(m))) for m in masks for s, i in names]
        frame = pd.DataFrame(rows, columns=["mask", "sample", "image", "score", "reference_logprob"])
        return type("Sweep", (), {"records": frame, "bad_samples": {}, "metric": ExactMatch})

    monkeypatch.setattr("lit_depth.studies.search.score_cache.sweep_samples", sweep_samples)
    trainer = type("Trainer", (), {"world_size": 3, "is_global_zero": True})
    run = Run(trainer, module, data(module, calibration_samples=10), tmp_path, {}, 0.01)
    cache = ScoreCache(run, "calibration", tmp_path)
    masks = ablation_masks(16, [(1,), (2,), (3,)])
    first = cache(masks[:2], [4, 9])
    again = cache(masks, [0, 9, 4])
    assert asked == [("round_0001", [4, 9]), ("round_0002", [0]), ("round_0003", [9, 4])]
    assert first.accuracy.tolist() == again.accuracy[:2, [2, 1]].tolist()
    assert cache.evaluations == 2 * 2 + 2 * 1 + 1 * 3
    lacked = [masks[:2], masks[:2], masks, masks[2:], masks[2:]]  # at samples 4, 9, then 0, 9, 4
    assert cache.block_forwards == sum(MaskTrie(each).block_forwards for each in lacked)
    assert cache(masks, [4, 0]).reference_logprob.tolist() == again.reference_logprob[:, [2, 0]].tolist()
    assert len(asked) == 3
    recorded = cache.recorded([mask_id(masks[2]), "1" * 16])
    assert recorded.accuracy[0, [4, 9, 0]].tolist() == cache(masks[2:], [4, 9, 0]).accuracy[0].tolist()
    assert np.isnan(recorded.accuracy[0]).sum() == 7 and np.isnan(recorded.reference_logprob[1]).all()


def test_rounds_that_were_grouped_otherwise_are_read(module, tmp_path):
    """As an earlier version left them: masks that lack the same samples shared a pass."""
    trainer = DepthTrainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    datamodule = data(module, calibration_samples=10)
    masks = ablation_masks(16, [(1,), (2,), (3,)])
    with open_run(trainer, module, datamodule, ["calibration"], {}, str(tmp_path), "search", "old") as run:
        fresh = ScoreCache(run, "calibration", run.folder / "fresh")
        expected = fresh(masks, [0, 9, 4])
        old = run.folder / "old"
        sweep_samples(run, "calibration", list(masks[:2]), old / "round_0001", "old", (4, 9))
        sweep_samples(run, "calibration", list(masks[2:]), old / "round_0002", "old", (0, 9, 4))
        cache = ScoreCache(run, "calibration", old)
        cache(masks[:2], [4, 9])
        found = cache(masks[2:], [0, 9])
        assert found.accuracy.tolist() == expected.accuracy[2:, :2].tolist()
        assert np.isnan(cache.recorded([mask_id(masks[2])]).accuracy[0, 4])
