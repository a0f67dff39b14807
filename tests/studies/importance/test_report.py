"""What importance tells: the tables of terminal and page, and what Weights & Biases keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_depth.studies.importance.report import report
from lit_depth.studies.shared.publish import as_text
from tests.helpers.wandb_run import files_of, logged_report, read_table

BASELINE = {
    "answer": "yes",
    "quality": 0.25,
    "quality_ci": [0.2, 0.3],
    "difference": 0.5,
    "difference_ci": [0.3, 0.7],
    "beaten": True,
    "num_candidates": 3,
    "split": "calibration",
}
FULL = {"quality": 0.75, "quality_ci": [0.7, 0.8], "num_distinct_answers": 6}


def block(index: int) -> dict[str, Any]:
    drop = {"drop": 0.1 * index, "drop_ci": [0.1 * index - 0.05, 0.1 * index + 0.07], "rank": 4 - index}
    drop |= {"drop_simultaneous_ci": [0.1 * index - 0.15, 0.1 * index + 0.17], "p_holm": 0.06 - 0.02 * index}
    drop |= {"rank_ci": [4 - index, 4 if index < 2 else 4 - index]}
    entry = {"block": index, "num_distinct_answers": 1 if index == 3 else 5, "quality": drop}
    return {**entry, "reference_logprob": {**drop, "drop": 0.3 * index}}


def task(name: str, beaten: bool = True) -> dict[str, Any]:
    counts = {"num_samples": 9, "num_images": 8, "num_bad_samples": 0, "in_training_mixture": False}
    known = {"full": FULL, "baseline": {**BASELINE, "beaten": beaten}, "blocks": [block(index) for index in range(4)]}
    return {"task": name, "metric": "ExactMatch", **counts, **known}


def two_tasks() -> dict[str, Any]:
    """Of task b the full model does not beat the constant answer."""
    known = {"spearman": 0.5, "ci": [0.1, 0.9], "p_value": 0.01, "verdict": "withheld", "samples_needed": [20, 30]}
    return {
        "tasks": [task("a"), task("b", beaten=False)],
        "macro": [block(index) for index in range(4)],
        "full": FULL,
        "baseline": BASELINE,
        "split": "calibration",
        "confidence": 0.95,
        "agreement": [{"a": "a", "b": "b", "quality": known, "reference_logprob": known}],
    }


def test_everything_is_in_the_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = two_tasks()
    told = report(result)
    logged = logged_report(told, "importance.json", result, tmp_path, monkeypatch)

    *_, media = logged.history
    for name in ("a", "b", "macro"):
        rows = read_table(logged, media[f"importance/{name}"])
        assert [row["block"] for row in rows] == [0, 1, 2, 3]
        for row in rows:
            entry = block(row["block"])
            assert row["drop"] == pytest.approx(entry["quality"]["drop"])
            assert [row["drop_ci_low"], row["drop_ci_high"]] == pytest.approx(entry["quality"]["drop_ci"])
            assert row["reference_logprob_drop"] == pytest.approx(entry["reference_logprob"]["drop"])
            together = [row["drop_simultaneous_ci_low"], row["drop_simultaneous_ci_high"]]
            assert together == pytest.approx(entry["quality"]["drop_simultaneous_ci"])
            assert row["rank"] == (None if name == "b" else entry["quality"]["rank"])
            expected = "withheld" if name == "b" else "differs" if row["p_holm"] < 0.05 else "tie"
            assert row["verdict"] == row["reference_logprob_verdict"] == expected
        bars = read_table(logged, media[f"charts/importance/{name}"])
        assert [(bar["block"], bar["drop"]) for bar in bars] == [(str(row["block"]), row["drop"]) for row in rows]
        assert [bar["differs"] for bar in bars] == [row["verdict"] == "differs" for row in rows]
    assert set(told.figures) == {f"block_importance_{name}" for name in ("a", "b", "macro", "by_task", "agreement")}
    for name in told.figures:
        drawn = (tmp_path / "result" / "figures" / f"{name}.png").read_bytes()
        assert (logged.files / media[f"figures/{name}"]["path"]).read_bytes() == drawn
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "importance"]
    assert artifact.name == "importance"
    scores = {f"layer_importance_scores{task}.json" for task in ("", "_a", "_b")}
    assert files_of(artifact) == {"importance.json", *scores}
    assert logged.summary["full/quality/a"] == 0.75
    assert logged.summary["withheld"].startswith("No verdict on b: the full model (0.750)")
    expected = {"baseline/answer": "yes", "baseline/quality": 0.25, "full/num_distinct_answers": 6}
    for name in "ab":
        assert {key: logged.summary[f"{key}/{name}"] for key in expected} == expected
        assert logged.summary[f"baseline/beaten/{name}"] is (name == "a")


def test_refusals_come_first_and_nothing_is_found_where_there_is_one() -> None:
    text = as_text(report(two_tasks()))
    assert text.strip().startswith("No verdict on b: the full model (0.750)")
    a, _, b = text.partition("\nb.")
    assert "ExactMatch on a (calibration split), 9 samples of 8 images" in text
    assert "least important by ExactMatch: blocks 0, 1 (tied)" in a
    b, _, mean = b.partition("Mean over tasks.")
    assert "least important" not in b and "least important by reference log-probability: blocks 0, 1 (tied)" in mean
    assert "+0.300**" in a and "one and the same answer to every question" in a
    assert "withheld   20 / 30" in mean


def test_of_one_task_its_scores_are_the_file() -> None:
    result = {**two_tasks(), "tasks": [task("a")], "macro": None, "agreement": []}
    told = report(result)
    assert dict(told.files) == {"layer_importance_scores.json": {str(i): 0.1 * i for i in range(4)}}
    assert [section.heading for section in told.sections] == ["a"] and list(told.figures) == ["block_importance"]


def method(name: str, direction: str) -> dict[str, Any]:
    scores, nothing = {str(index): 0.1 * index for index in range(4)}, {"spearman": None, "spearman_ci": None}
    known = {"method": name, "direction": direction, "scores": scores, "overlap": {"1": 1.0}, "forwards": 2.0}
    return {**known, **nothing, "p_value": None, "masks": []}


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ({"mine.change": "higher"}, "more important.\n"),
        ({"taylor_signed": "lower", "mine.b": "lower"}, "more important; of taylor_signed: lower; of mine.b: lower.\n"),
        (
            {"attention_entropy": "higher (a convention: none is agreed)"},
            "more important; of attention_entropy: higher (a convention: none is agreed).\n",
        ),
    ],
)
def test_the_direction_is_told_of_the_methods_that_were_run(methods: dict[str, str], told: str) -> None:
    entries = [method("accuracy_drop", "higher"), *(method(*each) for each in methods.items())]
    measured = {"entries": entries, "validation": task("a"), "confidence": 0.95, "batch_size": 4}
    measured |= {"forward_seconds": 0.1, "proxies_together_forwards": 3.04}
    result = {**two_tasks(), "tasks": [task("a")], "macro": None, "agreement": [], "methods": measured}
    text = as_text(report(result))
    assert "all methods in one pass cost 3.0. A higher score counts as " + told in text


def test_of_very_many_tasks_no_pairs_are_drawn() -> None:
    told = report({**two_tasks(), "agreement": []})
    assert "block_importance_agreement" not in told.figures
    assert "told of up to 20 tasks, by lit-depth consistency too; here are 2." in as_text(told)


def test_a_metric_is_shown_without_the_modules_of_its_path() -> None:
    entry = {**task("a"), "metric": "lit_depth.integrations.harness.acc_norm"}
    text = as_text(report({**two_tasks(), "tasks": [entry, task("b")]}))
    assert "acc_norm on a (calibration split)" in text and "least important by acc_norm:" in text
    assert "integrations" not in text
