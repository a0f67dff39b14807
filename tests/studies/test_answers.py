"""``lit-depth answers``: agreement and flips counted by hand from the records, and no claim of quality."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from lit_depth.metrics import parse_chat_choice, parse_choice
from tests.helpers.commands import run


@pytest.fixture
def withheld(tmp_path):
    rows = [{"id": n, "question": f"what color is shape {n}?"} for n in range(14)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "q.jsonl"


def test_answers_of_questions_without_a_column_of_answers(withheld, checkpoint, tmp_path, capsys):
    shared = ["--data.path", withheld, "--model.checkpoint", checkpoint, "--output_dir", tmp_path / "out"]
    command = ["answers", *shared, "--num_active_blocks", "6", "15", "--submission", "vqav2"]
    assert run(command) == 0
    told = capsys.readouterr()
    assert "no quality is claimed" in told.out and "no column of answers, so nothing is scored" in told.err
    folder = tmp_path / "out/answers/default"
    result = json.loads((folder / "answers.json").read_text())
    records = pd.read_parquet(folder / "records.parquet").pivot(index="sample", columns="mask", values="prediction")
    full = records[result["full"]["mask_id"]]
    # nothing is selected on a half: all are asked, as a file to send in needs them
    assert result["num_samples"] == len(records) == 14
    assert [each["num_active_blocks"] for each in result["masks"]] == [6, 15]
    for entry in result["masks"]:
        flips = int((records[entry["mask_id"]] != full).sum())
        assert entry["num_flips"] == flips and entry["agreement"] == pytest.approx(1 - flips / 14)
        sent = json.loads((folder / "submission" / f"{entry['mask_id']}.json").read_text())
        assert {str(each["question_id"]): each["answer"] for each in sent} == {
            name.rpartition("/")[2]: answer for name, answer in records[entry["mask_id"]].items()
        }
    assert "quality" not in json.dumps(result)
    before = (folder / "answers.json").read_bytes()
    assert run(command) == 0 and (folder / "answers.json").read_bytes() == before


@pytest.mark.slow
def test_of_questions_with_options_both_readings_tell_what_they_cannot_parse(small_checkpoint, tmp_path, capsys):
    rows = [{"question": f"what is {n}?", "options": ["a dog", "a cat"]} for n in range(14)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared = ["--data.path", tmp_path / "q.jsonl", "--model.checkpoint", small_checkpoint]
    assert run(["answers", *shared, "--output_dir", tmp_path / "out", "--num_active_blocks", "3"]) == 0
    folder = tmp_path / "out/answers/default"
    result = json.loads((folder / "answers.json").read_text())
    records = pd.read_parquet(folder / "records.parquet")
    for name, parse in {"multiple_choice": parse_choice, "chat_choice": parse_chat_choice}.items():
        failed = records["prediction"].map(lambda text, parse=parse: parse(text, rows[0]["options"]) is None)
        shares = failed.groupby(records["mask"]).mean().to_dict()
        assert result["readings"][name] == {mask: {"parse_failed": share} for mask, share in shares.items()}
    assert "quality" not in json.dumps(result) and "chat_choice cannot parse" in capsys.readouterr().out


def test_commands_that_score_refuse_them(withheld, tmp_path, capsys):
    assert run(["importance", "--data.path", withheld, "--output_dir", tmp_path / "out"]) == 2
    assert "importance scores answers: expected right ones" in capsys.readouterr().err
    assert run(["answers", "--data.path", withheld, "--policies", "[importance]"]) == 2
    assert "answers does not measure importance" in capsys.readouterr().err
