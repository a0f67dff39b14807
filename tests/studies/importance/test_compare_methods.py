"""``lit-depth importance --methods``: proxy scores beside the drop, and what is said of them, against plain Python."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import stats

from lit_depth.callbacks import ProxyImportance
from lit_depth.data import DepthDataModule
from lit_depth.functional import from_mask_id, proxy_importance, top_k
from lit_depth.functional.importance.proxies import METHODS, ProxyScores
from lit_depth.metrics import ExactMatch
from lit_depth.module import DepthModule, model_inputs
from lit_depth.results.records import read_records
from lit_depth.studies.importance import compare_methods as study
from lit_depth.studies.importance import measure_proxies as proxies
from lit_depth.studies.importance.compare_methods import mask_of, overlaps, ranks_of
from tests.helpers.commands import run

SAMPLES, NUM_BLOCKS = 8, 16
SMALL = ["--num_samples", SAMPLES, "--data.num_samples", 6, "--data.batch_size", 4]


def graded(prediction: str, references=(), options=()) -> float:
    """An untrained model is never right; this way every mask has a score of its own."""
    return zlib.crc32(prediction.encode()) % 1000 / 999


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """Folder and result of one run of all methods, and the command."""
    root = tmp_path_factory.mktemp("methods")
    command = ["importance", "--model.checkpoint", checkpoint, "--output_dir", root, *SMALL, "--methods", "all"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExactMatch, "score", staticmethod(graded))
        patch.setattr(proxies, "_REPEATS", 1)
        assert run(command) == 0
    folder = root / "importance" / "default"
    return folder, json.loads((folder / "importance.json").read_text()), command


def entry_of(result, method):
    return next(entry for entry in result["methods"]["entries"] if entry["method"] == method)


def records_of(folder: Path, split: str) -> pd.DataFrame:
    return read_records([folder / "records" / "shapes_vqa" / split / "rank0.jsonl"])


def importance_of(entry) -> list[float]:
    sign = -1 if entry["method"] == "taylor_signed" else 1
    return [sign * entry["scores"][str(block_idx)] for block_idx in range(NUM_BLOCKS)]


@pytest.mark.slow
def test_scores_are_those_of_the_same_samples(checkpoint, finished):
    """Each sample in a batch of its own, its answer appended by hand."""
    _, result, _ = finished
    module = DepthModule(str(checkpoint))
    data = DepthDataModule(module.prompter, batch_size=1, calibration_samples=SAMPLES)
    batches = []
    for batch in data.eval_dataloader("calibration"):
        inputs, answer = model_inputs(batch), batch["answer_ids"]
        prompt = inputs["input_ids"]
        batches.append(
            inputs
            | {
                "input_ids": torch.cat([prompt, answer], dim=1),
                "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1),
                "labels": torch.cat([torch.full_like(prompt, -100), answer], dim=1),
            }
        )
    expected = proxy_importance(module.model, batches)
    assert [entry["method"] for entry in result["methods"]["entries"]] == [*study.DROPS, *METHODS]
    for method in METHODS:
        found = torch.tensor(list(entry_of(result, method)["scores"].values()), dtype=torch.float64)
        torch.testing.assert_close(found, expected[method], rtol=1e-4, atol=1e-6)


def test_drops_ranks_and_overlap_in_plain_python(finished):
    folder, result, _ = finished
    (task,) = result["tasks"]
    drop = [entry["quality"]["drop"] for entry in task["blocks"]]
    assert 4 < len(set(drop)) < NUM_BLOCKS  # some are tied
    assert list(entry_of(result, "accuracy_drop")["scores"].values()) == drop
    logprob = [entry["reference_logprob"]["drop"] for entry in task["blocks"]]
    assert list(entry_of(result, "reference_logprob_drop")["scores"].values()) == pytest.approx(logprob)
    least = sorted(range(NUM_BLOCKS), key=lambda block_idx: (drop[block_idx], -block_idx))
    for entry in result["methods"]["entries"]:
        values = importance_of(entry)
        assert list(entry["ranks"].values()) == [sorted(values, reverse=True).index(value) + 1 for value in values]
        mine = sorted(range(NUM_BLOCKS), key=lambda block_idx: (values[block_idx], -block_idx))
        assert list(entry["overlap"]) == [str(k) for k in range(1, 9)]
        for k in range(1, 9):
            assert entry["overlap"][str(k)] == len([block for block in mine[:k] if block in least[:k]]) / k
        if entry["method"] == "accuracy_drop":
            assert entry["spearman"] is None and set(entry["overlap"].values()) == {1.0}
        else:
            low, high = entry["spearman_ci"]
            assert entry["spearman"] == pytest.approx(stats.spearmanr(values, drop).statistic) and -1 <= low < high <= 1
        assert entry["forwards"] > 0


def test_masks_are_top_k_and_judged_on_the_validation_split(finished):
    folder, result, _ = finished
    records = records_of(folder, "validation")
    assert records["sample"].nunique() == result["methods"]["validation"]["num_samples"] == 6
    assert not set(records["sample"]) & set(records_of(folder, "calibration")["sample"])
    mean = records.groupby("mask")["score"].mean()
    baseline = entry_of(result, "accuracy_drop")["masks"]
    chosen = set()
    for entry in result["methods"]["entries"]:
        assert [mask["num_active_blocks"] for mask in entry["masks"]] == [12, 8]
        for mask, reference in zip(entry["masks"], baseline):
            expected = top_k(importance_of(entry), mask["num_active_blocks"])
            assert torch.equal(from_mask_id(mask["mask_id"]), expected)
            assert mask["quality"] == pytest.approx(mean[mask["mask_id"]])
            assert mask["difference"] == pytest.approx(mean[mask["mask_id"]] - mean[reference["mask_id"]])
            assert (mask["p_holm"] is None) == (mask["mask_id"] == reference["mask_id"])
            assert mask["difference_ci"][0] - 1e-12 <= mask["difference"] <= mask["difference_ci"][1] + 1e-12
            chosen.add(mask["mask_id"])
    # all of them in one call, each once
    assert set(records["mask"]) == chosen | {"1" * NUM_BLOCKS} and len(records) == 6 * (len(chosen) + 1)
    assert result["methods"]["validation"]["full"]["quality"] == pytest.approx(mean["1" * NUM_BLOCKS])


@pytest.mark.slow
def test_started_again_it_only_renders(finished, monkeypatch, capsys):
    folder, _, command = finished
    before = (folder / "importance.json").read_bytes()
    (folder / "importance.json").unlink()
    (folder / "figures" / "block_importance_methods.png").unlink()
    monkeypatch.setattr("lit_depth.module.answer_masks", lambda *a, **k: pytest.fail("the model ran"))
    monkeypatch.setattr(ProxyScores, "update", lambda *a, **k: pytest.fail("the model ran"))
    monkeypatch.setattr(ExactMatch, "score", staticmethod(graded))  # of the constant answer, which is not kept
    assert run(command) == 0
    assert (folder / "importance.json").read_bytes() == before
    assert (folder / "figures" / "block_importance_methods.png").stat().st_size > 0
    out = capsys.readouterr().out
    assert "least 4" in out and "block_importance_methods.png" in out and "Masks of the most important blocks" in out
    report = (folder / "report.html").read_text()
    assert "angular_distance_last_token" in report and "block_importance_methods.png" in report


@pytest.mark.slow
def test_skipped_blocks_stay_active_in_every_mask(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(proxies, "_time_passes", lambda passes: dict.fromkeys(passes, 2.0))
    command = ["importance", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--skip", "0", "3"]
    command += ["--num_samples", 4, "--data.num_samples", 4]
    assert run([*command, "--methods", "taylor_signed", "block_influence"]) == 0
    result = json.loads((tmp_path / "importance" / "default" / "importance.json").read_text())
    entries = result["methods"]["entries"]
    assert [entry["method"] for entry in entries] == [*study.DROPS, "taylor_signed", "block_influence"]
    assert entries[2]["direction"] == "lower"
    for entry in entries:
        assert not {"0", "3"} & set(entry["scores"]) and list(entry["overlap"]) == [str(k) for k in range(1, 8)]
        assert all(mask["mask_id"][0] == mask["mask_id"][3] == "1" for mask in entry["masks"])
    # an untrained model is never right: no order to compare with
    assert all(entry["spearman"] is None for entry in entries)


def change(before, after):
    """A method of somebody's own: the norm of what a block adds."""
    return (after - before).norm(dim=-1)


