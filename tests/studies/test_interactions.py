"""``lit-depth interactions``: what follows from the scores, told before it is used, whatever is killed or shared."""

from __future__ import annotations

import copy
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
from lit_depth.functional import MaskSet, ablation_masks
from lit_depth.functional.search.second_order import held_out_ablations, singles_and_pairs
from lit_depth.results.against_full_views import AGREEMENT_FIGURE
from lit_depth.results.records import RecordWriter
from lit_depth.studies.interactions.analysis import check_arguments, describe
from lit_depth.studies.interactions.figures import MAPS, PREDICTION
from lit_depth.studies.interactions.report import COLUMNS, report
from lit_depth.studies.shared.prediction_errors import describe_skill
from lit_depth.studies.shared.publish import as_text
from lit_depth.studies.shared.scores import Scores
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
            low, high = entry["drop_simultaneous_ci"]
            assert (low > 0 or high < 0) == (entry["drop_p_holm"] < 0.05)
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


def test_pairs_stand_beside_the_full_model_answer_by_answer(result, scores):
    of, _ = scores
    for entry in result["pairs"]:
        found, full, pair = entry["agreement"], of((), "quality"), of(tuple(entry["removed"]), "quality")
        for key, share in (
            ("right_to_wrong", (pair < full).mean()),
            ("wrong_to_right", (pair > full).mean()),
            ("flips", (pair != full).mean()),
            ("same_answer", (pair == full).mean()),  # the simulated model has one wrong answer
        ):
            low, high = found[f"{key}_ci"]
            assert found[key] == pytest.approx(share) and low <= share <= high
    told = report(result)
    page = [section for section in told.sections if section.heading.startswith("Agreement with")]
    rows = {row[0]: row for row in page[0].table.rows}
    assert len(rows) == 7 + 21 and not page[0].printed
    assert rows["without 3 and 8"][1] == f"{result['pairs'][2]['quality']['drop']:+.3f}"
    logged = [dict(zip(COLUMNS, row)) for row in told.tables["interactions/pairs"].rows]
    assert [row["right_to_wrong"] for row in logged[:2]] == [result["pairs"][0]["agreement"]["right_to_wrong"], None]


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
    assert set(report(result).figures) == {*MAPS.values(), PREDICTION, AGREEMENT_FIGURE}
    best = result["second_order"]["best"]["quality"]
    assert [len(row["removed"]) for row in best] == [1, 2, 3, 4, 5]
    assert not any({3, 8} <= set(row["removed"]) for row in best[:3])
    # in words, with the interval that goes with the corrected test
    entry = next(pair["quality"] for pair in result["pairs"] if pair["removed"] == [3, 8])
    low, high = entry["interaction_simultaneous_ci"]
    assert f"by ExactMatch: 3 and 8 ({entry['interaction']:+.3f} [{low:+.3f}, {high:+.3f}])" in text
    assert "simultaneous intervals (Holm) over all 21 pairs" in text
    assert "takes twice the samples (--num_samples) where a pair changes no score" in text


def test_a_pair_that_was_found_stands_in_the_table_however_small(result):
    pairs = copy.deepcopy(result["pairs"])
    for place, pair in enumerate(pairs):
        pair["quality"] |= {"interaction": 0.5 + place / 100, "p_holm": 1.0}
    pairs[0]["quality"] |= {"interaction": 0.01, "p_holm": 0.001}
    (table,) = [each.table for each in report(result | {"pairs": pairs}).sections if each.heading == "Pairs"]
    first, second = table.rows[:2]
    assert first[1] == ", ".join(map(str, pairs[0]["removed"])) and first[-1] == "stand in for one another"
    assert second[3] == f"{pairs[-1]['quality']['interaction']:+.3f}" and second[-1] == "not shown"


def test_predictions_that_are_no_better_than_a_mean_are_refused(result):
    second = copy.deepcopy(result["second_order"])
    for entry in second["held_out"]:
        entry["quality"]["predicted"] = entry["quality"]["drop"] + 1.0
    told = [{**entry, **entry["quality"]} for entry in second["held_out"]]
    second["skill"]["quality"] = describe_skill(told)
    second["best"]["quality"] = None
    text = as_text(report(result | {"second_order": second}))
    assert "SINGLES AND PAIRS DO NOT PREDICT quality: error 1.000" in text
    assert "Singles and pairs predict log-prob: error" in text
    best = text[text.index("Masks of the smallest predicted drop") :]
    assert "log-prob" in best and "quality " not in best


def test_what_random_scores_say_of_others_is_not_told():
    """Scores of every mask by themselves: nothing follows from singles and pairs."""
    generator, units, num_units = np.random.default_rng(0), range(6), 7
    held_out = held_out_ablations(num_units, units, 20, 5, seed=0)
    names = MaskSet.of(ablation_masks(num_units, [*singles_and_pairs(units), *held_out])).ids
    quality = (generator.random((len(names), 60)) < 0.5).astype(float)
    logprob = np.log(0.1 + 0.8 * generator.random(quality.shape))
    scores = Scores(list(names), quality, logprob, list(map(str, range(60))))
    found = describe(scores, units, held_out, 5, 0.95)["second_order"]
    assert [found["skill"][measure]["is_useful"] for measure in MAPS] == [False, False]
    assert found["best"] == dict.fromkeys(MAPS)


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
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {*MAPS.values(), AGREEMENT_FIGURE}
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


def test_more_pairs_than_a_pass_can_hold_are_refused():
    check_arguments(range(99), 160, 0, 3, 0)
    with pytest.raises(ValueError, match=r"at most 5,000 singles and pairs, got 5,050 of 100 .* with --skip"):
        check_arguments(range(100), 160, 0, 3, 0)


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
