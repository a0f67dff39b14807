"""``lit-depth search``: the result that follows from the scores, whatever is killed, shared or remembered."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lit_depth import DepthModule, DepthTrainer
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.functional import (
    MaskScores,
    ablation_masks,
    beam_search,
    mask_id,
    masked,
    reference_logprob,
    score_ablations,
)
from lit_depth.functional.search.pairwise import pairwise_search
from lit_depth.functional.statistics import mean_intervals
from lit_depth.metrics import ExactMatch
from lit_depth.module import model_inputs
from tests.helpers.commands import close, run
from tests.helpers.simulated import paired_interval
from tests.helpers.simulated_search import Simulated, data, removed_by, simulated

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Broken(ShapesVQA):
    """Some rows cannot be read at all, of others the image cannot."""

    def sample(self, row, split, index):
        if split == "calibration" and index % 40 == 7:
            raise OSError("row is damaged")
        sample = super().sample(row, split, index)
        if split == "calibration" and index % 40 == 11:
            object.__setattr__(sample, "image", {"bytes": b"no image", "path": None})
        return sample


def search(module: DepthModule, datamodule: DepthDataModule, folder: Path, **options: Any) -> dict[str, Any]:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    trainer = DepthTrainer(accelerator="cpu", **quiet)
    small = {"beam_width": 2, "max_blocks_to_remove": 2, "output_dir": str(folder)} | options
    return trainer.search(module, datamodule, **small)


@pytest.fixture(scope="module")
def module(checkpoint) -> Simulated:
    return Simulated(str(checkpoint))


@pytest.fixture(autouse=True)
def figures(request, monkeypatch) -> None:
    """Drawn only where a test looks at the files: it takes as long as all else here."""
    if request.node.name != "test_what_is_reported_comes_from_the_report_split":
        for name in ("tree_figure", "drop_figure"):
            monkeypatch.setattr(f"lit_depth.studies.search.report.{name}", lambda result: Figure())


class Direct:
    """What the study should ask its scores of, without records or a trainer; and what it was asked."""

    def __init__(self, datamodule: DepthDataModule, bad: tuple[int, ...] = ()) -> None:
        names = datamodule.eval_dataset("calibration").recorded_ids()
        self.names, self.images, self.bad = [n for n, _ in names], [i for _, i in names], bad
        self.asked: set[tuple[str, int]] = set()

    def __call__(self, masks, positions) -> MaskScores:
        self.asked |= {(mask_id(mask), position) for mask in masks for position in positions}
        scores = np.array([[simulated(self.names[p], removed_by(mask)) for p in positions] for mask in masks])
        scores[:, [p in self.bad for p in positions]] = np.nan
        return MaskScores(scores[..., 0], np.round(scores[..., 1], 6))


def same_levels(levels: list[dict[str, Any]], expected: Any) -> None:
    for level, found in zip(levels, expected, strict=True):
        for entry, ablation in zip(level["ablations"], found.ablations, strict=True):
            assert entry == ablation._asdict()
        assert {key: level[key] for key in ("tied", "settled", "evaluations", "saved")} == {
            key: found._asdict()[key] for key in ("tied", "settled", "evaluations", "saved")
        }
        assert level["beam"] == list(found.beam)


@pytest.mark.slow
@pytest.mark.parametrize("rank_by", ["accuracy", "reference_logprob"])
def test_the_command_finds_what_follows_from_the_scores(module, tmp_path, capsys, rank_by):
    datamodule = data(module)
    result = search(module, datamodule, tmp_path, rank_by=rank_by)
    direct = Direct(datamodule)
    options = {"max_removed": 2, "rank_by": rank_by, "clusters": direct.images, "batch": 64}
    expected = beam_search(direct, 16, 200, beam_width=2, **options)
    same_levels(result["levels"], expected.levels)
    assert expected.saved > 0 and result["totals"]["saved"] == expected.saved
    assert result["totals"]["evaluations"] == expected.evaluations
    # cheap alone, and dear together
    assert (3, 8) not in result["levels"][1]["beam"]
    # the baselines
    greedy = beam_search(direct, 16, 200, beam_width=1, **options)
    assert [e["removed"] for e in result["baselines"]["greedy"]] == [level.best.removed for level in greedy.levels]
    spans = [(a, a + 1) for a in range(15)]
    ties = {"accuracy": lambda a: round(a.reference_probability, 6), "reference_logprob": lambda a: 0.0}[rank_by]
    best = max(score_ablations(direct, 16, 200, spans, rank_by=rank_by), key=lambda a: (a.score, ties(a)))
    assert result["baselines"]["span"][1]["removed"] == best.removed
    assert result["baselines"]["span"][1]["score"] == best.score
    order = sorted(expected.levels[0].ablations, key=lambda a: (a.score, ties(a), a.removed))
    ordered = [entry["removed"] for entry in result["baselines"]["importance_order"]]
    assert ordered == [tuple(sorted(a.removed[0] for a in order[-size:])) for size in (1, 2)]
    # no pair was evaluated twice
    direct.asked.update((mask_id(mask), p) for mask in ablation_masks(16, [(), *ordered]) for p in range(200))
    assert result["totals"]["evaluations_with_baselines"] == len(direct.asked)
    lines = [line for path in (tmp_path / "search").glob("**/calibration/*/*.jsonl") for line in path.open()]
    lines = [line for line in lines if not line.startswith('{"run"')]  # the head of every file
    assert len(lines) == len(direct.asked)
    out = capsys.readouterr().out
    assert f"racing saved {expected.saved} (" in out and "tied with the best" in out
    assert result["equal_scores_by"] == ("reference_probability" if rank_by == "accuracy" else None)
    assert ("ranked by accuracy, equal ones by reference probability" in " ".join(out.split())) == (
        rank_by == "accuracy"
    )


def test_what_is_reported_comes_from_the_report_split(module, tmp_path, capsys):
    datamodule = data(module)
    result = search(module, datamodule, tmp_path)
    folder = tmp_path / "search" / "default"
    names = datamodule.eval_dataset("validation").ids()
    images = [image for _, image in names]

    def right(removed: tuple[int, ...]) -> np.ndarray:
        return np.array([simulated(sample, removed)[0] for sample, _ in names])

    singles = [right(()) - right((block,)) for block in range(16)]
    for entry in result["ablations"]:
        drop = right(()) - right(entry["removed"])
        wanted = {"quality": right(entry["removed"]), "drop": drop}
        if len(entry["removed"]) > 1:
            wanted["interaction"] = drop - sum(singles[block] for block in entry["removed"])
        for key, values in wanted.items():
            # an interaction is as many differences as blocks were removed
            parts = len(entry["removed"]) if key == "interaction" else 1
            interval = (
                mean_intervals([values], images)[0]
                if key == "quality"
                else paired_interval(values, images, score_range=parts)
            )
            assert entry[key] == pytest.approx(interval.estimate, abs=1e-12)
            assert entry[f"{key}_ci"] == pytest.approx([interval.low, interval.high], abs=1e-9)
    by_removed = {entry["removed"]: entry["found_by"] for entry in result["ablations"]}
    assert {(block,) for block in range(16)} <= set(by_removed)
    for level in result["levels"]:
        assert [by_removed[removed][0] for removed in level["beam"]] == ["search", "beam 2"]
    assert result["report"]["full"]["quality"] == pytest.approx(right(()).mean())
    frame = pd.read_parquet(folder / "records.parquet")
    assert set(frame["mask"]) == {"1" * 16, *(entry["mask_id"] for entry in result["ablations"])}
    assert set(frame["sample"]) == {sample for sample, _ in names}
    assert json.loads((folder / "search.json").read_text())["ablations"] == json.loads(json.dumps(result["ablations"]))
    out = capsys.readouterr().out
    for name in ("search.json", "report.html", "figures/search_tree.png", "figures/drop_vs_removed.png"):
        assert (folder / name).stat().st_size > 0 and str(folder / name) in out


@pytest.mark.slow
def test_interrupted_anywhere_and_continued_equals_uninterrupted(module, tmp_path):
    def start() -> int:
        before = module.answered
        search(module, data(module), tmp_path)
        return module.answered - before

    folder = tmp_path / "search" / "default"
    total, whole = start(), (folder / "search.json").read_bytes()
    assert start() == 0 and (folder / "search.json").read_bytes() == whole  # what is done is not done again
    rounds = sorted((folder / "records").rglob("round_*/rank0.jsonl"))
    assert len(rounds) >= 6
    for last, share in [(0, 0.4), (3, 0.0), (4, 0.9), (len(rounds) - 1, 0.5)]:
        for path in rounds[last + 1 :]:
            shutil.rmtree(path.parent)
        lines = rounds[last].read_bytes().splitlines(keepends=True)
        kept = lines[: int(share * len(lines))]
        rounds[last].write_bytes(b"".join(kept) + b'{"mask": "11')
        shutil.rmtree(folder / "records" / "shapes_vqa" / "validation")
        (folder / "search.json").unlink()
        assert 0 < start() <= total
        assert (folder / "search.json").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("racing_on", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_run_that_ordered_equal_scores_by_their_blocks_is_continued(module, tmp_path, monkeypatch, racing_on):
    """As earlier versions did: their records serve as far as they go, and the rest is answered."""
    few = data(module, calibration_samples=30, num_samples=20)
    options: dict[str, Any] = {"racing": racing_on, "max_blocks_to_remove": 3}
    whole = search(module, few, tmp_path, name="new", **options)
    with monkeypatch.context() as patched:
        for place in ("racing", "pairwise", "beam"):
            patched.setattr(f"lit_depth.functional.search.{place}.second_score", lambda mean: 0.0)
        old = search(module, few, tmp_path, name="old", **options)
    assert old["levels"] != whole["levels"]  # there are ties
    before = module.answered
    again = search(module, few, tmp_path, name="old", **options)
    assert 0 < module.answered - before < before / 2
    assert again["levels"] == whole["levels"] and again["ablations"] == whole["ablations"]
    assert again["baselines"] == whole["baselines"]


def test_bad_samples_count_for_no_mask(module, tmp_path, capsys):
    datamodule = data(module, Broken(num_images=60))
    bad = tuple(p for p, index in enumerate(datamodule.eval_dataset("calibration").indices) if index % 40 in (7, 11))
    assert len(bad) >= 6
    result = search(module, datamodule, tmp_path, max_bad_samples=0.1)
    direct = Direct(datamodule, bad)
    expected = beam_search(direct, 16, 200, beam_width=2, max_removed=2, clusters=direct.images, batch=64)
    same_levels(result["levels"], expected.levels)
    assert result["calibration"]["num_bad_samples"] == len(bad) == 200 - result["calibration"]["num_samples"]
    assert {reason.split(":")[0] for reason in result["calibration"]["bad_samples"].values()} >= {"OSError"}
    # few are allowed of all samples, not of those of one round
    with pytest.raises(ValueError, match=r"\d+ of 200 samples cannot be evaluated, allowed are 1.0%"):
        search(module, datamodule, tmp_path, name="strict")


@pytest.mark.slow
def test_greedy_is_a_beam_of_one(module, tmp_path):
    wide = search(module, data(module), tmp_path)
    narrow = search(module, data(module), tmp_path, beam_width=1, name="narrow", baselines=False)
    assert wide["baselines"]["greedy"] == [
        {key: level["ablations"][0][key] for key in wide["baselines"]["greedy"][0]} for level in narrow["levels"]
    ]
    assert narrow["baselines"] == {} and all(len(level["beam"]) == 1 for level in narrow["levels"])


def test_without_racing_everything_is_asked_for_in_one_round_per_level(module, tmp_path):
    result = search(module, data(module), tmp_path, racing=False, baselines=False)
    assert result["totals"]["saved"] == 0
    sizes = [len(level["ablations"]) for level in result["levels"]]
    assert sizes[0] == 16 and [level["evaluations"] for level in result["levels"]] == [200 * size for size in sizes]
    # and one for the full model
    assert len(list((tmp_path / "search").rglob("round_*"))) == 3


@pytest.mark.slow
def test_pairwise_search_finds_what_follows_from_the_scores(module, tmp_path, capsys):
    datamodule = data(module)
    kept = [0, 1, 2, 4, 5, 6, 9, 10, 15]  # 3, 7, 8, 11, 12, 13 and 14 are left
    result = search(module, datamodule, tmp_path, strategy="pairwise", max_blocks_to_remove=3, keep=kept)
    direct = Direct(datamodule)
    options = {"beam_width": 2, "max_removed": 3, "keep": kept, "clusters": direct.images, "seed": datamodule.seed}
    expected = pairwise_search(direct, 16, 200, **options)
    same_levels(result["levels"], expected.search.levels)
    assert result["second_order"]["held_out"] == [each._asdict() for each in expected.held_out]
    assert result["totals"]["evaluations"] == expected.search.evaluations and not result["racing"]
    assert {name for entry in result["ablations"] for name in entry["found_by"]} >= {"search", "pairwise 2", "greedy"}
    assert (3, 8) not in result["levels"][1]["beam"]
    out = capsys.readouterr().out
    told = [out.index(part) for part in ("16 random ablations", "removed  which", "no racing")]
    assert told == sorted(told)
    # what is done is not done again
    before, whole = module.answered, (tmp_path / "search" / "default" / "search.json").read_bytes()
    search(module, datamodule, tmp_path, strategy="pairwise", max_blocks_to_remove=3, keep=kept)
    assert module.answered == before and (tmp_path / "search" / "default" / "search.json").read_bytes() == whole


def test_kept_blocks_stay_and_may_leave_no_span(module, tmp_path):
    kept = [1, 3, 5, 7, 9, 11, 13, 15]
    result = search(module, data(module), tmp_path, keep=kept)
    assert {block for entry in result["ablations"] for block in entry["removed"]} == set(range(0, 16, 2))
    assert result["baselines"]["span"][1] is None and result["baselines"]["span"][0] is not None


def brute_force(folder: Path, num_samples: int, most: int) -> dict[tuple[int, ...], tuple[list[float], list[float]]]:
    """Every combination of blocks, one after another, by `masked` and transformers' own generate."""
    module = DepthModule(str(folder))
    (batch,) = DepthDataModule(module.prompter, calibration_samples=num_samples).eval_dataloader("calibration")
    inputs, pad, found = model_inputs(batch), module.pad_token_id, {}
    options = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": 0, "pad_token_id": pad}
    for size in range(1, most + 1):
        for removed in itertools.combinations(range(6), size):
            with masked(module.model, ablation_masks(6, [removed])[0]):
                tokens = module.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
                logprobs = reference_logprob(module.model, inputs, batch["answer_ids"], pad_token_id=pad)
            texts = module.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            right = [ExactMatch.score(" ".join(text.split()), s.references) for text, s in zip(texts, batch["samples"])]
            found[removed] = right, logprobs.tolist()
    return found


