"""``lit-depth consistency``: two splits of a task, or several tasks on one split."""

from __future__ import annotations

import json

import pytest
from commands import run

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
    tasks.write_text("data:\n  tasks: [shapes_vqa, {class_path: commands.SecondShapes}]\n")
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
        (["--num_samples", "0"], "expected num_samples of at least 1, given 0"),
    ],
)
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    assert run(["consistency", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not list(tmp_path.rglob("consistency.json"))