@pytest.mark.slow
def test_a_method_of_ones_own_stands_beside_those_of_the_table(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(proxies, "_time_passes", lambda passes: dict.fromkeys(passes, 2.0))
    own = f"{__name__}.change"
    command = ["importance", "--model.checkpoint", checkpoint, "--output_dir", tmp_path]
    command += ["--num_samples", 4, "--data.num_samples", 4]
    assert run([*command, "--methods", own, "block_influence"]) == 0
    result = json.loads((tmp_path / "importance" / "default" / "importance.json").read_text())
    assert [entry["method"] for entry in result["methods"]["entries"]] == [*study.DROPS, own, "block_influence"]
    module = DepthModule(str(checkpoint))
    data = DepthDataModule(module.prompter, batch_size=4, calibration_samples=4)
    (batch,) = data.eval_dataloader("calibration")
    inputs, labels = ProxyImportance().inputs_of(module, batch)
    expected = proxy_importance(module.model, [{**inputs, "labels": labels}], [own])
    mine = entry_of(result, own)
    assert list(mine["scores"].values()) == pytest.approx(expected[own].tolist(), rel=1e-5)
    assert mine["direction"] == "higher" and mine["forwards"] == 1.0
    assert own in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "tailor"], "expected methods among activation_magnitude"),
        (["--methods", "all", "taylor"], "got 'all'"),
        (["--methods", "all", "--split", "validation"], "measure on another one"),
        (["--methods", "all", "--model.granularity", "sublayer"], "whole blocks only"),
        (["--methods", "all", "--skip", *range(9)], "cannot hold the 9 that --skip names"),
        (["--methods", "all", "--config", "two tasks"], "one task at a time"),
    ],
)
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("data:\n  tasks: [shapes_vqa, {class_path: tests.helpers.commands.SecondShapes}]\n")
    arguments = [tasks if argument == "two tasks" else argument for argument in arguments]
    assert run(["importance", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not list(tmp_path.rglob("*.json"))


def test_overlapping_splits_are_refused(checkpoint, tmp_path, capsys, monkeypatch):
    shared = DepthDataModule.eval_dataset
    monkeypatch.setattr(DepthDataModule, "eval_dataset", lambda self, split, *a: shared(self, "validation", 8))
    command = ["importance", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--methods", "taylor"]
    assert run(command) == 2 and "must not overlap" in capsys.readouterr().err


def test_several_processes_are_refused(checkpoint):
    class Two:
        world_size = 2

    module = DepthModule(str(checkpoint))
    data = DepthDataModule(module.prompter, calibration_samples=4, num_samples=4)
    with pytest.raises(ValueError, match="one process, got 2"):
        study.check_asked("all", Two(), module, data, "calibration", range(NUM_BLOCKS))  # type: ignore[arg-type]


def test_ranks_overlaps_and_masks_take_ties_alike():
    scores = [1.0, 0.0, 0.0, 0.0, 2.0, 0.0]
    assert ranks_of(scores) == [2, 3, 3, 3, 1, 3]
    # of equal blocks the later goes first, as in the masks
    assert mask_of(scores, range(6), 6, 4).tolist() == [True, True, True, False, True, False]
    assert overlaps(scores, [5.0, 4.0, 3.0, 1.0, 2.0, 0.0]) == {"1": 1.0, "2": 1.0, "3": 2 / 3}
