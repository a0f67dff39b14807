"""``lit-depth interactions``: what follows from the scores, told before it is used, whatever is killed or shared."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_depth import DepthModule, DepthTrainer
from lit_depth.data import DepthDataModule
from lit_depth.results.records import RecordWriter
from lit_depth.studies.interactions.figures import MAPS, PREDICTION
from lit_depth.studies.interactions.report import report
from lit_depth.studies.shared.publish import as_text
from tests.helpers.commands import run
from tests.helpers.simulated import paired_interval
from tests.helpers.simulated_search import Simulated, data, simulated

NUM_SAMPLES = 160
KEPT = [0, 1, 2, 4, 5, 10, 13, 14, 15]
FREE = [unit for unit in range(16) if unit not in KEPT]  # 3, 6, 7, 8, 9, 11, 12


def interactions(module: DepthModule, datamodule: DepthDataModule, folder: Path, **options: Any) -> dict[str, Any]:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    trainer = DepthTrainer(accelerator="cpu", **quiet)
    small = {"skip": KEPT, "num_samples": NUM_SAMPLES, "num_held_out": 12, "max_blocks_to_remove": 5} | options
    return trainer.interactions(module, datamodule, **small, output_dir=str(folder))


@pytest.fixture(scope="module")
def module(checkpoint) -> Simulated:
    return Simulated(str(checkpoint))


@pytest.fixture(scope="module")
def datamodule(module) -> DepthDataModule:
    return data(module)


@pytest.fixture(scope="module")
def result(module, datamodule, tmp_path_factory) -> dict[str, Any]:
    return interactions(module, datamodule, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def scores(datamodule) -> Any:
    """Per-sample scores of any ablation, by measure, and the images."""
    dataset = datamodule.take("calibration", NUM_SAMPLES).eval_dataset("calibration")
    samples, images = zip(*sorted(dataset.recorded_ids()))

    def of(removed: tuple[int, ...], measure: str) -> np.ndarray:
        found = np.array([simulated(sample, removed) for sample in samples])
        return found[:, 0] if measure == "quality" else found[:, 1].round(6)

    return of, images


@pytest.mark.slow
def test_every_pair_is_what_its_definition_says(result, scores):
    of, images = scores
    assert [tuple(pair["removed"]) for pair in result["pairs"]] == list(itertools.combinations(FREE, 2))
    for measure, score_range in (("quality", 2.0), ("reference_logprob", None)):
        for pair in result["pairs"]:
            (a, b), entry = pair["removed"], pair[measure]
            drop = of((), measure) - of((a, b), measure)
            values = drop - (of((), measure) - of((a,), measure)) - (of((), measure) - of((b,), measure))
            expected = paired_interval(values, images, score_range=score_range, num_permutations=14_000)
            assert entry["drop"] == pytest.approx(drop.mean(), abs=1e-9)
            assert entry["interaction"] == pytest.approx(expected.estimate, abs=1e-9)
            low, high = entry["interaction_ci"]
            assert (low, high) == pytest.approx((expected.low, expected.high), abs=2e-3)
            # text, table and figure follow the corrected test, and so does the interval
            low, high = entry["interaction_simultaneous_ci"]
            assert (low > 0 or high < 0) == (entry["p_holm"] < 0.05)
    # the only pair of the simulated model whose effects do not add up
    pairs = {tuple(pair["removed"]): pair["quality"] for pair in result["pairs"]}
    assert max(pairs, key=lambda pair: pairs[pair]["interaction"]) == (3, 8)
    assert pairs[3, 8]["p_holm"] < 0.05 and pairs[3, 8]["interaction"] > 0.15


@pytest.mark.slow
def test_errors_are_those_of_the_masks_that_were_held_out(result, scores):
    of, _ = scores
    held_out = [tuple(entry["removed"]) for entry in result["second_order"]["held_out"]]
    assert len(set(held_out)) == 12 and {len(removed) for removed in held_out} == {3, 4, 5}
    for measure in MAPS:
        drop = lambda removed, measure=measure: float((of((), measure) - of(removed, measure)).mean())  # noqa: E731
        for removed, entry in zip(held_out, result["second_order"]["held_out"]):
            additive = math.fsum(drop((unit,)) for unit in removed)
            pairs = [drop(pair) - drop(pair[:1]) - drop(pair[1:]) for pair in itertools.combinations(removed, 2)]
            found = entry[measure]
            assert found["drop"] == pytest.approx(drop(removed), abs=1e-9)
            assert found["additive"] == pytest.approx(additive, abs=1e-9)
            assert found["predicted"] == pytest.approx(additive + math.fsum(pairs), abs=1e-9)
            low, high = found["error_simultaneous_ci"]
            assert low <= found["error"] <= high and (low > 0 or high < 0) == (found["p_holm"] < 0.05)
        for row in result["second_order"]["errors"][measure]:
            mine = [entry[measure] for entry in result["second_order"]["held_out"]]
            mine = [each for each, removed in zip(mine, held_out) if len(removed) == row["num_removed"]]
            errors = [abs(each["predicted"] - each["drop"]) for each in mine]
            assert row["num_masks"] == len(mine)
            assert row["predicted_mean_absolute_error"] == pytest.approx(np.mean(errors))


def test_errors_are_told_before_what_is_predicted(result):
    text = as_text(report(result))
    places = [text.index(part) for part in ("12 random masks of three and more", "by ExactMatch: 3 and 8", "smallest")]
    assert places == sorted(places)
    assert result["passes"]["singles_and_pairs"]["masks"] == 1 + 7 + 21 and "29 masks" in text
    assert set(report(result).figures) == {*MAPS.values(), PREDICTION}
    best = result["second_order"]["best"]["quality"]
    assert [len(row["removed"]) for row in best] == [1, 2, 3, 4, 5]
    assert not any({3, 8} <= set(row["removed"]) for row in best[:3])


def test_where_the_model_does_not_do_the_task_no_pair_is_found(result):
    refused = result | {"baseline": result["baseline"] | {"beaten": False}}
    told = report(refused)
    assert "stand in for one another, by" not in as_text(told) and "Best predicted" not in as_text(told)
    assert told.headline.startswith("No verdict") and told.scalars["pairs/quality"] == 0
    assert not any(row[-2] for row in told.charts["interactions"].table.rows if isinstance(row[-2], bool))


@pytest.mark.slow
def test_nothing_is_predicted_where_nothing_was_held_out(module, datamodule, tmp_path):
    result = interactions(module, datamodule, tmp_path, num_held_out=0, skip=list(range(2, 16)), num_samples=20)
    assert result["second_order"] is None and [pair["removed"] for pair in result["pairs"]] == [[0, 1]]
    folder = tmp_path / "interactions" / "default"
    assert {path.stem for path in (folder / "figures").glob("*.png")} == set(MAPS.values())
    assert (folder / "report.html").stat().st_size > 0


COMMAND = ["interactions", "--model.max_new_tokens", "2", "--num_samples", "11", "--data.batch_size", "4"]
COMMAND += ["--num_held_out", "4", "--max_blocks_to_remove", "3"]


@pytest.mark.slow
def test_one_process_and_a_kill_continued_by_two_give_the_same_bytes(small_checkpoint, tmp_path, monkeypatch):
    """26 masks of 6 blocks on 11 samples, log-probabilities included."""
    common = [*COMMAND, "--model.checkpoint", small_checkpoint, "--output_dir", tmp_path]
    assert run([*common, "--name", "one"]) == 0
    left, write = [90], RecordWriter.write

    def dying(self: RecordWriter, record: dict[str, Any]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", dying)
        assert run([*common, "--name", "killed"]) == 2
    assert not (tmp_path / "interactions" / "killed" / "interactions.json").exists()
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "lit_depth", *map(str, common), "--name", "killed", *two]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    one, killed = ((tmp_path / "interactions" / name / "interactions.json").read_bytes() for name in ("one", "killed"))
    assert one == killed
    passes = json.loads(one)["passes"]["singles_and_pairs"]
    assert passes["masks"] == 22 and passes["block_forwards"] < passes["sequential_block_forwards"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--skip", *map(str, range(15))], "expected a pair to skip and a third that stays, got 1 of 16"),
        (["--max_blocks_to_remove", "2"], "expected max_blocks_to_remove of at least 3, got 2"),
        (["--num_held_out", "-1"], "expected num_held_out of at least 0"),
        (["--skip", "16"], "expected block indices in 0..15"),
        (["--confidence", "1.5"], "expected confidence from 0.5"),
        (["--data.tasks", "shapes_vqa", "easy_vqa"], "interactions takes one task at a time"),
    ],
)
@pytest.mark.slow
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    assert run(["interactions", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not list(tmp_path.rglob("interactions.json"))
