"""What a run recorded, read from its folder."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from lit_depth.results.run_records import read_run
from tests.helpers.sample_logs import write_run


def test_records_of_masks_on_the_same_samples(tmp_path):
    masks = {"111": {"test/0": 1.0, "test/1": 0.5, "test/2": 0.0}, "101": {"test/2": 1.0, "test/0": 0.25}}
    masks["111"]["test/3"] = masks["101"]["test/3"] = float("nan")
    run = read_run(write_run(tmp_path, "lm_eval_arc", masks | {"bad": {"test/9": 0.0}}))
    records = run.tasks["lm_eval_arc"]
    assert (records.metric, records.masks, records.full_id, records.entry) == ("acc", ["101", "111"], "111", {})
    found = records.of_masks(["111", "101"], ["test/0", "test/7"])
    assert found["111"]["score"].to_dict() == {"test/0": 1.0, "test/2": 0.0}
    assert found["101"]["acc"].to_dict() == {"test/0": 0.25, "test/2": 1.0}
    with pytest.raises(ValueError, match="no records of the mask 110, but of 101, 111: lit-depth compare --active_bl"):
        records.of_masks(["110"], ["test/0"])


def test_samples_that_are_reported_on_come_before_those_that_masks_were_selected_on(tmp_path):
    for role, sample in (("calibration", "train/0"), ("validation", "test/0")):
        write_run(tmp_path, "t", {"11": {sample: 1.0, "both": float(role == "validation")}}, role=role)
    records = read_run(tmp_path).tasks["t"]
    assert records.of_masks(["11"], ["train/0", "test/0"])["11"].index.to_list() == ["both", "test/0"]
    assert set(records.of_masks(["11"], ["train/0"])["11"]["role"]) == {"calibration"}
    assert records.of_masks(["11"], ["both"])["11"]["score"].to_list() == [1.0, 1.0]
    assert records.of_masks(["11"], ["none"])["11"].empty


def test_a_run_whose_lines_were_left_behind_is_read_from_its_table(tmp_path):
    write_run(tmp_path / "run", "t", {})
    for file in (tmp_path / "run" / "records").rglob("*.jsonl"):
        file.unlink()
    frame = pd.DataFrame({"mask": ["11", "10"], "sample": ["a", "a"], "image": ["i", "i"], "score": [1.0, 0.0]})
    both = [frame.assign(task="t", acc=frame["score"]), frame.assign(task="u", em=0.5)]
    pd.concat(both).to_parquet(tmp_path / "run" / "records.parquet")
    tasks = read_run(tmp_path / "run").tasks
    assert list(tasks) == ["t", "u"] and "em" not in tasks["t"].frame
    assert tasks["t"].of_masks(["10"], ["a"])["10"]["acc"].to_list() == [0.0]


def test_what_the_result_says_of_a_task_is_found(tmp_path):
    write_run(tmp_path, "t", {"11": {"a": 1.0}})
    entry = {"task": "t", "baseline": {"beaten": False}, "full": {"quality": 0.5}}
    (tmp_path / "m5_mask_strategy_comparison.json").write_text(json.dumps({"task": "mean", "tasks": [entry]}))
    (tmp_path / "masking_results.json").write_text("[1]")
    assert read_run(tmp_path).tasks["t"].entry == entry
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(ValueError, match="--run: .*search.json: it is no JSON"):
        read_run(tmp_path)


def test_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a run"):
        read_run(tmp_path)
    write_run(tmp_path / "empty", "t", {})
    with pytest.raises(ValueError, match="has no records of answers that were scored"):
        read_run(tmp_path / "empty")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json: it is no JSON"):
        read_run(tmp_path)
    (tmp_path / "manifest.json").write_text('{"arguments": []}')
    with pytest.raises(ValueError, match="manifest.json: expected arguments and model of a run"):
        read_run(tmp_path)
    write_run(tmp_path / "foreign", "t", {"11": {"a": 1.0}})
    manifest = json.loads((tmp_path / "foreign" / "manifest.json").read_text()) | {"run": "another"}
    (tmp_path / "foreign" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="belongs to another run"):
        read_run(tmp_path / "foreign")
