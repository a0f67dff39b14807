"""Tests between models: on shared samples alone, against the statistics called directly."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_depth.functional.statistics import holm, sign_flip_tests
from lit_depth.results.changed_samples import find_changes
from lit_depth.studies.overview.analysis import ALL_BLOCKS, RunScores, compare_models, read_scores
from lit_depth.studies.overview.equal_cost import compare_at_equal_cost, read_curves
from lit_depth.studies.overview.folders import Stored, read_folders
from lit_depth.studies.overview.report import report
from lit_depth.tools.report import name_models
from tests.helpers.commands import run as run_command
from tests.helpers.result_folders import edit_json, write_comparison


@pytest.fixture
def runs(tmp_path: Path, comparison: dict[str, Any]) -> list[Stored]:
    folders = [
        write_comparison(tmp_path / name, comparison, name, ("shapes", "charts"), right)
        for name, right in (("strong", 1.0), ("weak", 0.4))
    ]
    return read_folders(folders)[0]


def scores(runs: list[Stored]) -> list[RunScores]:
    return [read_scores(run, run.folder.name) for run in runs]


def test_every_pair_is_tested_by_clusters_and_all_as_one_family(runs: list[Stored]) -> None:
    pairs = compare_models(scores(runs), 0.95)
    policies = {"prefix", "importance", "random"}
    whats = [ALL_BLOCKS, *(f"{policy}, mean over 4 depths" for policy in ("prefix", "importance", "random"))]
    assert [pair.what for pair in pairs] == 2 * whats and len(policies) == 3
    strong, weak = ([each.frames["shapes"] for each in scores(runs)][place] for place in (0, 1))
    full = "1" * 16
    own = [frame[frame["mask"] == full].set_index("sample").sort_index() for frame in (strong, weak)]
    expected = sign_flip_tests([own[0]["score"] - own[1]["score"]], list(own[0]["image"]))[0]
    first = next(pair for pair in pairs if pair.task == "shapes" and pair.what == ALL_BLOCKS)
    assert first.found.p_value == pytest.approx(expected) and (first.a, first.b) == ("strong", "weak")
    assert first.quality_a - first.quality_b == pytest.approx(first.found.interval.estimate)
    assert (first.num_samples, first.num_clusters, first.same_samples) == (48, 24, True)
    adjusted = holm([pair.found.p_value for pair in pairs])
    assert np.allclose(adjusted, [pair.found.p_holm for pair in pairs])


def test_samples_of_one_side_alone_are_left_out(runs: list[Stored]) -> None:
    first, second = scores(runs)
    frame = first.frames["shapes"]
    fewer = first._replace(frames={"shapes": frame[frame["sample"].isin(["s0", "s1", "s5", "s9"])]}, prints={})
    found = compare_models([fewer, second], 0.95)[0]
    assert (found.num_samples, found.num_clusters, found.same_samples) == (4, 3, False)
    alone = first._replace(frames={"shapes": frame[frame["sample"] == "s0"]})
    assert compare_models([alone, second], 0.95) == []


def test_what_cannot_be_compared_is_not(runs: list[Stored]) -> None:
    first, second = scores(runs)
    assert compare_models([first, first._replace(label="again")], 0.95) == []  # one model
    assert compare_models([first, second._replace(metrics={})], 0.95) == []  # another metric
    texts = {task: frame.assign(weight=1.0) for task, frame in second.frames.items()}
    assert compare_models([first, second._replace(frames=texts)], 0.95) == []
    assert compare_models([], 0.95) == []


def test_models_of_other_sizes_are_compared_in_full_alone(runs: list[Stored]) -> None:
    first, second = scores(runs)
    longer = {task: frame.assign(mask=frame["mask"] + "1") for task, frame in second.frames.items()}
    pairs = compare_models([first, second._replace(frames=longer)], 0.95)
    assert {pair.what for pair in pairs} == {ALL_BLOCKS} and len(pairs) == 2


def test_the_report_says_first_what_differs(runs: list[Stored]) -> None:
    pairs = compare_models(scores(runs), 0.95)
    changes = [{name: find_changes(frame) for name, frame in each.frames.items()} for each in scores(runs)]
    edit_json(runs[0].folder / "manifest.json", versions={"lit_depth": "0.0.9"})
    told, _ = read_folders([run.folder for run in runs])
    found = report(told, ["strong", "weak"], pairs, changes, 0.95, ["One is left out."])
    assert "2 runs of 2 models (strong, weak) on 2 tasks" in found.headline and "One is left out." in found.headline
    assert "strong scores higher than weak: strong less weak +" in found.headline
    assert "lit_depth 0.0.9, 0.1.0" in found.headline
    tests = next(section for section in found.sections if section.heading == "Models on the same samples")
    assert tests.table is not None and len(tests.table.rows) == len(pairs)
    assert set(found.charts) == {"models_shapes", "models_charts"}
    assert set(found.charts["models_shapes"].colors) == {"strong: importance", "weak: importance"}


def test_other_experts_and_crops_stand_side_by_side(tmp_path: Path, comparison: dict[str, Any]) -> None:
    """One checkpoint at several widths and input sizes: models to compare, with a column for what was asked for."""
    asked: dict[str, dict[str, int | None]] = {
        "own": {"model.experts_per_token": None},
        "one": {"model.experts_per_token": 1},
        "few": {"model.experts_per_token": None, "model.max_crops": 4},
    }
    folders = []
    for name, arguments in asked.items():
        folder = write_comparison(tmp_path / name, comparison, "tiny", right=0.9, run=name)
        before = json.loads((folder / "manifest.json").read_text())["arguments"]
        edit_json(folder / "manifest.json", arguments=before | arguments)
        folders.append(folder)
    runs = read_folders(folders)[0]
    labels = name_models(runs)
    assert labels == ["tiny", "tiny, 1 expert per token", "tiny, at most 4 crops"]
    every = [read_scores(run, label) for run, label in zip(runs, labels)]
    pairs = compare_models(every, 0.95)
    assert {(pair.a, pair.b) for pair in pairs} == set(itertools.combinations(labels, 2))
    changes = [{name: find_changes(frame) for name, frame in each.frames.items()} for each in every]
    told = report(runs, labels, pairs, changes, 0.95)
    table = next(section for section in told.sections if section.heading == "Full models").table
    assert table is not None and list(table.headers[:5]) == ["model", "run", "task", "experts per token", "most crops"]
    assert [row[3:5] for row in table.rows] == [["as stored"] * 2, [1, "as stored"], ["as stored", 4]]


def phase_runs(tmp_path: Path, comparison: dict[str, Any], weights: tuple[str, ...]) -> list[Stored]:
    """Runs of one checkpoint's name: of each weights one of all forwards, and one of decode steps alone."""
    folders = []
    for each, phase in itertools.product(weights, ("both", "decode")):
        run = f"{each}_{phase}"
        folders.append(write_comparison(tmp_path / run, comparison, "tiny", ("shapes",), 0.6, run=run))
        before = json.loads((folders[-1] / "manifest.json").read_text())
        edit_json(
            folders[-1] / "manifest.json",
            arguments=before["arguments"] | {"model.phase": phase},
            model=(before.get("model") or {}) | {"weights": each},
        )
    return read_folders(folders)[0]


