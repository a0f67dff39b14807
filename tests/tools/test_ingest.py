"""``lit-depth ingest FILE...``: results of others' engines in our paired tests."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.helpers.commands import run
from tests.helpers.harness_tasks import write_model
from tests.helpers.inspect_log import INSPECT_LOG, parts_of, write_json_log
from tests.helpers.sample_logs import lm_eval_row, lmms_eval_row, write_lm_eval, write_lmms_eval, write_run

MASK = "1011"
NUMBER = 24


def rows(right: int, number: int = NUMBER) -> list[dict[str, Any]]:
    return [lm_eval_row(doc, {"acc": float(doc < right)}) for doc in range(number)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Logs of a whole and an exported model, the export's certificate, and our run of the same mask."""
    monkeypatch.chdir(tmp_path)
    certify(tmp_path / "smaller", MASK)
    write_lm_eval(tmp_path / "there" / "smaller", rows(12), model=str(tmp_path / "smaller"))
    write_lm_eval(tmp_path / "there" / "whole", rows(20), model="organisation/whole")
    masks = {"1111": 20, MASK: 12, "1101": 3}
    ours = {mask: {f"test/{doc}": float(doc < right) for doc in range(NUMBER)} for mask, right in masks.items()}
    write_run(tmp_path / "results" / "compare" / "default", "lm_eval_sums", ours)
    return tmp_path


def certify(folder: Path, mask: str, **more: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "certificate.json").write_text(json.dumps({"mask_id": mask, **more}))


def result(name: str = "default") -> dict[str, Any]:
    return json.loads(Path("results", "ingest", name, "ingest.json").read_text())


def test_exported_against_whole_and_against_our_run(folder, capsys):
    assert run(["ingest", "there/smaller", "--whole", "there/whole", "--run", "results/compare/default"]) == 0
    told = capsys.readouterr().out
    (row,) = result()["rows"]
    assert (row["model"], row["mask_id"], row["metric"], row["num_samples"]) == ("smaller", MASK, "acc", NUMBER)
    assert row["drop"] == pytest.approx(8 / NUMBER) and row["drop_p_value"] == pytest.approx(2 * 0.5**8)
    assert (
        row["verdict"] == "worse"
        and row["ours"]["verdict"] == "confirmed: the same on every sample"
        and row["ours"]["equal_scores"] == 1.0
    )
    assert "metric acc (as in our run)" in told and re.search(r"sums +smaller +1 +acc +24 +0.833 +0.500 +\+0.333", told)
    assert "1 of 1 drops that we measured are confirmed." in told
    manifest = json.loads(Path("results/ingest/default/manifest.json").read_text())
    assert len(manifest["arguments"]["sha256"]) == 2 and manifest["command"] == "ingest"
    assert "<table>" in Path("results/ingest/default/report.html").read_text()
    records = pd.read_parquet("results/ingest/default/records.parquet").set_index(["mask", "sample"])
    assert list(records.columns[:4]) == ["image", "score", "prediction", "reference_logprob"]
    assert len(records) == 2 * NUMBER and records.loc[MASK, "test/12"]["score"] == 0.0
    assert records.loc["1111", "test/12"]["score"] == 1.0 and records.loc["1111", "test/12"]["image"] == "test/12"


def test_our_run_alone_stands_for_the_whole_model(folder, capsys):
    assert run(["ingest", "there/smaller", "--run", "results/compare/default"]) == 0
    assert "The whole model's scores are those of our run (sums)" in capsys.readouterr().out
    assert result()["rows"][0]["drop"] == pytest.approx(8 / NUMBER)


def test_several_models_have_their_own_masks_in_the_order_of_the_files(folder):
    third = write_lm_eval(folder / "there" / "third", rows(3), model="/elsewhere/third")
    files = ["there/smaller", third, "--whole", "there/whole", "--run", "results/compare/default"]
    assert run(["ingest", *files, "--mask", MASK, "1101"]) == 0
    assert [(row["model"], row["mask_id"]) for row in result()["rows"]] == [("smaller", MASK), ("third", "1101")]
    assert run(["ingest", *files, "--skip", "1", "--skip", "2", "--name", "skip"]) == 0
    assert [row["ours"]["verdict"] for row in result("skip")["rows"]] == ["confirmed: the same on every sample"] * 2
    certify(folder / "moved", "1101")
    assert run(["ingest", *files, "--checkpoint", "smaller", "moved", "--name", "moved"]) == 0
    assert result("moved")["rows"] == result("skip")["rows"]


def test_a_healed_export_is_not_held_to_the_unhealed_mask(folder, capsys):
    certify(folder / "smaller", MASK, healing={"kind": "patch"})
    assert run(["ingest", "there/smaller", "--run", "results/compare/default"]) == 0
    assert "smaller was healed: our records of the mask are of the unhealed model." in capsys.readouterr().out
    assert result()["rows"][0]["ours"] is None and result()["rows"][0]["drop"] == pytest.approx(8 / NUMBER)