@pytest.mark.slow
def test_a_beam_of_full_width_is_exhaustive_search_on_six_blocks(small_checkpoint, tmp_path):
    common = ["search", "--model.checkpoint", small_checkpoint, "--model.max_new_tokens", 2, "--output_dir", tmp_path]
    common += ["--data.calibration_samples", 8, "--data.num_samples", 8, "--max_blocks_to_remove", 3]
    common += ["--rank_by", "reference_logprob"]
    assert run([*common, "--name", "all", "--exhaustive", "true"]) == 0
    assert run([*common, "--name", "beam", "--beam_width", "20", "--racing", "false"]) == 0
    every, beam = (json.loads((tmp_path / "search" / name / "search.json").read_text()) for name in ("all", "beam"))
    # one call holds all masks, the other those of a level: a float32 logarithm of 40 has steps of 4e-6
    assert close(every["levels"], [{**level, "beam": level["beam"][:3]} for level in beam["levels"]], rel=1e-5)
    assert [len(level["ablations"]) for level in every["levels"]] == [6, 15, 20]
    assert every["baselines"] == beam["baselines"] and every["calibration"] == beam["calibration"]
    expected = brute_force(small_checkpoint, 8, 3)
    for level in every["levels"]:
        for entry in level["ablations"]:
            accuracy, logprobs = expected[tuple(entry["removed"])]
            assert entry["accuracy"] == pytest.approx(np.mean(accuracy), abs=1e-9)
            assert entry["reference_logprob"] == pytest.approx(np.mean(logprobs), rel=1e-6, abs=1e-5)
            assert entry["score"] == pytest.approx(np.exp(logprobs).mean(), rel=1e-3)
        best = max((r for r in expected if len(r) == level["num_removed"]), key=lambda r: np.exp(expected[r][1]).mean())
        assert tuple(level["ablations"][0]["removed"]) == best


