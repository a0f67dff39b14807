"""``lit-depth select``: what it chooses follows from what was measured, and mistakes are named."""

from __future__ import annotations

import json

import pytest

from lit_depth.studies.select import measurements as study
from tests.helpers.commands import run

SMALL = ["--data.num_samples", "24", "--data.calibration_samples", "24", "--policies", "prefix", "uniform"]
SMALL += [
    "--num_active_blocks",
    "2",
    "8",
    "16",
    "--num_requests",
    "3",
    "--num_checks",
    "3",
    "--new_tokens",
    "2",
    "--margin",
    "0",
]


def read(folder, name: str = "selection.json"):
    return json.loads((folder / "select" / "default" / name).read_text())


@pytest.fixture
def steady_clock(monkeypatch):
    """Requests of 10 ms and 1 ms per active block, on a machine where nothing else runs."""

    def measure(run, split, masks, path, *, num_requests, **_):
        import pandas as pd

        rows = [
            {"mask": mask, "sample": str(index), "total": 10.0 + mask.count("1")}
            for mask in masks
            for index in range(num_requests)
        ]
        return pd.DataFrame(rows)

    monkeypatch.setattr(study, "time_masks", measure)
    # the untrained model beats no constant answer, and would be given no mask
    monkeypatch.setattr(study, "describe_baseline", lambda scores, confidence: None)


@pytest.mark.slow
def test_the_best_mask_within_the_budget_is_chosen_and_another_budget_needs_no_new_run(
    checkpoint, tmp_path, capsys, steady_clock
):
    command = ["select", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL]
    assert run(command) == 0
    result = read(tmp_path)
    assert result["selected"] is None and "No --budget_ms" in capsys.readouterr().out
    assert result["max_score"] == 1.0
    assert [entry["num_active_blocks"] for entry in result["candidates"]] == [2, 8, 16]
    assert [entry["latency_ms"]["bound"] for entry in result["candidates"]] == [12.0, 18.0, 26.0]
    assert result["line"] == pytest.approx({"slope": 1.0, "intercept": 10.0, "r2": 1.0})
    for budget, affordable in ((26, 3), (25.9, 2), (18, 2), (17, 1), (12, 1)):
        assert run([*command, "--budget-ms", budget]) == 0
        result = read(tmp_path)
        within = result["candidates"][:affordable]
        chosen = result["selected"]
        assert chosen["chosen_by"]["quality"] == max(entry["chosen_by"]["quality"] for entry in within)
        assert chosen["mask_id"] in [entry["mask_id"] for entry in within]
        assert chosen["measured_again"]["share_within_budget"] == 1.0 and not result["rejected"]
        assert set(result["requests"]) == {"simple", "medium", "complex"}
    assert run([*command, "--budget-ms", "11.9"]) == 2
    assert "at least 12.0 ms" in capsys.readouterr().err
    # the choice looks at the calibration split, the expectation at the other
    records = sorted(path.parent.name for path in (tmp_path / "select").rglob("rank0.jsonl"))
    assert records == ["calibration", "validation"]
    for name in ("figures/quality_vs_budget.png", "report.html", "manifest.json"):
        assert (tmp_path / "select" / "default" / name).stat().st_size > 0


def test_the_largest_score_is_that_of_the_metric(checkpoint, tmp_path, steady_clock):
    metric = "tests.helpers.own_metrics.Remainder"
    command = ["select", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL]
    assert run([*command, "--data.metric", metric]) == 0
    result = read(tmp_path)
    assert result["metric"] == metric and result["max_score"] == 6.0


@pytest.mark.slow
def test_without_a_number_of_requests_what_no_budget_would_choose_is_not_timed(
    checkpoint, tmp_path, capsys, steady_clock
):
    place = SMALL.index("--num_requests")
    command = [
        "select",
        "--model.checkpoint",
        checkpoint,
        "--output_dir",
        tmp_path,
        *SMALL[:place],
        *SMALL[place + 2 :],
    ]
    assert run([*command, "--margin", "0.1", "--budget-ms", "1000"]) == 0
    result = read(tmp_path)
    timed, qualities = result["candidates"], [entry["chosen_by"]["quality"] for entry in result["candidates"]]
    assert timed[-1]["num_active_blocks"] == 16 and qualities[:-1] == sorted(set(qualities[:-1]))
    assert {entry["latency_ms"]["num_requests"] for entry in timed} == {59}
    assert result["timing"]["num_masks"] == len(timed)
    assert all(entry["expected"] is not None for entry in timed)
    assert f"{59 * len(timed)} requests were timed under {len(timed)} masks." in capsys.readouterr().out


