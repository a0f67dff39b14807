"""How far a search is."""

from __future__ import annotations

import pytest

from lit_depth.functional import ablation_masks
from lit_depth.studies.search.arguments import SearchArguments
from lit_depth.studies.search.finders import Progress, run_search
from lit_depth.studies.search.score_cache import ScoreCache
from lit_depth.studies.shared.run_folder import Run
from tests.helpers.simulated_search import Simulated, data


@pytest.fixture(scope="module")
def module(checkpoint) -> Simulated:
    return Simulated(str(checkpoint))


def test_time_left_is_that_of_the_full_search(module, tmp_path):
    trainer = type("Trainer", (), {"world_size": 1, "is_global_zero": True})
    run = Run(trainer, module, data(module, calibration_samples=100), tmp_path, {}, 0.01)
    cache = ScoreCache(run, "calibration", tmp_path)
    asked = {"rank_by": "accuracy", "racing": True, "epsilon": 0.02, "delta": 0.05, "exhaustive": False}
    asked |= {"keep": [], "baselines": True, "confidence": 0.95, "strategy": "beam"}
    progress = Progress(cache, SearchArguments(beam_width=3, max_blocks_to_remove=3, num_units=16, **asked))
    masks = ablation_masks(16, [(block,) for block in range(16)])
    assert progress(masks, range(60)) == "level 1 of 3, round 1"
    cache.seconds_per_score = 0.1
    # 4 masks on 40 samples, then 3 * 15 and 3 * 14 on 100
    assert progress(masks[:4], range(40)) == "level 1 of 3, round 2, at most 15 min left"
    pairs = ablation_masks(16, [(0, 1)])
    cache.seconds_per_score = 0.01
    assert progress(pairs, range(100)) == "level 2 of 3, round 1, at most 43 s left"


@pytest.mark.parametrize(
    ("samples", "processes", "told"), [(129, 2, ""), (129, 3, "leaves 1 of 3 processes idle"), (128, 3, "")]
)
def test_who_leaves_processes_idle_is_told(module, tmp_path, monkeypatch, capsys, samples, processes, told):
    monkeypatch.setattr("lit_depth.studies.search.finders._beam_search", lambda *given: None)
    trainer = type("Trainer", (), {"world_size": processes, "is_global_zero": True})
    datamodule = data(module, calibration_samples=samples)
    datamodule.batch_size = 32
    cache = ScoreCache(Run(trainer, module, datamodule, tmp_path, {}, 0.01), "calibration", tmp_path)
    asked = {"rank_by": "accuracy", "racing": True, "epsilon": 0.02, "delta": 0.05, "exhaustive": False}
    asked |= {"keep": [], "baselines": True, "confidence": 0.95, "strategy": "beam"}
    run_search(cache, SearchArguments(beam_width=3, max_blocks_to_remove=3, num_units=16, **asked), 0)
    out = capsys.readouterr().out
    assert told in out and bool(told) == bool(out)
