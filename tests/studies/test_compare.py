"""``lit-depth compare``: what it writes, and that a run is finished once, by whatever number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lit_depth.results.verdicts import refusal
from lit_depth.studies.shared.comparison_schema import validate_comparison
from lit_depth.studies.shared.importance_scores import COMPARISON
from tests.helpers.commands import close, run

SMALL = ["--data.num_samples", "12", "--data.calibration_samples", "8", "--data.batch_size", "8"]
SMALL += ["--num_requests", "1"]
TOKEN_COLUMNS = ("first_difference", "reference_agreement", "accepted")


@pytest.mark.slow
@pytest.mark.parametrize(
    "lists",
    [["--num_active_blocks", "4", "16"], ["--num_active_blocks", "[4,16]"]],
    ids=["as existing scripts", "as LightningCLI"],
)
def test_compare_writes_what_it_promises(checkpoint, tmp_path, capsys, lists):
    arguments = ["compare", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--name", "x", *SMALL, *lists]
    assert run([*arguments, "--num_seeds", "2"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "compare" / "x"
    result = validate_comparison(json.loads((folder / COMPARISON).read_text()))
    assert {s["num_active_blocks"] for s in result["strategies"]} == {4, 16} and len(result["strategies"]) == 10
    assert result["num_samples"] == 12 and result["importance"]["num_samples"] == 8
    figures = {"m5_quality_vs_blocks.png", "m5_latency_vs_blocks.png", "m5_quality_latency_tradeoff.png"}
    assert refusal(result) is not None  # so that no decision is told
    figures |= {"m5_importance.png", "flips_vs_drop.png"}
    assert {path.name for path in (folder / "figures").glob("*.png")} == figures
    assert len(list((folder / "figures").iterdir())) == 3 * len(figures)  # as SVG and PDF too
    assert (folder / "tables" / "compare-strategies.csv").is_file()
    assert all((folder / name).stat().st_size > 0 for name in ("report.html", "manifest.json", "records.parquet"))
    scores = json.loads((folder / "layer_importance_scores.json").read_text())
    assert list(scores) == [str(block_idx) for block_idx in range(16)]
    assert all(str(folder / "figures" / name) in out for name in figures) and "Is depth a scalar?" in out
    assert str(folder / "layer_importance_scores.json") in out
    assert [path.name for path in folder.rglob(".*")] == [".lock"]  # no temporary file left behind


@pytest.mark.slow
def test_compare_takes_index_lists_and_an_importance_file(checkpoint, tmp_path):
    common = ["compare", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL]
    lists = ["--active_block_indices", "0", "5", "10", "--active_block_indices", "1"]
    assert run([*common, "--name", "lists", *lists]) == 0
    result = json.loads((tmp_path / "compare" / "lists" / COMPARISON).read_text())
    assert [s["masks"][0]["active_block_indices"] for s in result["strategies"]] == [[0, 5, 10], [1]]
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({str(i): float(i) for i in range(16)}))
    options = ["--importance", scores, "--policies", "importance", "--num_active_blocks", "3", "--num_requests", "0"]
    assert run([*common, "--name", "file", *options]) == 0
    result = json.loads((tmp_path / "compare" / "file" / COMPARISON).read_text())
    assert result["strategies"][0]["masks"][0]["active_block_indices"] == [13, 14, 15]


@pytest.mark.slow
def test_a_run_is_finished_once_and_not_mixed_with_another(checkpoint, tmp_path, capsys):
    options = ["--policies", "prefix", "--num_active_blocks", "2", "--num_requests", "0"]
    common = ["compare", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL, *options]
    folder = tmp_path / "compare" / "default"
    assert run(common) == 0
    first, records = (folder / COMPARISON).read_bytes(), sorted(folder.rglob("*.jsonl"))
    lines = [path.read_bytes() for path in records]
    assert run(common) == 0
    assert (folder / COMPARISON).read_bytes() == first and [path.read_bytes() for path in records] == lines
    (folder / COMPARISON).unlink()  # killed in the middle: some records are there, the result is not
    records[0].write_bytes(b"".join(lines[0].splitlines(keepends=True)[:7]))
    assert run(common) == 0
    assert close(json.loads((folder / COMPARISON).read_text()), json.loads(first))
    # records of an earlier version, which did not look at tokens: the run goes on, and tells what it knows
    (folder / COMPARISON).unlink()
    head, *older = records[0].read_text().splitlines()
    known = [{k: v for k, v in json.loads(line).items() if k not in TOKEN_COLUMNS} for line in older]
    records[0].write_text("\n".join([head, *map(json.dumps, known[: len(known) // 2])]) + "\n")
    assert run(common) == 0
    resumed, whole = json.loads((folder / COMPARISON).read_text()), json.loads(first)
    told, expected = (each["strategies"][0].pop("agreement") for each in (resumed, whole))
    assert "reference_agreement" not in told and told["flips"] == expected["flips"]
    assert close([each["quality"] for each in resumed["strategies"]], [each["quality"] for each in whole["strategies"]])
    assert run([*common, "--acceptance", "true"]) == 2 and "another acceptance" in capsys.readouterr().err
    assert run([*common, "--num_seeds", "3", "--data.num_samples", "11"]) == 2
    err = capsys.readouterr().err
    assert "holds a run with another num_seeds: there 5, now 3" in err and "--name" in err


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(checkpoint, tmp_path):
    """11 samples over 2 processes: uneven shards, none repeated, merged through the records."""
    options = ["--policies", "prefix", "importance", "--num_active_blocks", "2", "9", "--num_requests", "0"]
    common = ["compare", "--model.checkpoint", str(checkpoint), "--output_dir", str(tmp_path), *SMALL, *options]
    common += ["--data.num_samples", "11", "--data.batch_size", "3", "--acceptance", "true"]
    assert run([*common, "--name", "one"]) == 0
    distributed = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "lit_depth", *common, "--name", "two", *distributed]
    process = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert process.returncode == 0, process.stderr[-2000:]
    folder = tmp_path / "compare" / "two"
    written = (folder / "records" / "shapes_vqa" / "validation").glob("rank*.jsonl")
    shards = [path.read_text().splitlines() for path in sorted(written)]
    one, two = (json.loads((tmp_path / "compare" / name / COMPARISON).read_text()) for name in ("one", "two"))
    assert close(one, two)
    assert all(each["agreement"]["acceptance"] <= 1 for each in one["strategies"])
    num_masks = len({mask["mask_id"] for each in one["strategies"] for mask in (one["full"], *each["masks"])})
    # behind the head: batches 0 and 2, and 1 and 3
    assert [len(shard) for shard in shards] == [1 + 6 * num_masks, 1 + 5 * num_masks]