@pytest.mark.slow
def test_a_mask_that_is_slower_when_measured_again_is_dropped(checkpoint, tmp_path, monkeypatch, steady_clock):
    command = ["select", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL]
    assert run([*command, "--budget-ms", "100"]) == 0
    best = read(tmp_path)["selected"]
    steady = study.time_masks

    def drifting(run, split, masks, *args, **options):
        frame = steady(run, split, masks, *args, **options)
        if split == "validation":
            frame["total"] += [100.0 if mask == best["mask_id"] else 0.0 for mask in frame["mask"]]
        return frame

    monkeypatch.setattr(study, "time_masks", drifting)
    assert run([*command, "--budget-ms", "100"]) == 0
    result = read(tmp_path)
    assert [entry["mask_id"] for entry in result["rejected"]] == [best["mask_id"]]
    left = [entry for entry in result["candidates"] if entry["mask_id"] != best["mask_id"]]
    assert result["selected"]["chosen_by"]["quality"] == max(entry["chosen_by"]["quality"] for entry in left)


@pytest.mark.slow
def test_the_minimum_is_that_of_the_last_measurement(checkpoint, tmp_path, capsys, monkeypatch, steady_clock):
    steady = study.time_masks

    def slower_by_two(run, split, *args, **options):
        frame = steady(run, split, *args, **options)
        frame["total"] += 2.0 if split == "validation" else 0.0
        return frame

    monkeypatch.setattr(study, "time_masks", slower_by_two)
    command = ["select", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL]
    # 2 blocks take 12 ms, and 14 when measured again; 8 blocks take 18 and 20
    for budget in ("13", "18"):
        assert run([*command, "--budget-ms", budget]) == (2 if budget == "13" else 0)
    assert "at least 14.0 ms, which the fastest mask" in capsys.readouterr().err
    assert read(tmp_path)["selected"]["num_active_blocks"] == 2
    assert run([*command, "--budget-ms", "14"]) == 0

    file = tmp_path / "scores.json"
    file.write_text(json.dumps({str(block_idx): float(block_idx) for block_idx in range(16)}))
    command = [*command[:5], "--name", "estimate", "--importance", file, "--estimate_depth", "true"]
    command += ["--new_tokens", "2", "--num_requests", "2", "--num_checks", "2", "--margin", "0"]
    assert run([*command, "--budget-ms", "11.5"]) == 2
    assert "at least 13.0 ms, which 1 of 16 blocks took when measured again, got 11.5 ms" in capsys.readouterr().err
    assert run([*command, "--budget-ms", "13"]) == 0
    kept = [*command, "--name", "kept", "--keep", "0", "1", "2", "--budget-ms", "11.5"]
    assert run(kept) == 2
    assert "at least 13.0 ms, which 3 of 16 blocks take by estimate, got 11.5 ms" in capsys.readouterr().err


