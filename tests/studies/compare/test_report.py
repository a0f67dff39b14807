"""What a comparison tells: terminal and page, and what Weights & Biases keeps."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lit_depth.results.page import write_page
from lit_depth.results.verdicts import LEGEND, WITHHELD
from lit_depth.studies.compare.report import COLUMNS, report
from lit_depth.studies.shared.importance_scores import COMPARISON, SCORES
from lit_depth.studies.shared.publish import as_text, draw
from tests.helpers.wandb_run import files_of, logged_report, read_table

BASELINE = {
    "answer": "red",
    "quality": 0.55,
    "quality_ci": [0.5, 0.6],
    "difference": 0.44,
    "difference_ci": [0.38, 0.5],
    "p_value": 0.001,
    "beaten": True,
    "split": "calibration",
    "num_candidates": 7,
    "reason": None,
}


def test_everything_is_in_the_offline_run(
    comparison: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, answer in enumerate(comparison["answers"].values()):
        answer["text"] = f"text {index}"
    comparison["strategies"] = comparison["strategies"][::-1]  # curves must go by blocks, not by order of appearance
    logged = logged_report(report(comparison), COMPARISON, comparison, tmp_path, monkeypatch)
    strategies = comparison["strategies"]
    by_key = {(s["policy"], s["num_active_blocks"]): s for s in strategies}
    (media,) = [row for row in logged.history if "compare/strategies" in row]

    # native curves: every number of the JSON, once, along the number of blocks
    curves = {
        "quality": lambda s: s["quality"],
        "low": lambda s: s["quality_ci"][0],
        "high": lambda s: s["quality_ci"][1],
    }
    curves |= {"latency_ms/total": lambda s: s["latency_ms"]["total"]["P50"]}
    for policy in ("prefix", "importance", "random"):
        for name, value in curves.items():
            key = f"{name}/{policy}"
            drawn = [(row["num_active_blocks"], row[key]) for row in logged.history if key in row]
            mine = {s["num_active_blocks"]: value(s) for s in strategies if s["policy"] == policy}
            assert drawn == sorted(mine.items())
            assert logged.metrics[key] == "num_active_blocks"
    assert len(logged.history) == len({s["num_active_blocks"] for s in strategies}) + 1

    # table
    rows = read_table(logged, media["compare/strategies"])
    assert [(row["policy"], row["num_active_blocks"]) for row in rows] == [
        (s["policy"], s["num_active_blocks"]) for s in strategies
    ]
    for row, strategy in zip(rows, strategies):
        assert [row["quality_ci_low"], row["quality_ci_high"]] == pytest.approx(strategy["quality_ci"], rel=1e-12)
        assert [row["drop_ci_low"], row["drop_ci_high"]] == pytest.approx(strategy["drop_ci"], rel=1e-12)
        for key in ("quality", "drop", "reference_logprob"):
            assert row[key] == pytest.approx(strategy[key], rel=1e-12)
        for stage in ("vision", "prefill", "decode_per_token", "total"):
            assert row[f"{stage}_P50_ms"] == pytest.approx(strategy["latency_ms"][stage]["P50"], rel=1e-12)

    # charts: the points of each figure, and the full model's
    drawn = read_table(logged, media["charts/quality_vs_blocks"])
    points = {(row["policy"], row["blocks"]): [row["quality"], row["low"], row["high"]] for row in drawn}
    expected = {(s["policy"], s["num_active_blocks"]): [s["quality"], *s["quality_ci"]] for s in strategies}
    full = comparison["full"]
    expected["all 16 blocks", 16] = [full["quality"], *full["quality_ci"]]
    assert points == {key: pytest.approx(values) for key, values in expected.items()}
    for row in read_table(logged, media["charts/quality_vs_latency"]):
        times = (full if row["role"] == "full model" else by_key[row["policy"], row["blocks"]])["latency_ms"]["total"]
        assert [row["ms"], row["ms_low"], row["ms_high"]] == pytest.approx([times["P50"], times["min"], times["max"]])

    # figures, as the very files
    for name in ("m5_quality_vs_blocks", "m5_latency_vs_blocks", "m5_quality_latency_tradeoff"):
        image = logged.files / media[f"figures/{name}"]["path"]
        assert image.read_bytes() == (tmp_path / "result" / "figures" / f"{name}.png").read_bytes()

    # artifact: the very JSON
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "comparison"]
    assert artifact.name == "m5_mask_strategy_comparison"
    wanted = {COMPARISON: comparison, SCORES: comparison["importance"]["scores"]}
    assert files_of(artifact) == set(wanted)
    for entry in (each for each in artifact.manifest.contents if each.path in wanted):
        content = Path(entry.local_path).read_bytes()
        assert json.loads(content) == wanted[entry.path]
        assert base64.b64decode(entry.digest) == hashlib.md5(content).digest()

    # answers and the full model
    assert logged.summary["withheld"] == ""
    for question, answer in comparison["answers"].items():
        assert logged.summary[f"answers/{question}"] == answer["answer"]
        assert logged.summary[f"answers/{question}_text"] == answer["text"]
    assert logged.summary["full/quality"] == comparison["full"]["quality"]
    assert logged.summary["full/latency_ms/total"] == comparison["full"]["latency_ms"]["total"]["P50"]


def test_without_latency_only_quality_is_logged(
    comparison: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(report(comparison), tmp_path / "result" / "figures")  # left by an earlier run
    for entry in (comparison["full"], *comparison["strategies"]):
        entry["latency_ms"] = None
    logged = logged_report(report(comparison), COMPARISON, comparison, tmp_path, monkeypatch)
    keys = {key for row in logged.history for key in row}
    assert not [key for key in keys if "latency" in key]
    assert {key for key in keys if key.startswith("figures/")} == {
        "figures/m5_quality_vs_blocks",
        "figures/m5_importance",
    }
    (media,) = [row for row in logged.history if "compare/strategies" in row]
    assert {row["total_P50_ms"] for row in read_table(logged, media["compare/strategies"])} == {None}
    assert "full/latency_ms/total" not in logged.summary


def two_tasks(comparison: dict[str, Any]) -> dict[str, Any]:
    """The second is one that the full model does not do; the mean is."""
    tasks = [copy.deepcopy(comparison) | {"task": name} for name in ("first", "second")]
    tasks[0]["baseline"] = BASELINE
    tasks[1]["baseline"] = BASELINE | {"answer": "2", "difference": 0.0, "difference_ci": [-0.1, 0.1], "beaten": False}
    answers = {key: {"answer": WITHHELD, "text": "why"} for key in tasks[1]["answers"]}
    tasks[1] |= {"answers": answers, "comparisons": []}
    for strategy in tasks[1]["strategies"]:
        strategy["quality"] = 0.5
    return {**comparison, "task": "mean of first, second", "baseline": BASELINE | {"answer": None}, "tasks": tasks}


def test_a_refusal_comes_first_and_each_task_has_its_part(comparison: dict[str, Any], tmp_path: Path) -> None:
    told = report(two_tasks(comparison))  # type: ignore[arg-type]
    text = as_text(told).strip()
    assert text.startswith("No verdict on second: the full model (0.990) was not shown to beat the constant answer")
    assert [section.heading for section in told.sections] == [
        "Answers",
        "Importance that chose the blocks",
        "Quality and latency of every policy",
        "first",
        "second",
    ]
    *_, mean, first, second = told.sections
    assert mean.table is not None and first.table == mean.table and second.table is not None
    assert [row[:2] for row in mean.table.rows][:2] == [[4, "0.610 [0.57, 0.65]"], [6, "0.780 [0.74, 0.82]"]]
    # at or below the constant answer
    assert all(str(cell).endswith("]*") for row in second.table.rows for cell in row[1:4]) and LEGEND in text
    assert first.figures == ["m5_quality_vs_blocks_first"] and "mean of first, second, 256 samples" in text
    figures = draw(told, tmp_path / "figures")
    assert set(figures) == {name for section in told.sections for name in section.figures}
    page = write_page(tmp_path, told, figures, {"keep": []}).read_text()
    assert page.count("<figure>") == 6
    assert page.index("No verdict on second") < page.index("Does importance beat prefix?")


def test_what_was_withheld_or_not_asked_is_said_so(comparison: dict[str, Any]) -> None:
    answers = comparison["answers"]
    answers["importance_beats_prefix"] = {"answer": WITHHELD, "text": "a reason that stands elsewhere"}
    answers["depth_is_a_scalar"] = None
    text = as_text(report(comparison))  # type: ignore[arg-type]
    assert "Does importance beat prefix? WITHHELD.\n" in text and "a reason" not in text
    assert "Is random worse than prefix? NOT SHOWN. Yes: 0.93 against 0.75." in text and "scalar" not in text
    comparison["answers"] = dict.fromkeys(answers)
    assert "No question was asked." in as_text(report(comparison))  # type: ignore[arg-type]


def test_scores_are_a_file_where_there_are_some(comparison: dict[str, Any]) -> None:
    scores = comparison["importance"]["scores"]
    assert scores and report(comparison).files == {"layer_importance_scores.json": scores}  # type: ignore[arg-type]
    comparison["importance"]["scores"] = {}
    assert report(comparison).files == {}  # type: ignore[arg-type]


def test_loggers_keep_every_task(comparison: dict[str, Any]) -> None:
    result = two_tasks(comparison) | {"latency_requests": 3}
    told = report(result)  # type: ignore[arg-type]
    assert told.scalars["withheld"] == ""  # of the mean over tasks
    expected = {"baseline/answer": None, "baseline/answer/first": "red", "baseline/answer/second": "2"}
    expected |= {"full/quality/second": 0.99, "baseline/beaten/second": False, "latency/num_requests": 3}
    assert {key: told.scalars[key] for key in expected} == expected
    assert len(COLUMNS) == 25 and told.metadata["task"] == "mean of first, second"
    assert "Times are medians of 3 requests of batch size 1 under each mask." in as_text(told)
