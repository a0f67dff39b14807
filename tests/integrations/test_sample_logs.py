"""What is read of files of samples, whichever harness wrote them: JSON lines, and metrics that are numbers."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from lit_depth.integrations.sample_logs import LoggedSample, SampleLog, Values, cluster_of, json_lines


def log_of(values: dict[str, float], **more) -> SampleLog:
    samples = {name: LoggedSample(("", ""), None, None, None, {"acc": value}) for name, value in values.items()}
    return SampleLog(Path("log"), "lm_eval", "task", "model", samples, **more)


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_lines_are_read_with_any_end_and_packed(end, tmp_path):
    text = end.join(['{"doc_id": 0, "text": "a\u2028b"}', "", '{"doc_id": "x"}']) if end else '{"doc_id": 0}'
    expected = [(1, 0), (3, "x")] if end else [(1, 0)]
    (tmp_path / "plain").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "packed").write_bytes(gzip.compress(text.encode()))
    for name in ("plain", "packed"):
        assert [(number, row["doc_id"]) for number, row in json_lines(tmp_path / name)] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"doc_id": 0}\n{"doc_id": 1, "ac', "line 2: the last line is cut off after 17 bytes"),
        (b'{"doc_id": 0}\nno json\n{"doc_id": 1}\n', "line 2: expected a JSON object, got 'no json'"),
        (b'{"id": 0}\n', "line 1: expected a sample of lm-eval or lmms-eval"),
        (b"[1]\n", "line 1: expected a sample"),
        (b"[" * 100_000 + b"\n", "line 1: expected a JSON object"),
        (b'{"doc_id": null}\n', "line 1: expected a sample"),
        (b"PK\x03\x04\xff\xfe\n", "line 1: expected a JSON object"),
        (gzip.compress(b'{"doc_id": 0}\n' * 99, mtime=0)[:-9], "cannot be read"),
    ],
)
def test_what_is_no_file_of_samples(content, message, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        list(json_lines(path))
    assert str(path) in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize("value", [None, [1.0], "C", "0.5", {"score": 1}, math.nan, math.inf])
def test_a_metric_that_is_no_number_once_is_refused_as_a_whole(value):
    values = Values()
    for sample, found in (("0", 1.0), ("1", value), ("2", 0)):
        values.add(sample, "acc", found)
        values.add(sample, "other", 0.25)
    assert list(values.refused) == ["acc"] and values.refused["acc"].endswith("at sample 1")
    assert [values.of(sample) for sample in "0129"] == [{"other": 0.25}] * 3 + [{}]


def test_the_harnesses_own_mean_is_compared():
    assert log_of({"0": 1.0, "1": 0.0}).means_over_samples("acc")  # nothing is known against it
    assert log_of({"0": 1.0, "1": 0.0}, means={"acc": 0.5}).means_over_samples("acc")
    assert not log_of({"0": 1.0, "1": 0.0}, means={"acc": 50.0}).means_over_samples("acc")


def test_an_image_is_named_by_a_text_or_a_number_alone():
    assert cluster_of({"image": {"path": "a.png"}, "image_path": "b.png"}) == "b.png"
    assert cluster_of(None, {"image_id": 3}) == "3" and cluster_of({"question": "?"}) is None
