"""Logs of Inspect; ``inspect_sums.eval`` is one that inspect_ai 0.3.285 wrote with its mock model."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from lit_depth.integrations.inspect_logs import is_inspect_log, read_inspect_log
from tests.helpers.inspect_log import INSPECT_LOG, parts_of, write_eval, write_json_log
from tests.helpers.junk import with_junk


def test_a_log_as_inspect_wrote_it_is_packed_by_zstandard_and_read():
    assert {info.compress_type for info in zipfile.ZipFile(INSPECT_LOG).infolist()} == {93}
    log = read_inspect_log(INSPECT_LOG)
    assert (log.harness, log.task, log.model) == ("inspect", "sums", "mockllm/model")
    # C C I C and C I C C in two epochs
    assert [each.values["match"] for each in log.samples.values()] == [1.0, 0.5, 0.5, 1.0]
    assert list(log.samples) == ["q0", "q1", "q2", "q3"] and log.metrics == ["match", "includes"]
    assert [each.cluster for each in log.samples.values()] == ["i0", "i0", "i1", "i1"]
    # Inspect's own mean over samples of the mean over epochs
    assert log.means == {"match": 0.75, "includes": 0.75} and log.means_over_samples("match")
    assert "2 epochs were averaged" in log.remarks[0]
    assert log.samples["q1"].asked == ("What is 1 and 1?", '"2"')


def test_the_other_formats_of_the_same_log_say_the_same(tmp_path):
    header, samples = parts_of(INSPECT_LOG)
    read = read_inspect_log(INSPECT_LOG)
    for path in (
        write_json_log(tmp_path / "log.json", header, samples),
        write_eval(tmp_path / "log.eval", header, samples),
    ):
        assert is_inspect_log(path)
        again = read_inspect_log(path)
        assert (again.samples, again.means, again.binding) == (read.samples, read.means, read.binding)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("C", 1.0), ("P", 0.5), ("I", 0.0), ("N", 0.0), (True, 1.0), ("yes", 1.0), ("0.25", 0.25), (3, 3.0)],
)
def test_scores_are_numbers_as_inspect_makes_them(value, expected, tmp_path):
    header, samples = parts_of(INSPECT_LOG)
    one = {**samples[0], "scores": {"judge": {"value": value}}}
    assert read_inspect_log(write_json_log(tmp_path / "a.json", header, [one])).samples["q0"].values == {
        "judge": expected
    }


def test_several_values_of_a_scorer_are_several_metrics_and_words_are_refused(tmp_path):
    header, samples = parts_of(INSPECT_LOG)
    values = {"right": 1, "parts": {"a": 0.5, "b": "I"}, "word": "blue", "list": [1], "none": None}
    scores = {name: {"value": value, "answer": "4"} for name, value in values.items()}
    log = read_inspect_log(write_json_log(tmp_path / "a.json", header, [{**samples[0], "scores": scores}]))
    assert log.samples["q0"].values == {"right": 1.0, "parts.a": 0.5, "parts.b": 0.0}
    assert log.refused == {"word": "a text at sample q0", "list": "a list at sample q0"}
    assert log.samples["q0"].answer == "4" and log.remarks == ()


def test_messages_are_asked_by_their_words(tmp_path):
    header, samples = parts_of(INSPECT_LOG)
    logs = []
    for name in ("x", "y"):
        content = [{"type": "image", "image": "attachment://1"}, {"type": "text", "text": "What is it?"}]
        one = {**samples[0], "input": [{"id": name, "role": "user", "content": content}], "choices": ["a", "b"]}
        logs.append(read_inspect_log(write_json_log(tmp_path / f"{name}.json", header, [one])))
    assert logs[0].samples == logs[1].samples and logs[0].samples["q0"].asked[0].split("\n")[1:] == [
        "What is it?",
        "a",
        "b",
    ]


def test_what_is_refused(tmp_path):
    header, samples = parts_of(INSPECT_LOG)
    cases = {
        "status 'error'": ({**header, "status": "error"}, samples),
        "sample q0 stands there twice in epoch 1": (header, [samples[0], samples[0]]),
        "there are no samples in it": (header, []),
        "expected a log of Inspect, with 'eval'": ({**header, "eval": []}, samples),
    }
    for number, (message, (about, rows)) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=message):
            read_inspect_log(write_json_log(tmp_path / f"{number}.json", about, rows))
    cut = tmp_path / "cut.eval"
    cut.write_bytes(INSPECT_LOG.read_bytes()[:-4000])
    assert not is_inspect_log(cut)
    damaged = tmp_path / "damaged.eval"
    content = bytearray(INSPECT_LOG.read_bytes())
    place = content.index(b"samples/q0_epoch_1.json") + 60
    content[place : place + 40] = b"x" * 40
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match="samples/q0_epoch_1.json in it cannot be read"):
        read_inspect_log(damaged)
    other = tmp_path / "other.eval"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.json", "{}")
    with pytest.raises(ValueError, match="with header.json in it"):
        read_inspect_log(other)


def test_samples_that_were_taken_out_of_a_log_are_missed(tmp_path):
    header, samples = parts_of(INSPECT_LOG)
    with pytest.raises(ValueError, match="expected 8 samples over all epochs, as its results say, got 7"):
        read_inspect_log(write_eval(tmp_path / "a.eval", header, samples[1:]))


def test_other_json_is_no_log(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"results": {}}))
    assert not is_inspect_log(tmp_path / "a.json")


def test_junk_anywhere_is_read_or_refused_in_words(tmp_path):
    header, samples = parts_of(INSPECT_LOG)
    kept = ("id", "epoch", "input", "target", "choices", "output", "scores", "metadata")
    about = {key: header[key] for key in ("status", "plan", "results")}
    about["eval"] = {key: value for key, value in header["eval"].items() if key != "model_args"} | {"model_args": {}}
    content = {**about, "samples": [{key: each.get(key) for key in kept} for each in samples[:2]]}
    outcomes = set()
    for where, changed in with_junk(content, 4):
        path = tmp_path / "log.json"
        path.write_text(json.dumps(changed))
        try:
            log = read_inspect_log(path)
            assert all(isinstance(each, float) for sample in log.samples.values() for each in sample.values.values())
            outcomes.add(True)
        except ValueError as error:
            assert str(path) in str(error), where
            outcomes.add(False)
    assert outcomes == {True, False}