def test_a_run_whose_masks_apply_to_decode_steps_alone_says_so(tmp_path: Path, comparison: dict[str, Any]):
    runs = phase_runs(tmp_path, comparison, ("aaaaaaaa",))
    labels = name_models(runs)
    assert labels == ["tiny, all tokens skip blocks", "tiny, all tokens skip blocks, in decode steps alone"]
    assert compare_models([read_scores(run, label) for run, label in zip(runs, labels)], 0.95) == []  # one model


def test_other_weights_are_another_model_whatever_their_masks_apply_to(tmp_path: Path, comparison: dict[str, Any]):
    runs = phase_runs(tmp_path, comparison, ("aaaaaaaa", "bbbbbbbb"))
    words = ("all tokens skip blocks", "all tokens skip blocks, in decode steps alone")
    assert name_models(runs) == [f"tiny ({weights}), {each}" for weights in ("aaaaaa", "bbbbbb") for each in words]
    # the same where each of the two weights has one of the phases
    assert name_models([runs[0], runs[3]]) == ["tiny (aaaaaa)", f"tiny (bbbbbb), {words[1]}"]


def skipping_runs(tmp_path: Path, comparison: dict[str, Any]) -> list[Stored]:
    """One model whose blocks all tokens skip, and image tokens alone, which loses less and saves less."""
    folders = []
    for name, right, tokens, least in (("blocks", 0.6, "all", 0.0), ("images", 0.95, "image", 0.3)):
        folder = write_comparison(tmp_path / name, comparison, "tiny", ("shapes", "charts"), right, run=name)
        before = json.loads((folder / "manifest.json").read_text())["arguments"]
        edit_json(folder / "manifest.json", arguments=before | {"model.skip_tokens": tokens})
        result = json.loads((folder / "m5_mask_strategy_comparison.json").read_text())
        for entry in (result, *result["tasks"]):
            masks = {mask["mask_id"] for strategy in entry["strategies"] for mask in strategy["masks"]} | {"1" * 16}
            shares = {mask: least + (1 - least) * mask.count("1") / 16 for mask in masks}
            entry["flops"] = {mask: {"total": round(1000 * share)} for mask, share in shares.items()}
        (folder / "m5_mask_strategy_comparison.json").write_text(json.dumps(result))
        folders.append(folder)
    return read_folders(folders)[0]