SCRIPT = """
import os, signal, sys
from lit_depth.cli import main
from lit_depth.results.records import RecordWriter
from lit_depth.studies.search import finders
finders.ROUND = 8
left, write = [int(sys.argv[1])], RecordWriter.write
def dying(self, record):
    left[0] -= 1
    if left[0] == -1:
        self._file.write(b'{"mask": "11')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, record)
RecordWriter.write = dying
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_one_process_two_processes_and_two_kills_give_the_same_bytes(small_checkpoint, tmp_path):
    """23 samples in rounds of 8 or a little more, batches of 4: bytes of the JSON, log-probabilities included."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    common = ["search", "--model.checkpoint", str(small_checkpoint), "--model.max_new_tokens", "2"]
    common += ["--data.calibration_samples", "23", "--data.num_samples", "11", "--data.batch_size", "4"]
    common += ["--max_blocks_to_remove", "2", "--rank_by", "reference_logprob", "--output_dir", str(tmp_path)]
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*arguments: str, records: int = 10**9) -> int:
        command = [sys.executable, str(script), str(records), *common, *arguments]
        return subprocess.run(command, capture_output=True, env=environ, timeout=300).returncode

    assert start("--name", "one") == 0
    assert start("--name", "two", *two) == 0
    for moment in random.Random(0).sample(range(5, 120), 2):  # records written before the next kill
        assert start("--name", "killed", records=moment) == -9
    assert start("--name", "killed", *two) == 0
    one, others = (tmp_path / "search" / "one" / "search.json").read_bytes(), ("two", "killed")
    for name in others:
        assert (tmp_path / "search" / name / "search.json").read_bytes() == one
    rounds = list((tmp_path / "search" / "two" / "records").rglob("round_*"))
    assert len(rounds) >= 6 and all(len(list(path.glob("rank*.jsonl"))) == 2 for path in rounds)