def test_the_same_command_writes_it_anew_and_another_is_refused(folder, capsys):
    command = ["ingest", "there/smaller", "--whole", "there/whole"]
    assert run(command) == run(command) == 0
    assert run([*command, "--confidence", 0.9]) == 2
    assert "holds a run with another confidence: there 0.95, now 0.9" in capsys.readouterr().err
    write_lm_eval(folder / "there" / "whole", rows(21), model="organisation/whole")
    assert run(command) == 2
    assert "holds a run with another sha256" in capsys.readouterr().err


def test_results_of_lmms_eval(folder):
    for name, right in (("a", 4), ("b", 10)):
        scores = [{"pope_accuracy": {"question_id": doc, "score": float(doc < right)}} for doc in range(12)]
        write_lmms_eval(folder / name, [lmms_eval_row(doc, values) for doc, values in enumerate(scores)], "pope")
    ours = {mask: {f"test/{doc}": float(doc < right) for doc in range(12)} for mask, right in (("11", 10), ("01", 4))}
    write_run(folder / "run", "lmms_eval_pope", ours, metric="score")
    assert run(["ingest", "a", "--whole", "b", "--run", "run", "--skip", "0"]) == 0
    (row,) = result()["rows"]
    assert row["metric"] == "pope_accuracy" and row["drop"] == pytest.approx(0.5)
    assert row["ours"]["equal_scores"] == 1.0 and row["ours"]["verdict"] == "confirmed: the same on every sample"


def test_results_of_inspect_by_image(folder, capsys):
    header, samples = parts_of(INSPECT_LOG)
    wrong = [{**each, "scores": {"match": {"value": "I"}}} for each in samples]
    write_json_log(folder / "worse.json", header, wrong)
    assert run(["ingest", "worse.json", "--whole", INSPECT_LOG, "--metric", "match"]) == 0
    (row,) = result()["rows"]
    assert (row["drop"], row["num_samples"], row["num_images"]) == (pytest.approx(0.75), 4, 2)
    assert "scores of 2 epochs were averaged" in capsys.readouterr().out
    # a table's rows with a column of ids
    ours = {"11": {f"a/{n}/q{n}": 1.0 for n in range(4)}, "10": {f"a/{n}/q{n}": 0.0 for n in range(3)}}
    write_run(folder / "run", "questions", ours, metric="")
    assert run(["ingest", "worse.json", "--run", "run", "--mask", "10", "--metric", "match", "--name", "ours"]) == 0
    assert result("ours")["rows"][0]["ours"]["equal_scores"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["there/smaller"], "expected something to compare with: --whole FILE"),
        (["there/smaller", "--whole", "there/whole", "--task", "sums"], "--task names a task of our run: give --run"),
        (["there/lost", "--whole", "there/whole"], "there/lost does not exist"),
        (["there/smaller", "--whole", "there/smaller"], "holds the same as"),
        (["there/whole", "--whole", "there/smaller"], "is an exported model, it has a certificate.json"),
        (["there/whole", "--run", "results/compare/default"], "expected the blocks that were removed"),
        (["there/smaller", "there/older", "--whole", "there/whole"], "expected one file of sums for the model"),
        (["there/smaller", "--whole", "there/whole", "there/third"], "--whole: expected files of one model"),
        (
            ["there/smaller", "--whole", "there/other"],
            "expected lm_eval sums of the whole model too, --whole has lm_eval o",
        ),
        (
            ["there/other", "--run", "results/compare/default", "--mask", MASK],
            "expected lm_eval other among the tasks of",
        ),
        (["there/smaller", "--run", "results/compare/default", "--mask", "0111"], "no records of the mask 0111"),
        (["there/smaller", "--run", "results/compare/default", "--mask", "01a1"], "mask"),
        (["there/smaller", "--run", "results/compare/default", "--skip", "4"], "--skip: expected blocks from 0 to 3"),
        (["there/smaller", "--whole", "there/whole", "--skip", "1"], "--skip: the number of blocks is not known"),
        (
            ["there/smaller", "--whole", "there/whole", "--mask", "10", "11"],
            "expected --mask once for each of 1 exported",
        ),
        (["there/smaller", "--whole", "there/whole", "--mask", "10", "--skip", "1"], "expected one of --mask, --skip"),
        (["there/smaller", "--run", "there", "--mask", MASK], "--run: expected the folder of a run"),
        (
            ["there/smaller", "--whole", "there/whole", "--checkpoint", "there"],
            "expected a folder that lit-depth export",
        ),
        (["there/smaller", "--whole", "there/whole", "--metric", "f1"], "expected --metric of acc, got f1"),
        (["there/smaller", "--whole", "there/whole", "--name", "a/b"], "--name: expected the name of one folder"),
        (["there/smaller", "--whole", "there/whole", "--tolerance", "2"], "tolerance"),
        (["there/smaller", "--whole", "there/whole", "--confidence", "1"], "confidence"),
        (["there/smaller", "--whole", "there/damaged"], ".jsonl, line 1: the last line is cut off"),
    ],
)
def test_what_is_refused(arguments, message, folder, capsys):
    write_lm_eval(folder / "there" / "older", rows(11), model=str(folder / "smaller"))
    write_lm_eval(folder / "there" / "third", rows(12), model="third", task="third")
    write_lm_eval(folder / "there" / "other", rows(13), model="organisation/whole", task="other")
    damaged = folder / "there" / "damaged" / "samples_sums_2026-01-02T03-04-05.6.jsonl"
    damaged.parent.mkdir()
    damaged.write_text('{"doc_id": 0, "targ')
    assert run(["ingest", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) <= 2 and "Traceback" not in error
    assert not Path("results", "ingest").exists()


def test_an_export_of_another_model_than_the_runs_is_refused(folder, capsys):
    certify(folder / "smaller", MASK, sha256={"source": {"config.json": "ab" * 32}})
    manifest = folder / "results" / "compare" / "default" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"model": {"files": {"config.json": "cd" * 8}}}))
    assert run(["ingest", "there/smaller", "--run", "results/compare/default"]) == 2
    assert "is of another model than the exported one was made of: config.json differs" in capsys.readouterr().err