def test_masks_of_image_tokens_stand_beside_those_of_all_at_equal_cost(
    tmp_path: Path, comparison: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = skipping_runs(tmp_path, comparison)
    labels = name_models(runs)
    assert labels == ["tiny, all tokens skip blocks", "tiny, image tokens alone skip blocks"]
    every = [read_scores(run, label) for run, label in zip(runs, labels)]
    costs = compare_at_equal_cost(every, [read_curves(run, label) for run, label in zip(runs, labels)], 0.95)
    assert compare_models(every, 0.95) == []  # one model
    kinds = set(itertools.product(("shapes", "charts"), ("flops", "time")))
    assert {(pair.task, pair.cost) for pair in costs} == kinds
    of_flops = next(pair for pair in costs if pair.cost == "flops")
    # four active blocks are the fewest; of image tokens alone they cost .3 + .7 / 4
    assert of_flops.low == pytest.approx(0.475) and of_flops.found is not None and of_flops.num_samples == 48
    monkeypatch.chdir(tmp_path)
    assert run_command(["report", "blocks", "images", "--samples", "0"]) == 0
    told = capsys.readouterr().out
    assert "2 runs of 1 model (tiny) on 2 tasks" in told and "On shapes at equal FLOPs (mean over 0.47 to 1" in told
    assert told.count("at equal") >= 4 and "Quality at equal cost" in (tmp_path / "report.html").read_text()
    assert {path.name for path in (tmp_path / "report_figures").glob("*.png")} == {
        "frontier_shapes.png",
        "frontier_charts.png",
    }


def test_results_without_counts_are_compared_at_equal_time_alone(tmp_path: Path, comparison: dict[str, Any]) -> None:
    (stored, *_) = skipping_runs(tmp_path, comparison)
    assert [curve.cost for curve in read_curves(stored, "")] == ["flops", "time"] * 2
    for entry in stored.result["tasks"]:
        del entry["flops"]
    assert [curve.cost for curve in read_curves(stored, "")] == ["time"] * 2
    assert read_curves(stored._replace(manifest={**stored.manifest, "command": "search"}), "") == []


def test_one_model_alone_is_compared_with_none(runs: list[Stored]) -> None:
    found = report(runs, ["tiny", "tiny"], [], [{}, {}], 0.95)
    assert found.headline.endswith("on 2 tasks (shapes, charts).") and not found.charts
    assert "none are compared" in report(runs, ["a", "b"], [], [{}, {}], 0.95).headline
