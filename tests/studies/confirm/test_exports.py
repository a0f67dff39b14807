"""Which models some logs are of, and their masks; `tests/tools/test_ingest.py` has the refusals of the command."""

from __future__ import annotations

import json

import pytest

from lit_depth.results.run_records import read_run
from lit_depth.studies.confirm.exports import exports_of, logs_of_whole, read_certificate
from tests.helpers.sample_logs import log_of, write_run


def test_the_mask_is_that_of_the_certificate_in_the_folder_that_the_log_names(tmp_path):
    for name, mask, more in (("a", "10", {}), ("b", "01", {"healing": {}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "certificate.json").write_text(json.dumps({"mask_id": mask, **more}))
    logs = [log_of(tmp_path / "logs" / name, {0: 1.0}, model=str(tmp_path / name)) for name in "abc"]
    logs.insert(1, log_of(tmp_path / "logs" / "a2", {0: 1.0}, model=str(tmp_path / "a"), task="other"))
    found = exports_of(logs, None, None, None, None)
    assert [(each.name, each.mask, each.is_healed, len(each.logs)) for each in found] == [
        ("a", "10", False, 2),
        ("b", "01", True, 1),
        ("c", None, False, 1),
    ]
    run = read_run(write_run(tmp_path / "run", "t", {"11": {"a": 1.0}}))
    with pytest.raises(ValueError, match=r"expected the blocks that were removed, .*/c has no certificate.json"):
        exports_of(logs, None, None, None, run)
    assert [each.mask for each in exports_of(logs, None, [[1], [0], [0]], None, run)] == ["10", "01", "01"]
    assert [each.mask for each in exports_of(logs, ["1110", "01", "11"], None, None, None)] == ["1110", "01", "11"]


@pytest.mark.parametrize("content", ["{", '{"mask_id": null}', '{"mask_id": "00"}', "[]"])
def test_a_damaged_certificate_is_named(content, tmp_path):
    (tmp_path / "certificate.json").write_text(content)
    with pytest.raises(ValueError, match="certificate.json"):
        read_certificate(tmp_path)


def test_a_copy_of_the_exported_models_file_is_no_whole_model(tmp_path):
    logs = [log_of(tmp_path / name, {0: 1.0}, model=model) for name, model in (("a", "x"), ("b", "x"), ("c", "y"))]
    with pytest.raises(ValueError, match="holds the same as"):
        logs_of_whole([logs[1]], [logs[0]])
    # another model may answer alike
    assert logs_of_whole([logs[2]], [logs[0]]) == {("lm_eval", "sums"): logs[2]}
    assert logs_of_whole([], [logs[0]]) == {}