# ---- the harness itself

TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}, train: {rows}}}}}
output_type: multiple_choice
test_split: test
training_split: train
doc_to_text: "What is {{{{name}}}}?"
doc_to_target: right
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


@pytest.mark.slow
def test_what_lm_eval_says_of_an_export_is_what_we_said_of_the_mask(tmp_path, monkeypatch):
    """The harness's own run on the whole and the exported folder; ours on the same task, sample for sample."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    write_model(tmp_path / "model")
    words = ("circle", "square", "triangle", "star", "cross", "ring", "red circle", "red", "green", "a blue ring")
    data = [
        {
            "name": f"{words[n % 10]} and {words[n // 4]}",
            "choices": [words[(n + k) % 10] for k in range(4)],
            "right": n % 4,
        }
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    (tmp_path / "local_choice.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    ours = ["--data.task", f"lm_eval:{tmp_path}/local_choice.yaml", "--data.num_samples", "null"]
    ours += ["--model.checkpoint", "model"]
    compare = ["--active_block_indices", 0, 2, 3, "--num_requests", 0]
    assert run(["compare", *ours, *compare]) == 0
    assert run(["export", *ours, "--skip", "1", "--out", "smaller"]) == 0
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    for name in ("model", "smaller"):
        tracker = EvaluationTracker(output_path=str(tmp_path / "there"))
        lm = HFLM(pretrained=str(tmp_path / name), device="cpu", batch_size=8, dtype="float32")
        found = lm_eval.simple_evaluate(
            lm, tasks=["local_choice"], task_manager=manager, bootstrap_iters=0, evaluation_tracker=tracker
        )
        samples = found.pop("samples")
        tracker.general_config_tracker.model_name = str(tmp_path / name)
        tracker.general_config_tracker.model_name_sanitized = name
        tracker.save_results_aggregated(found, samples)
        tracker.save_results_samples("local_choice", samples["local_choice"])
        (tmp_path / f"{name}.json").write_text(json.dumps([row["acc"] for row in samples["local_choice"]]))
    command = ["ingest", "there/smaller", "--whole", "there/model", "--run", "results/compare/default"]
    assert run(command) == 0
    (row,) = result()["rows"]
    assert (row["task"], row["metric"], row["mask_id"], row["num_samples"]) == ("local_choice", "acc", "1011", 40)
    # what was read is what the harness gave to each document
    records = pd.read_parquet("results/ingest/default/records.parquet")
    for mask, name in (("1111", "model"), ("1011", "smaller")):
        read = records[records["mask"] == mask]
        assert read["sample"].tolist() == [f"test/{doc}" for doc in range(40)]
        theirs = json.loads((tmp_path / f"{name}.json").read_text())
        assert read["score"].tolist() == theirs and 0 < np.mean(theirs) < 1
    # and what our masked run said of the same documents, score by score and letter by letter
    assert row["ours"]["num_samples"] == 40 and row["ours"]["equal_scores"] == row["ours"]["equal_answers"] == 1.0
    assert row["ours"]["difference"] == 0.0 and row["ours"]["verdict"] == "confirmed: the same on every sample"
    shutil.rmtree("results/ingest")
    assert run([*command, "--metric", "acc_norm"]) == 0
    assert result()["rows"][0]["ours"]["equal_scores"] == 1.0
