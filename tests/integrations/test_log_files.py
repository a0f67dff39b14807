"""Which files of samples are meant, and of which harness each is."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest

from lit_depth.integrations.log_files import read_logs
from tests.helpers.inspect_log import INSPECT_LOG
from tests.helpers.sample_logs import lm_eval_row, lmms_eval_row, write_lm_eval, write_lmms_eval


def rows(score: float = 1.0, number: int = 3) -> list[dict]:
    return [lm_eval_row(doc, {"acc": score}) for doc in range(number)]


def test_in_a_folder_the_newest_of_each_task_is_taken_and_named(tmp_path):
    write_lm_eval(tmp_path / "out" / "m", rows(0.0), "arc")
    new = write_lm_eval(tmp_path / "out" / "m", rows(1.0), "arc", time="2026-01-02T03-04-06.000001")
    other = write_lm_eval(tmp_path / "out" / "m", rows(0.5), "boolq")
    logs, remarks = read_logs([tmp_path / "out"])
    assert sorted(log.path for log in logs) == sorted([new, other])
    assert remarks == [
        f"arc: the newest file was taken, {new.name}; left out: samples_arc_2026-01-02T03-04-05.678901.jsonl."
    ]


def test_every_harness_is_known_by_its_file(tmp_path):
    one = write_lm_eval(tmp_path / "a", rows())
    two = write_lmms_eval(tmp_path / "b", [lmms_eval_row(doc, {"acc": 1.0}) for doc in range(3)])
    packed = tmp_path / "c" / f"{one.name}.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(one.read_bytes()))
    three = tmp_path / "2026-11-28T21-43-04-00-00_sums_GUVQ.eval"
    shutil.copy(INSPECT_LOG, three)
    logs, _ = read_logs([one, two, three, packed])
    assert [log.harness for log in logs] == ["lm_eval", "lmms_eval", "inspect", "lm_eval"]
    assert [log.task for log in logs] == ["sums", "pictures", "sums", "sums"]
    logs, _ = read_logs([tmp_path])
    assert len(logs) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lost"], "lost does not exist"),
        (["empty"], "has no file of samples in it: expected samples_"),
        (["means.json"], "the means of a file of results cannot be paired"),
        (["a", "a"], "is given twice"),
        (["text.jsonl"], "text.jsonl, line 1: expected a JSON object, got 'a text'"),
    ],
)
def test_what_is_refused(names, message, tmp_path):
    write_lm_eval(tmp_path / "a", rows())
    (tmp_path / "empty").mkdir()
    (tmp_path / "means.json").write_text(json.dumps({"results": {}}))
    (tmp_path / "text.jsonl").write_text("a text\n")
    with pytest.raises(ValueError, match=message):
        read_logs([tmp_path / name for name in names])
