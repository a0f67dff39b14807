"""``lit-depth importance``: its files, and one result however often it is split, killed or repeated."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from lit_depth.data import DepthDataModule
from lit_depth.data.datamodule import BatchShards
from tests.helpers.commands import run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EMPTY = datasets.Dataset.from_dict({"image": []})
SMALL = ["--num_samples", "22", "--data.batch_size", "4"]
# A process that ends itself in the middle of writing a record, by the signal that it is given.
KILLED = """
import os, signal, sys
from lit_depth.cli import main
from lit_depth.results.records import RecordWriter
number, left, write = int(sys.argv[1]), [int(sys.argv[2])], RecordWriter.write
def dying(self, record):
    left[0] -= 1
    if left[0] < 0:
        self._file.write(b'{"mask": "11')
        self._file.flush()
        os.kill(os.getpid(), number)
    write(self, record)
RecordWriter.write = dying
main(sys.argv[3:])
"""


def result_bytes(folder: Path, name: str) -> bytes:
    return (folder / "importance" / name / "importance.json").read_bytes()


@pytest.mark.slow
def test_writes_what_it_promises(checkpoint, tmp_path, capsys):
    common = ["importance", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL]
    assert run([*common, "--skip", "0", "3"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "importance" / "default"
    measured = [str(block_idx) for block_idx in range(16) if block_idx not in (0, 3)]
    scores = json.loads((folder / "layer_importance_scores.json").read_text())
    assert list(scores) == measured
    result = json.loads((folder / "importance.json").read_text())
    (task,) = result["tasks"]
    assert (task["task"], task["num_samples"], task["num_bad_samples"]) == ("shapes_vqa", 22, 0)
    assert scores == {str(entry["block"]): entry["quality"]["drop"] for entry in task["blocks"]}
    assert all(1 <= entry["quality"]["rank_ci"][0] <= entry["quality"]["rank_ci"][1] <= 14 for entry in task["blocks"])
    assert result["macro"] is None and result["split"] == "calibration"
    for name in ("figures/block_importance.png", "report.html", "manifest.json", "records.parquet"):
        assert (folder / name).stat().st_size > 0
    # the untrained model beats no constant answer: that comes first, and no rank is told as a finding
    assert out.strip().startswith("No verdict on shapes_vqa: the full model (")
    assert "least important" not in out and not task["baseline"]["beaten"]
    ranks = [line.split()[-2:] for line in out.splitlines() if line.split()[:1] and line.split()[0] in measured]
    assert ranks == [["-", "-"]] * len(measured)
    page = (folder / "report.html").read_text()
    assert page.index("<p>No verdict on shapes_vqa: ") < page.index("<h2>")
    assert [entry["num_distinct_answers"] > 0 for entry in (task["full"], *task["blocks"])] == [True] * 15
    # the same command again measures nothing, and says the same
    records = (folder / "records" / "shapes_vqa" / "calibration" / "rank0.jsonl").stat().st_mtime_ns
    before = result_bytes(tmp_path, "default")
    assert run([*common, "--skip", "0", "3"]) == 0
    assert result_bytes(tmp_path, "default") == before
    assert (folder / "records" / "shapes_vqa" / "calibration" / "rank0.jsonl").stat().st_mtime_ns == records
    # what compare needs for the blocks without a score
    compare = ["compare", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--data.num_samples", "8"]
    compare += ["--importance", folder / "layer_importance_scores.json", "--policies", "importance"]
    compare += ["--num_active_blocks", "4", "--num_requests", "0"]
    assert run(compare) == 2 and "--keep for blocks [0, 3]" in capsys.readouterr().err
    assert run([*compare, "--keep", "0", "3"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--skip", "16"], "0..15, got [16]"),
        (["--skip", *map(str, range(16))], "no block to measure"),
        (["--split", "test"], "split"),
        (["--num_samples", "0"], "expected num_samples of at least 1, got 0"),
        (["--confidence", "0"], "expected confidence from 0.5 to 0.9999"),
        (["--data.batch_size", "0"], "expected batch_size of at least 1, got 0"),
        (["--data.tasks", "shapes_vqa", "shapes_vqa"], "a name of its own"),
        (["--num_samples", "1"], "at least 2 images"),
    ],
)
def test_mistakes_end_with_code_2(checkpoint, tmp_path, capsys, arguments, message):
    assert run(["importance", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not list(tmp_path.rglob("importance.json"))


@pytest.mark.slow
def test_several_tasks_and_their_mean(checkpoint, tmp_path):
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("data:\n  tasks: [shapes_vqa, {class_path: tests.helpers.commands.SecondShapes}]\n")
    common = ["importance", "--config", tasks, "--model.checkpoint", checkpoint, "--output_dir", tmp_path]
    assert run([*common, *SMALL]) == 0
    folder = tmp_path / "importance" / "default"
    result = json.loads((folder / "importance.json").read_text())
    assert [task["task"] for task in result["tasks"]] == ["shapes_vqa", "second_shapes"]
    by_task = [
        json.loads((folder / f"layer_importance_scores_{name}.json").read_text())
        for name in ("shapes_vqa", "second_shapes")
    ]
    macro = json.loads((folder / "layer_importance_scores.json").read_text())
    for block, value in macro.items():
        assert value == pytest.approx((by_task[0][block] + by_task[1][block]) / 2)
    figures = {path.stem.removeprefix("block_importance_") for path in (folder / "figures").glob("*.png")}
    assert figures == {"shapes_vqa", "second_shapes", "macro", "by_task", "agreement"}
    (pair,) = result["agreement"]
    assert (pair["a"], pair["b"]) == ("shapes_vqa", "second_shapes")


@pytest.mark.slow
def test_one_process_two_processes_and_five_kills_give_the_same_bytes(checkpoint, tmp_path):
    """22 samples in batches of 4: uneven shards of 12 and 10. Bytes of the JSON, log-probabilities included."""
    common = ["importance", "--model.checkpoint", str(checkpoint), "--output_dir", str(tmp_path), *SMALL, "--lens=true"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*arguments: str) -> int:
        return subprocess.run([sys.executable, *arguments], capture_output=True, env=environ, timeout=300).returncode

    assert start("-m", "lit_depth", *common, "--name", "one") == 0
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert start("-m", "lit_depth", *common, "--name", "two", *two) == 0
    moments = random.Random(0).sample(range(5, 70), 5)
    ends_with = {signal.SIGKILL: -9, signal.SIGTERM: 143}
    # each kills after so many more records were written
    for moment, number in zip(moments, [*ends_with, *ends_with, signal.SIGKILL]):
        assert start("-c", KILLED, str(int(number)), str(moment), *common, "--name", "killed") == ends_with[number]
    assert sum(moments) < 17 * 22, "every one of them was killed before the end"
    assert start("-m", "lit_depth", *common, "--name", "killed", *two) == 0
    one = result_bytes(tmp_path, "one")
    (task,) = json.loads(one)["tasks"]
    assert [entry["block"] for entry in task["lens"]] == list(range(16))
    assert task["lens"][-1]["logprob"] == pytest.approx(task["full"]["reference_logprob"], abs=1e-9)
    assert (tmp_path / "importance" / "one" / "figures" / "logit_lens.png").stat().st_size > 0
    assert result_bytes(tmp_path, "two") == one
    assert result_bytes(tmp_path, "killed") == one
    shards = sorted((tmp_path / "importance" / "two" / "records" / "shapes_vqa" / "calibration").glob("rank*.jsonl"))
    assert [len(shard.read_text().splitlines()) for shard in shards] == [1 + 12 * 17, 1 + 10 * 17]


@pytest.mark.slow
def test_automatic_batch_size_is_found_once_and_kept(checkpoint, tmp_path, monkeypatch):
    common = ["importance", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--num_samples", "11"]
    arguments = [*common, "--data.batch_size", "auto", "--model.max_rows", "5"]
    assert run(arguments) == 0
    records = tmp_path / "importance" / "default" / "records" / "shapes_vqa" / "calibration"
    found = records / "batch_size.json"
    assert json.loads(found.read_text())["batch_size"] == 4  # the largest power of two within max_rows
    fixed = [*common, "--data.batch_size", "4", "--model.max_rows", "5", "--name", "fixed"]
    assert run(fixed) == 0
    result = result_bytes(tmp_path, "default")
    assert result == result_bytes(tmp_path, "fixed")
    # a run that goes on keeps its batches: what fits is not looked for again
    (records / "rank0.jsonl").write_bytes(b"".join((records / "rank0.jsonl").read_bytes().splitlines(True)[:30]))
    monkeypatch.setattr("lit_depth.studies.shared.batch_size.find_batch_size", lambda *a: pytest.fail("measured again"))
    assert run(arguments) == 0
    assert result_bytes(tmp_path, "default") == result
    # and a finished one runs no model
    monkeypatch.setattr("lit_depth.module.answer_masks", lambda *a, **k: pytest.fail("the model ran"))
    found.unlink()
    assert run(arguments) == 0


@pytest.mark.slow
def test_an_automatic_batch_size_gives_the_same_bytes_on_one_two_and_three_processes(checkpoint, tmp_path):
    """11 samples make batches of 8 and 3, so that the third process has none."""
    common = ["importance", "--model.checkpoint", str(checkpoint), "--output_dir", str(tmp_path), "--num_samples", "11"]
    for count in (1, 2, 3):
        devices = ["--trainer.accelerator", "cpu", "--trainer.devices", str(count), "--trainer.strategy", "ddp"]
        command = [sys.executable, "-m", "lit_depth", *common, "--data.batch_size", "auto", "--name", str(count)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *(devices if count > 1 else [])], check=True, env=environ, timeout=300)
    records = tmp_path / "importance" / "3" / "records" / "shapes_vqa" / "calibration"
    assert json.loads((records / "batch_size.json").read_text())["batch_size"] == 8
    lines = [len(path.read_text().splitlines()) for path in sorted(records.glob("rank*.jsonl"))]
    assert lines == [1 + 8 * 17, 1 + 3 * 17, 1]
    assert result_bytes(tmp_path, "1") == result_bytes(tmp_path, "2") == result_bytes(tmp_path, "3")


@pytest.mark.slow
def test_scores_measured_on_the_report_split_are_refused(checkpoint, tmp_path, capsys):
    common = ["--model.checkpoint", checkpoint, "--output_dir", tmp_path]
    assert run(["importance", *common, *SMALL, "--split", "validation"]) == 0
    scores = tmp_path / "importance" / "default" / "layer_importance_scores.json"
    assert run(["compare", *common, "--importance", scores]) == 2
    assert "was measured on the validation split of shapes_vqa" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "batch_size", "world"), [(22, 4, 2), (10, 3, 3), (9, 3, 3), (7, 1, 4)])
def test_shards_are_the_same_batches_dealt_out(size, batch_size, world):
    whole = [list(range(start, min(start + batch_size, size))) for start in range(0, size, batch_size)]
    for rank in range(world):
        positions = list(BatchShards(range(size), batch_size, rank, world))
        mine = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
        assert mine == whole[rank::world]


def test_of_more_processes_than_batches_some_have_nothing_to_do():
    data = DepthDataModule(SimpleNamespace(encode=None), batch_size=8, num_samples=16)
    shards = [list(data.eval_dataloader("validation", shard=(rank, 3)).sampler) for rank in range(3)]
    assert shards == [[*range(8)], [*range(8, 16)], [None]]