@pytest.mark.slow
def test_depth_from_the_line_where_only_importance_is_known(checkpoint, tmp_path, capsys, steady_clock):
    scores = {str(block_idx): float(16 - block_idx) for block_idx in range(16)}
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(scores))
    command = ["select", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--importance", file]
    command += [
        "--estimate_depth",
        "true",
        "--margin",
        "0",
        "--new_tokens",
        "2",
        "--num_requests",
        "2",
        "--num_checks",
        "2",
    ]
    assert run([*command, "--budget_ms", "15.5"]) == 0
    result = read(tmp_path)
    assert result["selected"]["active_block_indices"] == [0, 1, 2, 3, 4]
    assert result["depth_by_plain_ratio"] == 9  # 15.5 / 26 of 16 blocks, which take 19 ms
    assert result["selected"]["expected"] is None and "No quality was measured" in capsys.readouterr().out
    assert run([*command, "--budget_ms", "10.5"]) == 2
    assert "1 of 16 blocks takes" in capsys.readouterr().err


@pytest.mark.slow
def test_measured_files_of_other_commands(checkpoint, tmp_path, capsys):
    common = ["--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--data.num_samples", "16"]
    counts = ["--num_active_blocks", "4", "16", "--policies", "prefix"]
    assert run(["compare", *common, *counts, "--num_requests", "0"]) == 0
    times = ["--num_samples", "3", "--new_tokens", "2"]
    assert run(["latency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *counts, *times]) == 0
    comparison = tmp_path / "compare" / "default" / "m5_mask_strategy_comparison.json"
    latency = tmp_path / "latency" / "default" / "latency.json"
    given = ["--comparison", comparison, "--latency", latency, "--margin", "0.2", "--new_tokens", "2"]
    assert run(["select", *common, *given, "--budget-ms", "100000"]) == 0
    # the untrained model beats no constant answer: the comparison says so, and no mask is recommended
    result, out = read(tmp_path), capsys.readouterr().out
    assert result["selected"] is None and result["requests"] == {} and not result["baseline"]["beaten"]
    assert "No mask is recommended" in out
    told = next(line for line in out.splitlines()[::-1] if line.startswith("No verdict on shapes_vqa"))
    assert out.index(told) < out.index("Requests of batch size 1")
    content = json.loads(comparison.read_text())
    content["baseline"]["beaten"] = True
    comparison.write_text(json.dumps(content))
    assert run(["select", *common, *given, "--budget-ms", "100000"]) == 0
    result = read(tmp_path)
    assert result["selected"] is not None
    assert [entry["num_active_blocks"] for entry in result["candidates"]] == [4, 16]
    measured = json.loads(latency.read_text())["all_samples"]
    slowest = {count: max(row["T_total"] for row in measured if row["num_active_blocks"] == count) for count in (4, 16)}
    # three requests are too few for a bound: it is the largest
    bounds = {entry["num_active_blocks"]: entry["latency_ms"]["bound"] * 0.8 for entry in result["candidates"]}
    assert bounds == pytest.approx(slowest, rel=1e-12)
    out = capsys.readouterr().out
    assert "a little too good" in out and "From 3 requests it is their largest time" in out
    assert run(["select", *common, *given[:-2], "--new_tokens", "3", "--name", "other", "--budget-ms", "9"]) == 2
    assert "requests of 2 new tokens" in capsys.readouterr().err
    assert run(["select", *common, *given, "--name", "other", "--model.phase", "decode"]) == 2
    assert 'made with another model.phase: there "both", here "decode"' in capsys.readouterr().err
    assert run(["select", *common, *given, "--name", "other", "--keep", "0"]) == 2
    assert "comparison brings its own masks" in capsys.readouterr().err
    assert run(["select", *common, "--comparison", latency, "--name", "other"]) == 2
    assert "expected the JSON file that `lit-depth compare` writes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget-ms", "0"], "expected a positive and finite budget_ms, got 0"),
        (["--budget-ms=-3"], "expected a positive and finite budget_ms, got -3"),
        (["--complexity", "simple"], "expected --budget_ms with the complexity, got 'simple' alone"),
        (["--num_requests", "0"], "expected num_requests of at least 1, got 0"),
        (["--margin", "1"], "expected a margin of at least 0 and below 1, got 1"),
        (["--num_checks", "0"], "expected num_checks of at least 1, got 0"),
        (["--new_tokens", "0"], "expected new_tokens from 1 to 1048576, got 0"),
        (["--estimate_depth", "true"], "estimate_depth needs --importance"),
        (["--trainer.precision", "bf16-true"], "--model.dtype"),
        (["--comparison", "nowhere.json"], "nowhere.json"),
        (["--latency", "nowhere.json"], "nowhere.json"),
        (["--importance", "nowhere.json"], "nowhere.json"),
        (["--num_active_blocks", "17"], "must lie in 1..16, got [17]"),
        (["--data.tasks", "shapes_vqa", "text_vqa"], "requests from one task"),
    ],
)
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    assert run(["select", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not list(tmp_path.rglob("selection.json"))