@pytest.mark.slow
def test_batches_are_measured_once(module, tmp_path, monkeypatch):
    calls = []

    def find(model, datamodule, *_):
        calls.append(datamodule)
        return 16

    monkeypatch.setattr("lit_depth.studies.shared.batch_size.find_batch_size", find)
    auto = search(module, data(module, batch_size="auto"), tmp_path, name="auto")
    assert len(calls) == 2  # once for each split
    fixed = search(module, data(module, batch_size=16), tmp_path, name="fixed")
    assert auto == fixed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beam_width", "0"], "beam_width must be at least 1, got 0"),
        (["--keep", *map(str, range(16))], "expected a unit that may be removed"),
        (["--keep", "16"], "between 0 and 15, got 16"),
        (["--epsilon", "-1"], "epsilon must be at least 0 and delta between 0 and 1, got -1.0 and 0.05"),
        (["--confidence", "2"], "expected confidence from 0.5 to 0.9999, got 2.0"),
        (["--rank_by", "loss"], "rank_by"),
        (["--exhaustive", "true", "--max_blocks_to_remove", "8"], "at most 5,000 combinations, got 39,202"),
        (["--data.tasks", "shapes_vqa", "text_vqa"], "search takes one task at a time"),
        (["--data.task", "coco_caption"], "CIDErD of coco_caption belongs to all samples together"),
    ],
)
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    assert run(["search", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert "Traceback" not in err and not list(tmp_path.rglob("*.json"))


def test_splits_that_overlap_are_refused(module, tmp_path):
    class SameSplit(ShapesVQA):
        def load(self, split, path=None):
            return super().load("validation", path)

    with pytest.raises(ValueError, match="'calibration' and 'validation' of task 'shapes_vqa' must not overlap"):
        search(module, data(module, SameSplit(num_images=10)), tmp_path)
    assert not list(tmp_path.rglob("*.json"))
