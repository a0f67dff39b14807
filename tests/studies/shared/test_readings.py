"""The same answers read in two ways: against readings by hand, in every command that tells a quality."""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace

import pandas as pd
import pytest

from lit_depth.metrics import ExactMatch, MultipleChoiceAccuracy
from lit_depth.metrics.base import new_metric
from lit_depth.models.prompting import Prompter
from lit_depth.studies.shared.evaluate import Measured
from lit_depth.studies.shared.readings import describe_readings
from lit_depth.studies.shared.scores import Scores
from tests.helpers.commands import run
from tests.helpers.hub_datasets import write_dataset

# what a model writes, and the letter by the strict and by the chat reading of a person
WRITTEN = {
    "A": ("A", "A"),
    "The answer is B.": ("B", "B"),
    "**B**": (None, "B"),
    "Option A": (None, "A"),
    "\\boxed{A}": (None, "A"),
    "A because it is": (None, "A"),
    "I do not know": (None, None),
}


def measured(rows: list[tuple], metric: type = MultipleChoiceAccuracy, also: tuple[str, ...] = ("chat_choice",)):
    columns = ["mask", "sample", "image", "score", "parse_failed", *also, *(f"{name}_parse_failed" for name in also)]
    records = pd.DataFrame(rows, columns=columns).assign(reference_logprob=0.0)
    sweep = SimpleNamespace(records=records, also={name: new_metric(name) for name in also}, metric=metric())
    sweep.metric.max_score = 1.0
    return Measured(SimpleNamespace(metric="multiple_choice"), "validation", Scores.from_records(records), sweep)


def test_both_readings_are_means_over_the_same_samples():
    rows = [
        *[("11", f"{n}", f"{n}", float(n < 1), n > 1, float(n < 3), n == 3) for n in range(4)],
        *[("10", f"{n}", f"{n}", 0.0, True, float(n < 2), n > 1) for n in range(4)],
    ]
    found = describe_readings(measured(rows), 0.95)["readings"]
    assert list(found) == ["multiple_choice", "chat_choice"]
    numbers = {
        (name, mask): (each["quality"], each["parse_failed"]) for name in found for mask, each in found[name].items()
    }
    assert numbers == {
        ("multiple_choice", "11"): (0.25, 0.5),
        ("multiple_choice", "10"): (0.0, 1.0),
        ("chat_choice", "11"): (0.75, 0.25),
        ("chat_choice", "10"): (0.5, 0.5),
    }
    for masks in found.values():
        assert all(each["quality_ci"][0] <= each["quality"] <= each["quality_ci"][1] for each in masks.values())


def test_what_an_earlier_version_recorded_in_part_is_not_told():
    rows = [(mask, "0", "0", 1.0, False, score, False) for mask, score in (("11", 1.0), ("10", None))]
    assert describe_readings(measured(rows), 0.95) == {}


def test_a_metric_with_one_reading_changes_nothing():
    rows = [("11", "0", "0", 1.0, None), ("10", "0", "0", 0.0, None)]
    assert describe_readings(measured(rows, ExactMatch, ()), 0.95) == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset("science_qa_img", tmp_path_factory.mktemp("data") / "science_qa_img", 40)


@pytest.fixture
def chats(monkeypatch):
    """The model writes one of the texts, whatever its tokens say."""

    def decode(self, rows, *_, **__):
        texts = list(WRITTEN)
        return [texts[zlib.crc32(str(row.tolist()).encode()) % len(texts)] for row in rows]

    monkeypatch.setattr(Prompter, "decode", decode)


COMMANDS = {
    "importance": ["--split", "validation"],
    "consistency": [],
    "compare": ["--num_active_blocks", "3", "5", "--num_requests", "0", "--policies", "prefix", "suffix"],
    "search": ["--max_blocks_to_remove", "2", "--beam_width", "1"],
    "select": ["--policies", "prefix", "--num_requests", "2", "--new_tokens", "2"],
    "answers": ["--num_active_blocks", "3", "5"],
}
FILES = {"compare": "m5_mask_strategy_comparison", "select": "selection"}


