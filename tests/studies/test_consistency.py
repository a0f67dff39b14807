"""``lit-depth consistency``: two splits of a task, or several tasks on one split."""

from __future__ import annotations

import json

import pytest

from lit_depth.studies.consistency.analysis import check_comparable
from lit_depth.studies.consistency.report import report
from tests.helpers.commands import run
from tests.helpers.wandb_run import files_of, logged_report, read_table

SPLITS = ["--num_samples", "22", "--data.batch_size", "8"]


@pytest.mark.slow
def test_two_splits_of_the_built_in_task(checkpoint, tmp_path, capsys):
    common = ["consistency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SPLITS]
    assert run([*common, "--skip", "0"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "consistency" / "default"
    result = json.loads((folder / "consistency.json").read_text())
    assert [entry["split"] for entry in result["measurements"]] == ["calibration", "validation"]
    assert [entry["num_samples"] for entry in result["measurements"]] == [22, 22]
    (pair,) = result["pairs"]
    assert (pair["a"], pair["b"]) == ("shapes_vqa, calibration", "shapes_vqa, validation")
    # the untrained model answers nothing right: its accuracy gives no order, its log-probabilities do
    assert pair["quality"] == dict.fromkeys(pair["quality"]) | {"verdict": "withheld"}
    # nor does it beat a constant answer: its numbers stay, and no verdict is given
    assert pair["reference_logprob"]["verdict"] == "withheld"
    assert out.strip().startswith("No verdict on shapes_vqa (calibration split): the full model (")
    low, high = pair["reference_logprob"]["ci"]
    assert -1 <= low <= high <= 1 and 0 <= pair["reference_logprob"]["p_value"] <= 1
    for name in ("figures/consistency_shapes_vqa_calibration_shapes_vqa_validation.png", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert "Spearman" in out and "not estimable" in out and "not shown." not in out
    # the same command again measures nothing and says the same; other arguments are refused
    before = (folder / "consistency.json").read_bytes()
    assert run([*common, "--skip", "0"]) == 0
    assert (folder / "consistency.json").read_bytes() == before
    assert run([*common, "--skip", "0", "--threshold", "0.8"]) == 2
    assert "another threshold" in capsys.readouterr().err


@pytest.mark.slow
def test_several_tasks_on_one_split(checkpoint, tmp_path):
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("data:\n  tasks: [shapes_vqa, {class_path: tests.helpers.commands.SecondShapes}]\n")
    common = ["consistency", "--config", tasks, "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SPLITS]
    assert run([*common, "--splits", "calibration"]) == 0
    folder = tmp_path / "consistency" / "default"
    result = json.loads((folder / "consistency.json").read_text())
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("shapes_vqa", "second_shapes")]
    assert (folder / "figures" / "consistency_matrix.png").stat().st_size > 0
    # the importance command compares the same two on the same questions
    importance = ["importance", "--config", tasks, "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SPLITS]
    assert run(importance) == 0
    other = json.loads((tmp_path / "importance" / "default" / "importance.json").read_text())
    assert other["agreement"] == result["pairs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--splits", "calibration"], "two or more tasks"),
        (["--splits", "calibration", "calibration"], "one or two different ones"),
        (["--splits", "train", "calibration", "validation"], "one or two different ones"),
        (["--splits", "calibration", "test"], "splits"),
        (["--threshold", "1"], "between -1 and 1"),
        (["--skip", *map(str, range(13))], "at least 4 blocks"),
        (["--num_samples", "0"], "expected num_samples of at least 1, got 0"),
    ],
)
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    assert run(["consistency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not list(tmp_path.rglob("consistency.json"))


def test_everything_is_in_the_offline_run(tmp_path, monkeypatch):
    known = {"spearman": 0.8, "p_value": 0.01, "ci": [0.5, 0.97], "verdict": "not shown", "samples_needed": None}
    unknown = dict.fromkeys(("spearman", "p_value", "ci", "samples_needed")) | {"verdict": "not shown"}
    baseline = {"answer": "no", "quality": 0.5, "difference": 0.0, "difference_ci": [-0.1, 0.1], "beaten": False}
    baseline |= {"quality_ci": [0.4, 0.6], "num_candidates": 2, "split": "calibration"}
    measured = {"full": {"quality": 0.5, "quality_ci": [0.4, 0.6], "num_distinct_answers": 1}, "baseline": baseline}
    measured |= {"split": "validation", "metric": "ExactMatch", "num_samples": 9, "num_images": 9, "num_bad_samples": 0}
    drop = {"drop": 0.1, "drop_simultaneous_ci": [0.0, 0.2], "p_holm": 0.3, "rank": 1, "rank_ci": [1, 2]}
    measured |= {"in_training_mixture": False, "blocks": [{"block": 0, "quality": drop, "reference_logprob": drop}]}
    result = {
        "splits": ["validation"],
        "threshold": 0.9,
        "confidence": 0.95,
        "measurements": [{"name": name, "task": name, **measured} for name in "xy"],
        "pairs": [{"a": "x", "b": "y", "quality": known, "reference_logprob": unknown}],
    }
    told = report(result)
    assert told.headline.startswith("No verdict on x (validation split)")
    assert "No number of samples up to 1024 times these is likely to show 0.9." in told.sections[0].text
    logged = logged_report(told, "consistency.json", result, tmp_path, monkeypatch)
    *_, media = logged.history
    rows = read_table(logged, media["consistency/pairs"])
    assert [row["spearman"] for row in rows] == [0.8, None] and rows[0]["noise_free_high"] == 0.97
    assert {"figures/consistency_x_y", "figures/consistency_matrix"} <= media.keys()
    assert logged.summary["spearman/x - y"] == 0.8 and logged.summary["verdict/x - y"] == "not shown"
    (artifact,) = [artifact for artifact in logged.artifacts if artifact.type == "consistency"]
    assert files_of(artifact) == {"consistency.json"}
    assert logged.summary["withheld"].startswith("No verdict on x") and logged.summary["baseline/answer/x"] == "no"


def test_pairs_of_very_many_tasks_are_refused_before_anything_is_measured():
    check_comparable(["calibration"], 20, 6, "block", 0.9)
    check_comparable(["calibration", "validation"], 200, 6, "block", 0.9)
    with pytest.raises(ValueError, match="expected at most 20 tasks with one split, whose pairs are compared, got 21"):
        check_comparable(["calibration"], 21, 6, "block", 0.9)


def figure_titles(result) -> list[str]:
    pairs = set(report(result).figures) - {"consistency_matrix", "decisions", "transfer_regret"}
    return [report(result).figures[name]().get_suptitle() for name in sorted(pairs)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "told", "cluster"),
    [
        (lambda folder: book(folder, 1), " windows (0 bad)", "window"),
        (lambda folder: book(folder, 6), " windows of 3 documents (0 bad)", "document"),
        (lambda folder: asked(folder), " questions (0 bad)", "question"),
    ],
)
def test_samples_and_clusters_have_the_names_of_their_task(
    small_checkpoint, tmp_path, capsys, recwarn, make, told, cluster
):
    path = make(tmp_path / "data")
    command = ["consistency", "--data.path", path, "--data.max_prompt_tokens", "32", "--output_dir", tmp_path]
    assert run([*command, "--model.checkpoint", small_checkpoint]) == 0
    out = capsys.readouterr().out
    assert told in out and f"simultaneous intervals (Holm) by {cluster}." in out and "image" not in out
    noun = told.split()[0]
    assert any(f"{noun} in its validation split, fewer than" in str(each.message) for each in recwarn)
    result = json.loads((tmp_path / "consistency" / "default" / "consistency.json").read_text())
    assert [title.splitlines()[-1].split(",")[0] for title in figure_titles(result)] == [
        f"bars: 95% simultaneous intervals (Holm) by {cluster}"
    ]
    for entry in result["measurements"]:
        assert entry["nouns"] == {"sample": noun.removesuffix("s"), "cluster": cluster}
        if cluster == "window":  # they are of one document all the same
            (name,) = entry["texts"]["documents"]
            assert name.endswith(" half") and entry["texts"]["documents"][name]["num_tokens"] > 100


def book(folder, count):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(
            " ".join(f"the {c} circle is in the top row" for c in ["red", "blue"] * 20)
        )
    return folder


def asked(folder):
    folder.mkdir()
    rows = [f"what is {number}?,{number % 3}" for number in range(20)]
    (folder / "q.csv").write_text("\n".join(["question,answer", *rows]))
    return folder / "q.csv"
