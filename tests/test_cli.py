"""The command line as a user meets it: a small real run, and every mistake ends with code 2 and a readable line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from commands import close
from safetensors.torch import load_file, save_file

from lit_depth.cli import main
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks import TASKS, get_task
from lit_depth.models.loading import BUNDLED, new_model
from lit_depth.results.schema import validate_comparison

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RESULT = "m5_mask_strategy_comparison.json"
SMALL = [
    "--data.num_samples",
    "12",
    "--data.calibration_samples",
    "8",
    "--data.batch_size",
    "8",
    "--latency_repeats",
    "1",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained model in the released layout."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model, processor = new_model(str(CONFIGS / "molmoe_shapes"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(arguments, capsys) -> tuple[int, str, str]:
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "lists",
    [["--num_active_blocks", "4", "16"], ["--num_active_blocks", "[4,16]"]],
    ids=["as existing scripts", "as LightningCLI"],
)
def test_compare_writes_what_it_promises(checkpoint, tmp_path, capsys, lists):
    arguments = ["compare", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, "--name", "x", *SMALL, *lists]
    code, out, _ = run([*arguments, "--num_seeds", "2"], capsys)
    assert code == 0
    folder = tmp_path / "compare" / "x"
    result = validate_comparison(json.loads((folder / RESULT).read_text()))
    assert {s["num_active_blocks"] for s in result["strategies"]} == {4, 16} and len(result["strategies"]) == 10
    assert result["num_samples"] == 12 and result["importance"]["num_samples"] == 8
    figures = {"m5_quality_vs_blocks.png", "m5_latency_vs_blocks.png", "m5_quality_latency_tradeoff.png"}
    assert {path.name for path in (folder / "figures").iterdir()} == figures
    assert all((folder / name).stat().st_size > 0 for name in ("report.html", "manifest.json", "records.parquet"))
    scores = json.loads((folder / "layer_importance_scores.json").read_text())
    assert list(scores) == [str(block_idx) for block_idx in range(16)]
    assert all(str(folder / "figures" / name) in out for name in figures) and "Is depth a scalar?" in out
    assert [path.name for path in folder.rglob(".*")] == [".lock"]  # no temporary file left behind


@pytest.mark.slow
def test_compare_takes_index_lists_and_an_importance_file(checkpoint, tmp_path, capsys):
    common = ["compare", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL]
    lists = ["--active_block_indices", "0", "5", "10", "--active_block_indices", "1"]
    code, _, _ = run([*common, "--name", "lists", *lists], capsys)
    assert code == 0
    result = json.loads((tmp_path / "compare" / "lists" / RESULT).read_text())
    assert [s["masks"][0]["active_block_indices"] for s in result["strategies"]] == [[0, 5, 10], [1]]
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({str(i): float(i) for i in range(16)}))
    options = ["--importance", scores, "--policies", "importance", "--num_active_blocks", "3", "--latency_repeats", "0"]
    code, _, _ = run([*common, "--name", "file", *options], capsys)
    assert code == 0
    result = json.loads((tmp_path / "compare" / "file" / RESULT).read_text())
    assert result["strategies"][0]["masks"][0]["active_block_indices"] == [13, 14, 15]


@pytest.mark.slow
def test_a_run_is_finished_once_and_not_mixed_with_another(checkpoint, tmp_path, capsys):
    options = ["--policies", "prefix", "--num_active_blocks", "2", "--latency_repeats", "0"]
    common = ["compare", "--model.checkpoint", checkpoint, "--output_dir", tmp_path, *SMALL, *options]
    folder = tmp_path / "compare" / "default"
    assert run(common, capsys)[0] == 0
    first, records = (folder / RESULT).read_bytes(), sorted(folder.rglob("*.jsonl"))
    lines = [path.read_bytes() for path in records]
    assert run(common, capsys)[0] == 0
    assert (folder / RESULT).read_bytes() == first and [path.read_bytes() for path in records] == lines
    (folder / RESULT).unlink()  # killed in the middle: some records are there, the result is not
    records[0].write_bytes(b"".join(lines[0].splitlines(keepends=True)[:7]))
    assert run(common, capsys)[0] == 0
    assert close(json.loads((folder / RESULT).read_text()), json.loads(first))
    code, _, err = run([*common, "--num_seeds", "3", "--data.num_samples", "11"], capsys)
    assert code == 2 and "holds a run with another num_seeds: there 5, now 3" in err and "--name" in err


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(checkpoint, tmp_path, capsys):
    """11 samples over 2 processes: uneven shards, none repeated, merged through the records."""
    options = ["--policies", "prefix", "importance", "--num_active_blocks", "2", "9", "--latency_repeats", "0"]
    common = ["compare", "--model.checkpoint", str(checkpoint), "--output_dir", str(tmp_path), *SMALL, *options]
    common += ["--data.num_samples", "11", "--data.batch_size", "3"]
    assert run([*common, "--name", "one"], capsys)[0] == 0
    distributed = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "lit_depth", *common, "--name", "two", *distributed]
    process = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert process.returncode == 0, process.stderr[-2000:]
    folder = tmp_path / "compare" / "two"
    written = (folder / "records" / "shapes_vqa" / "validation").glob("rank*.jsonl")
    shards = [path.read_text().splitlines() for path in sorted(written)]
    # behind the head: full and two masks (importance of an untrained model is all ties); batches 0 and 2, and 1 and 3
    assert [len(shard) for shard in shards] == [1 + 6 * 3, 1 + 5 * 3]
    one, two = (json.loads((tmp_path / "compare" / name / RESULT).read_text()) for name in ("one", "two"))
    assert close(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_active_blocks", "0", "4"], r"num_active_blocks must lie in 1..16, got \[0\]"),
        (["--num_active_blocks", "17"], r"1..16, got \[17\]"),
        (["--policies", "prefx"], "policies must be among prefix, importance"),
        (["--active_block_indices", "0", "16"], "16"),
        (["--active_block_indices", "0", "x"], "expected block indices such as 0 5 10, got 'x'"),
        (["--importance", "/nowhere/scores.json"], "expected a JSON file"),
        (["--keep", "0", "1", "2", "--num_active_blocks", "2"], "k"),
        (["--confidence", "1.5"], "expected confidence from 0.5 to 0.9999, given 1.5"),
        (["--output_dir", "/proc/nowhere"], "cannot write to"),
        (["--data.task", "shapes_vqq"], "shapes_vqa"),
        (["--no_such_flag", "1"], "no_such_flag"),
        (["--num_seeds", "three"], "num_seeds: expected an integer, got 'three'"),
        (["--model.phase", "prefil"], "phase.*prefil"),
    ],
)
def test_mistakes_end_with_code_2_and_say_what_to_do(checkpoint, tmp_path, capsys, arguments, message):
    output = [] if "--output_dir" in arguments else ["--output_dir", tmp_path]
    code, _, err = run(["compare", "--model.checkpoint", checkpoint, *output, *SMALL, *arguments], capsys)
    assert code == 2
    assert re.search(message, err), err
    assert "Traceback" not in err and not list(tmp_path.rglob("*.json"))
    assert err.count("\n") <= 2 and "usage:" not in err


def test_missing_and_broken_checkpoints_are_named(checkpoint, tmp_path, capsys):
    code, _, err = run(["compare", "--model.checkpoint", tmp_path / "nowhere"], capsys)
    assert code == 2 and "does not exist" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run(["compare", "--model.checkpoint", tmp_path / "empty"], capsys)
    assert code == 2 and "config.json" in err

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix == ".json":
            (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(checkpoint / "model.safetensors")
    removed = sorted(name for name in weights if "q_norm" in name)
    kept = {name: value for name, value in weights.items() if name not in removed} | {"stray": torch.zeros(1)}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    code, _, err = run(["compare", "--model.checkpoint", broken], capsys)
    assert code == 2 and f"{len(removed)} missing keys" in err and err.count("q_norm") == 5 and err.count("\n") <= 2


def test_processor_geometry_must_fit_the_model(checkpoint, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for path in checkpoint.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    for name in ("preprocessor_config.json", "processor_config.json"):
        text = (
            (other / name).read_text().replace("56", "112").replace('"image_patch_size": 7', '"image_patch_size": 14')
        )
        (other / name).write_text(text)
    code, _, err = run(["compare", "--model.checkpoint", other, "--output_dir", tmp_path, *SMALL], capsys)
    assert code == 2 and "geometry" in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_yaml_fits_the_signatures(path, capsys):
    command = "fit" if path.stem.startswith("train") else path.stem
    code, out, err = run([command, "--config", path, "--print_config"], capsys)
    assert code == 0, err
    assert "checkpoint:" in out


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((CONFIGS / "data").glob("*.yaml")), ids=lambda path: path.name)
def test_every_yaml_of_a_dataset_fits_its_task_behind_that_of_a_command(path, capsys):
    code, out, err = run(
        ["importance", "--config", CONFIGS / "importance.yaml", "--config", path, "--print_config"], capsys
    )
    assert code == 0, err
    data, task = yaml.safe_load(out)["data"], get_task(path.stem)
    assert data["task"]["class_path"] == f"{type(task).__module__}.{type(task).__name__}"
    given = data["task"]["init_args"]
    assert (given["repository"], given["revision"]) == (task.repository, task.revision)
    assert given["config"] == task.config and not given["streaming"] and given["parity"] is None
    module = DepthDataModule(**{**data, "task": type(task)(**given)})
    assert (module.task.splits, module.path, module.batch_size) == (task.splits, None, "auto")


def test_every_dataset_has_a_yaml():
    assert {path.stem for path in (CONFIGS / "data").glob("*.yaml")} == {task.name for task in TASKS} - {"shapes_vqa"}


@pytest.mark.skipif(not (BUNDLED / "model.safetensors").exists(), reason="no bundled checkpoint yet")
def test_the_configuration_to_train_from_is_that_of_the_bundled_checkpoint():
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (CONFIGS / "molmoe_shapes", BUNDLED))
        ours.pop("transformers_version", None), theirs.pop("transformers_version", None)
        assert ours == theirs