def arguments(command: str, checkpoint, folder, out) -> list:
    given = [command, "--data.task", "science_qa_img", "--data.path", folder, "--model.checkpoint", checkpoint]
    given += ["--data.num_samples", "16", "--data.calibration_samples", "16", "--trainer.accelerator", "cpu"]
    return [*given, "--output_dir", out, *COMMANDS[command]]


def told(command: str, out) -> list[dict]:
    """The entries of a result that hold readings."""
    result = json.loads((out / command / "default" / f"{FILES.get(command, command)}.json").read_text())
    return result["tasks"] if command == "importance" else result.get("measurements", [result])


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_both_readings(command, small_checkpoint, folder, tmp_path, chats, capsys):
    assert run(arguments(command, small_checkpoint, folder, tmp_path)) == 0
    printed, place = capsys.readouterr().out, tmp_path / command / "default"
    official = "MultipleChoiceAccuracy"
    for entry in told(command, tmp_path):
        readings = entry["readings"]
        assert list(readings) == [official, "chat_choice"]
        split = entry.get("split", "validation") if command == "consistency" else "validation"
        files = sorted((place / "records" / "science_qa_img" / split).glob("rank*.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()[1:]]
        assert lines and {line["prediction"] for line in lines} <= set(WRITTEN)
        for mask in readings[official]:
            here = [line for line in lines if line["mask"] == mask]
            for turn, name in enumerate(readings):
                letters = [WRITTEN[line["prediction"]][turn] for line in here]
                share = sum(letter is None for letter in letters) / len(letters)
                assert readings[name][mask]["parse_failed"] == pytest.approx(share)
            scores = [line.get("chat_choice") for line in here]
            if command == "answers":
                assert set(scores) == {None} and set(readings["chat_choice"][mask]) == {"parse_failed"}
            else:
                assert readings["chat_choice"][mask]["quality"] == pytest.approx(sum(scores) / len(scores))
                # the chat reading finds every letter that the strict one finds
                assert all(line["chat_choice"] >= line["score"] for line in here)
        full = max(readings["chat_choice"], key=lambda mask: mask.count("1"))
        shares = [f"{readings[name][full]['parse_failed']:.1%}" for name in readings]
        assert f"{official} cannot parse {shares[0]} of the answers" in " ".join(printed.split())
        assert f"{shares[1]} not parsed" in printed or f"chat_choice cannot parse {shares[1]}" in printed
    assert "answers in 2 readings" in (place / "report.html").read_text()


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_readings(small_checkpoint, folder, tmp_path, chats):
    assert run(arguments("importance", small_checkpoint, folder, tmp_path / "whole")) == 0
    command = arguments("importance", small_checkpoint, folder, tmp_path / "cut")
    assert run(command) == 0
    place = tmp_path / "cut" / "importance" / "default"
    (place / "importance.json").unlink()
    (records,) = (place / "records" / "science_qa_img" / "validation").glob("rank*.jsonl")
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert run(command) == 0
    whole, cut = (
        (tmp_path / name / "importance" / "default" / "importance.json").read_bytes() for name in ("whole", "cut")
    )
    assert whole == cut


@pytest.mark.slow
def test_the_chat_reading_may_be_the_first(small_checkpoint, folder, tmp_path, chats):
    command = arguments("importance", small_checkpoint, folder, tmp_path)
    assert run([*command, "--data.metric", "chat_choice"]) == 0
    (entry,) = told("importance", tmp_path)
    assert list(entry["readings"]) == ["chat_choice", "multiple_choice"]
    chat, strict = (entry["readings"][name]["111111"] for name in entry["readings"])
    assert chat["quality"] == entry["full"]["quality"] and chat["parse_failed"] < strict["parse_failed"]
