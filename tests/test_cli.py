"""The command line as a user meets it: every mistake ends with code 2 and a readable line."""

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
from safetensors.torch import load_file, save_file

from lit_depth.cli import main
from lit_depth.data import DepthDataModule
from lit_depth.data.hub import HubTask
from lit_depth.data.tasks import TASKS, get_task
from lit_depth.models.loading import new_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = [
    "--data.num_samples",
    "12",
    "--data.calibration_samples",
    "8",
    "--data.batch_size",
    "8",
    "--num_requests",
    "1",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained model in the released layout."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model, processor = new_model("bundled")
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
    ("arguments", "message"),
    [
        (["--num_active_blocks", "0", "4"], r"num_active_blocks must lie in 1..16, got \[0\]"),
        (["--num_active_blocks", "17"], r"1..16, got \[17\]"),
        (["--policies", "prefx"], "policies must be among prefix, importance"),
        (["--active_block_indices", "0", "16"], "16"),
        (["--active_block_indices", "0", "x"], "expected block indices such as 0 5 10, got 'x'"),
        (["--importance", "/nowhere/scores.json"], "expected a JSON file"),
        (["--keep", "0", "1", "2", "--num_active_blocks", "2"], "k"),
        (["--confidence", "1.5"], "expected confidence from 0.5 to 0.9999, got 1.5"),
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
    command = "fit" if path.stem in ("heal", "train_shapes") else path.stem
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
    on_the_hub = {task.name for task in TASKS if issubclass(task, HubTask)}
    assert {path.stem for path in (CONFIGS / "data").glob("*.yaml")} == on_the_hub


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_machines_are_told_nothing_but_the_result(tmp_path, flag):
    """Both streams of a real process: no progress, no table."""
    command = ["importance", "--num_samples", "4", "--output_dir", str(tmp_path), flag]
    command += ["--trainer.logger", "WandbLogger"]
    offline = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "lit_depth", *command], capture_output=True, text=True, check=True, env=offline
    )
    assert done.stderr == ""
    written = json.loads((tmp_path / "importance" / "default" / "importance.json").read_text())
    assert (json.loads(done.stdout) == written) if flag == "--json" else done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["compare", "--polices", "prefix"], "did you mean --policies?"),
        (["compare", "--num_smaples", "4"], "did you mean --data.num_samples?"),
        (["compare", "--model.checkpont=x"], "did you mean --model.checkpoint?"),
        (["compare", "--quiet", "--json"], "expected one of --quiet and --json, got both"),
    ],
)
def test_a_misspelt_option_gets_the_nearest_name(capsys, arguments, meant):
    code, _, err = run(arguments, capsys)
    assert code == 2 and meant in err and err.count("\n") <= 2


def test_a_misspelt_option_in_yaml_gets_the_nearest_name(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("model:\n  checkpont: bundled\n")
    code, _, err = run(["compare", "--config", tmp_path / "run.yaml"], capsys)
    assert code == 2 and "did you mean model.checkpoint?" in err


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_lightnings_loops_tell_the_score_and_where_the_answers_are(tmp_path, capsys, command):
    options = ["--num_samples", 4, "--trainer.default_root_dir", tmp_path]
    code, out, _ = run([command, *options], capsys)
    answers = tmp_path / "results" / command / "answers.jsonl"
    assert code == 0 and "ExactMatch: 4 samples (0 bad), mean " in out and out.endswith(f"written:\n  {answers}\n")
    assert len(answers.read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize("command", ["validate", "test"])
def test_answers_of_lightnings_loops_go_where_they_are_told_to(tmp_path, capsys, command):
    options = ["--num_samples", 4, "--output_dir", tmp_path / "mine", "--trainer.logger", "CSVLogger"]
    code, out, _ = run([command, *options, "--trainer.default_root_dir", tmp_path / "other"], capsys)
    folder = tmp_path / "mine" / command
    assert code == 0 and out.endswith(f"written:\n  {folder / 'answers.jsonl'}\n")
    assert {path.name for path in folder.iterdir()} == {"answers.jsonl", "records", "lightning_logs"}
    assert not (tmp_path / "other").exists()
