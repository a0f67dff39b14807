"""``select --lossless``: the choice follows from acceptance and costs, is measured, and answers stay the same."""

from __future__ import annotations

import json
import math

import pytest

from lit_depth.functional.latency.drafting import DraftCosts
from lit_depth.studies.select import lossless as study
from tests.helpers.commands import run

SMALL = ["--data.num_samples", "12", "--data.calibration_samples", "12", "--policies", "prefix", "uniform"]
SMALL += ["--num_active_blocks", "2", "4", "6", "--num_requests", "4", "--num_checks", "8", "--margin", "0"]
SMALL += ["--new_tokens", "5", "--lossless", "true", "--max_draft", "3"]


def read(folder):
    return json.loads((folder / "select" / "default" / "selection.json").read_text())


def check(ms, **others):
    return {"image": "a", "plain_ms": 20.0, "ms": ms, "is_same": True, "num_drafted": 4, "num_accepted": 2, **others}


def test_speedup_is_the_geometric_mean_of_the_ratios():
    checks = [check(10.0), check(40.0, image="b"), check(20.0, image="c", is_same=False)]
    found = study.summarize_checks(checks, 0.95)
    assert found["speedup"] == pytest.approx(1.0) and found["num_same"] == 2 and found["num_requests"] == 3
    low, high = found["speedup_ci"]
    assert low < 1 < high and math.sqrt(low * high) == pytest.approx(1.0)
    assert (found["share_accepted"], found["plain_ms"], found["ms"]) == (0.5, 20.0, 20.0)
    assert (
        study.summarize_checks([check(10.0, image=name, num_drafted=0) for name in "ab"], 0.95)["share_accepted"]
        is None
    )


def test_of_equally_many_blocks_the_most_accepted_mask_is_timed():
    shares = {"1100": 0.5, "0110": 0.7, "1110": 0.6, "1000": 0.9}
    assert study.best_of_each_depth(shares) == ["1000", "0110", "1110"]


@pytest.mark.slow
def test_it_is_measured_once_and_answers_are_the_full_models(small_checkpoint, tmp_path, capsys, monkeypatch):
    command = ["select", "--model.checkpoint", small_checkpoint, "--output_dir", tmp_path, *SMALL]
    assert run(command) == 0
    found, out = read(tmp_path)["lossless"], capsys.readouterr().out
    assert found["measured"]["num_same"] == found["measured"]["num_requests"] == 8
    assert {each["num_active_blocks"] for each in found["candidates"]} == {2, 4}
    best = max(found["candidates"], key=lambda each: each["speedup"])
    assert found["best"] == best and 1 <= best["num_draft"] <= 3
    assert (found["chosen"] is None) == (found["measured"]["speedup_ci"][0] <= 1)
    assert "Lossless: " in out and "8 of 8 answers are the full model's, token for token" in out
    folder = tmp_path / "select" / "default"
    for name in ("figures/lossless.png", "figures/quality_vs_budget.png", "report.html", "lossless/checks.json"):
        assert (folder / name).stat().st_size > 0

    # the same command again measures nothing; nor does one without, which tells nothing of it
    def fail(*_, **__):
        raise AssertionError("measured again")

    for name in ("draft_acceptance", "time_steps", "speculative_generate"):
        monkeypatch.setattr(study, name, fail)
    assert run(command) == 0
    assert read(tmp_path)["lossless"] == found
    without = [*command[: command.index("--lossless")]]
    assert run(without) == 0
    assert "lossless" not in read(tmp_path) and not (folder / "figures" / "lossless.png").exists()


@pytest.mark.slow
def test_drafts_may_begin_behind_the_prompt(small_checkpoint, tmp_path):
    command = ["select", "--model.checkpoint", small_checkpoint, "--output_dir", tmp_path, *SMALL]
    assert run([*command, "--model.phase", "decode"]) == 0
    found = read(tmp_path)["lossless"]
    assert found["measured"]["num_same"] == found["measured"]["num_requests"] == 8


@pytest.mark.slow
def test_a_fast_draft_is_chosen(small_checkpoint, tmp_path, capsys, monkeypatch):
    """Steps of fixed costs, and a clock that says what they say."""

    def steps(model, inputs, masks, max_draft, **_):
        cost = {masks.id_of(mask): float(mask.sum()) for mask in masks}
        return DraftCosts(10.0, {mask: 10.0 + each for mask, each in cost.items()}, cost, [6.0] * (max_draft + 1))

    monkeypatch.setattr(study, "time_steps", steps)
    checks = [check(12.5, image=str(number)) for number in range(24)]
    monkeypatch.setattr(study.Lossless, "_check", lambda self, choice: {"checks": checks})
    assert run(["select", "--model.checkpoint", small_checkpoint, "--output_dir", tmp_path, *SMALL]) == 0
    found = read(tmp_path)["lossless"]
    assert found["chosen"] == {"mask_id": found["best"]["mask_id"], "num_draft": found["best"]["num_draft"]}
    assert found["reason"] is None and found["measured"]["speedup"] == pytest.approx(1.6)
    assert "draft for the full model" in capsys.readouterr().out


@pytest.mark.slow
def test_what_leaves_nothing_to_draft_is_told(small_checkpoint, tmp_path, capsys):
    command = ["select", "--model.checkpoint", small_checkpoint, "--output_dir", tmp_path, *SMALL]
    command[command.index("--new_tokens") + 1] = "2"
    assert run(command) == 0
    assert "answers of at most 2 tokens leave nothing to draft" in capsys.readouterr().out
    assert run([*command, "--max_draft", "65"]) == 2
    assert "max_draft" in capsys.readouterr().err
    assert run([*command, "--num_checks", "1"]) == 2
    assert "expected num_checks of at least 2 with --lossless true, got 1" in capsys.readouterr().err
    assert run([*command, "--model.phase", "prefill", "--model.decode_without_prompt", "true"]) == 2
    assert "expected no --model.decode_without_prompt with --lossless true" in capsys.readouterr().err
