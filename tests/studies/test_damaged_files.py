"""Files of an earlier run, or of the user, that are damaged: exit code 2, and two lines that say what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.commands import run

pytestmark = pytest.mark.slow
SMALL = ["--data.num_samples", 6, "--data.calibration_samples", 6, "--data.batch_size", 3]
DAMAGE = {
    "empty": "",
    "null": "null\n",
    "list": "[]\n",
    "half": '{"mask": "11\n',
    "other": '{"arguments": [], "batch_size": "x", "mask": "1", "sample": "a", "score": "high"}\n',
    "deep": '{"a":' * 5000 + "\n",
    "binary": "\xff\x00\x01\n",
}


def importance(folder: Path, checkpoint: Path, *more) -> list:
    return ["importance", "--model.checkpoint", checkpoint, "--output_dir", folder, *SMALL, *more]


@pytest.fixture(scope="module")
def earlier(small_checkpoint, tmp_path_factory) -> Path:
    """The results of a run of importance."""
    folder = tmp_path_factory.mktemp("earlier")
    assert run(importance(folder, small_checkpoint)) == 0
    return folder


def lines_of(capsys) -> list[str]:
    err = capsys.readouterr().err
    assert "Traceback" not in err and "error:" in err, err
    return err[err.rindex("error:") :].strip().splitlines()


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["manifest.json", "records/shapes_vqa/calibration/rank0.jsonl"])
def test_a_damaged_file_of_a_run_says_what_to_do(earlier, small_checkpoint, tmp_path, capsys, name, kind):
    folder = tmp_path / "results"
    shutil.copytree(earlier, folder)
    path = folder / "importance" / "default" / name
    before = path.read_bytes()
    path.write_bytes((DAMAGE[kind].encode("latin-1") + before) if "rank0" in name else DAMAGE[kind].encode("latin-1"))
    code = run(importance(folder, small_checkpoint))
    if code == 0:  # nothing stands before the records
        assert kind == "empty" and "rank0" in name
        return
    lines = lines_of(capsys)
    assert code == 2 and len(lines) <= 2 and str(path) in lines[0]
    assert "delete" in lines[0].lower() and "--name" in lines[0]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["layer_importance_scores.json", "importance.json"])
def test_a_damaged_importance_file_says_what_to_do(earlier, small_checkpoint, tmp_path, capsys, name, kind):
    """``importance.json`` beside the scores tells which questions they were measured on."""
    shutil.copytree(earlier, tmp_path / "results")
    scores = tmp_path / "results" / "importance" / "default" / "layer_importance_scores.json"
    (scores.parent / name).write_bytes(DAMAGE[kind].encode("latin-1"))
    command = ["compare", "--model.checkpoint", small_checkpoint, "--importance", scores, "--output_dir", tmp_path]
    assert run([*command, *SMALL, "--num_active_blocks", 2, "--num_requests", 0]) == 2
    lines = lines_of(capsys)
    assert len(lines) <= 2 and "importance" in lines[0]
    assert name == "layer_importance_scores.json" or "measure again, or move" in lines[0]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("option", ["comparison", "latency"])
def test_damaged_measurements_are_named(small_checkpoint, tmp_path, capsys, option, kind):
    path = tmp_path / "measured.json"
    path.write_bytes(DAMAGE[kind].encode("latin-1"))
    command = ["select", "--model.checkpoint", small_checkpoint, f"--{option}", path, "--output_dir", tmp_path]
    assert run([*command, *SMALL]) == 2
    lines = lines_of(capsys)
    assert len(lines) <= 2 and str(path) in lines[0] and "expected the" in lines[0]


@pytest.mark.parametrize("manifest", ['{"arguments": []}', "null", "{", '{"arguments": {"checkpoint fingerprint": 1}}'])
def test_the_manifest_beside_measurements_may_be_damaged(earlier, small_checkpoint, tmp_path, capsys, manifest):
    rows = [
        {"active_block_indices": list(range(6)), "num_total_blocks": 6, "T_total": 1.0, "num_output_tokens": 2}
    ]  # fmt: skip
    (tmp_path / "latency.json").write_text(json.dumps({"all_samples": rows}))
    (tmp_path / "manifest.json").write_text(manifest)
    command = ["select", "--model.checkpoint", small_checkpoint, "--latency", tmp_path / "latency.json"]
    assert run([*command, "--output_dir", tmp_path, "--new_tokens", 2, *SMALL]) == 2
    lines = lines_of(capsys)
    assert len(lines) <= 2 and "latency" in lines[0]


def test_a_data_folder_without_data_is_named(small_checkpoint, tmp_path, capsys):
    (tmp_path / "validation.parquet").write_bytes(b"no parquet")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path, tmp_path / "empty", tmp_path / "nowhere", tmp_path / "validation.parquet"):
        command = ["importance", "--model.checkpoint", small_checkpoint, "--data.task", "doc_qa", "--data.path", path]
        assert run([*command, "--output_dir", tmp_path / "results"]) == 2
        assert len(lines_of(capsys)) <= 2


def test_more_samples_than_there_are_is_said(small_checkpoint, tmp_path, capsys):
    task = ["--data.task", "lit_depth.data.ShapesVQA", "--data.task.num_images", 4]
    with pytest.warns(UserWarning, match="fewer than the 5,000 asked for"):
        code = run(importance(tmp_path, small_checkpoint, *task, "--num_samples", 5000))
    assert code == 0
