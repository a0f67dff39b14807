"""A run knows its model, data and packages: what another one left in its folder is refused, with the reason."""

from __future__ import annotations

import importlib
import json
import linecache
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file

from lit_depth.callbacks import BlockMask
from lit_depth.data import DepthDataModule
from lit_depth.data.tasks.shapes_vqa import ShapesVQA
from lit_depth.models.loading import BUNDLED
from lit_depth.module import DepthModule
from lit_depth.results import store
from lit_depth.studies.shared import identity as identity
from lit_depth.studies.shared import run_folder as studies_run
from lit_depth.studies.shared.identity import check_same_model, differences, model_identity, run_id
from lit_depth.studies.shared.importance_scores import read_importance
from lit_depth.studies.shared.run_folder import open_run
from lit_depth.trainer import DepthTrainer
from tests.helpers.commands import run

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def module() -> DepthModule:
    return DepthModule()


@pytest.fixture
def copied(tmp_path) -> Path:
    shutil.copytree(BUNDLED, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def enter(model: DepthModule, folder: Path, task: Any = "shapes_vqa", trainer: Trainer | None = None, **arguments: Any):
    """Open and close a run, as a command does before and after it measures."""
    data = DepthDataModule(task=task, num_samples=4)
    used = trainer or DepthTrainer(**OPTIONS)
    with open_run(used, model, data, ["validation"], arguments, str(folder), "importance", "a") as found:
        return found.folder, found.arguments


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weight(folder: Path) -> None:
    """The last of the values, which no sample of them sees."""
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[-2] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def restore(folder: Path) -> None:
    shutil.copytree(BUNDLED, folder, dirs_exist_ok=True)


def edit_tokenizer(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][-1]["lstrip"] = not content["added_tokens"][-1]["lstrip"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


CHANGES = {
    "experts per token": (
        lambda folder: edit(folder / "config.json", moe_top_k=1),
        r"model.configuration.text_config.num_experts_per_tok: there 2, now 1",
    ),
    "rotary base": (
        lambda folder: edit(folder / "config.json", rope_theta=500_000),
        r"model.configuration.text_config.rope_parameters.rope_theta: there 10000.0, now 500000",
    ),
    "penalty": (
        lambda folder: edit(folder / "generation_config.json", repetition_penalty=1.5),
        r"model.generation_config.repetition_penalty: there null, now 1.5",
    ),
    "tokenizer": (edit_tokenizer, r"model.processor.tokenizer.vocabulary"),
    "image mean": (
        lambda folder: [edit(folder / name, image_mean=[0.5, 0.5, 0.5]) for name in ("preprocessor_config.json",)],
        r"model.(processor.processor.image_processor.image_mean|files.preprocessor_config.json)",
    ),
    "one weight": (edit_weight, r"model.files.model.safetensors"),
    "a file that only its own code reads": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ 1 }}"),
        r"model.(processor.chat_template|files.chat_template.jinja)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_checkpoint_under_the_same_path_is_refused(copied, tmp_path, change):
    """Configuration, tokenizer, processor, generation configuration, weights: the message names what differs."""
    enter(DepthModule(str(copied)), tmp_path)
    enter(DepthModule(str(copied)), tmp_path)  # the same one is continued
    act, message = CHANGES[change]
    act(copied)
    with pytest.raises(ValueError, match=f"a holds a run with another {message}.*Give another --name, or delete"):
        enter(DepthModule(str(copied)), tmp_path)


@pytest.mark.parametrize(("argument", "value"), [("experts_per_token", 1), ("max_crops", 2)])
def test_other_experts_or_crops_are_another_run(tmp_path, argument, value):
    enter(DepthModule(), tmp_path)
    asked = DepthModule(**{argument: value})
    message = rf"a holds a run with another model\.{argument}: there null, now {value}.*Give another --name, or delete"
    with pytest.raises(ValueError, match=message):
        enter(asked, tmp_path)


def test_a_checkpoint_changes_nothing_by_being_used_or_copied(copied, tmp_path):
    model = DepthModule(str(copied))
    before = model_identity(model)
    (copied / "README.md").write_text("another text")
    shutil.copytree(copied, tmp_path / "copy")
    assert model_identity(DepthModule(str(tmp_path / "copy"))) == before == model_identity(DepthModule())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.lm_head.weight.data[5, 7].add_(1e-3), "model.weights"),
        (lambda model: setattr(model.config.text_config, "num_experts_per_tok", 1), "num_experts_per_tok"),
        (lambda model: model.model.language_model.layers.__delitem__(3), "model.modules"),
    ],
)
def test_a_model_that_was_changed_in_python_is_another(tmp_path, change, message):
    """Its files are the same."""
    enter(DepthModule(), tmp_path)
    model = DepthModule()
    with torch.no_grad():
        change(model.model)
    with pytest.raises(ValueError, match=f"another .*{message}"):
        enter(model, tmp_path)


def test_other_images_are_other_data(module, tmp_path):
    """Same names, questions and answers."""

    class Noise(ShapesVQA):
        def sample(self, row, split, index):
            sample = super().sample(row, split, index)
            content = bytearray(sample.image["bytes"] if isinstance(sample.image, dict) else b"") or b"noise"
            return type(sample)(**{**vars(sample), "image": {"bytes": bytes(content)[:-1], "path": None}})

    enter(module, tmp_path)
    with pytest.raises(ValueError, match="another data fingerprint, shapes_vqa, validation: there .4 samples, "):
        enter(module, tmp_path, task=Noise())


# --- what is in the folder


def test_records_without_a_manifest_are_refused(module, tmp_path):
    for name in (
        "records/shapes_vqa/validation/rank0.jsonl",
        "latency/ab12.jsonl",
        "records/shapes_vqa/validation/batch_size.json",
        "proxy_scores.json",
        "records/0000.json",
    ):
        folder, _ = enter(module, tmp_path / name.replace("/", "_"))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"run": null}\n')
        (folder / "manifest.json").unlink()
        with pytest.raises(ValueError, match=f"a has no manifest.json that says whose {name} is"):
            enter(module, tmp_path / name.replace("/", "_"))
        (folder / name).unlink()
        (folder / "notes.txt").write_text("of the user")
        enter(module, tmp_path / name.replace("/", "_"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "manifest.json cannot be read"),
        ("[" * 100_000, "manifest.json cannot be read"),
        ("[]", "cannot be read .expected an object with arguments"),
        ('{"arguments": []}', "cannot be read .expected an object with arguments"),
        ('{"arguments": {"seed": 1}}', "written by an earlier version, which did not record the model"),
    ],
)
def test_a_manifest_that_says_too_little_is_refused(module, tmp_path, content, message):
    folder, _ = enter(module, tmp_path)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=f"{message}.*Give another --name, or delete the folder"):
        enter(module, tmp_path)
    assert (folder / "manifest.json").read_text() == content


def test_the_manifest_tells_the_run(module, tmp_path):
    folder, arguments = enter(module, tmp_path, seed=3)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert arguments == manifest["arguments"] and arguments["seed"] == 3 and arguments["model.dtype"] == "auto"
    assert manifest["model"] == identity.as_json(model_identity(module))
    assert manifest["model"]["configuration"]["text_config"]["num_experts_per_tok"] == 2
    assert set(manifest["model"]["files"]) >= {"config.json", "tokenizer.json", "model.safetensors"}
    whole = {"arguments": manifest["arguments"], "model": manifest["model"]}
    assert manifest["run"] == run_id(whole) and manifest["history"] == [store.current_versions()]
    assert str(arguments).find("num_experts_per_tok") < 0  # the report shows arguments, not the whole model


def test_a_callback_that_chooses_blocks_is_refused(module, tmp_path):
    trainer = DepthTrainer(callbacks=[BlockMask(skipped_block_indices=[1])], **OPTIONS)
    with pytest.raises(ValueError, match="importance chooses the blocks .* leave the BlockMask out"):
        enter(module, tmp_path, trainer=trainer)
    assert not (tmp_path / "importance").exists()


def test_the_samples_that_the_constant_answer_is_found_on_belong_to_the_run(module, tmp_path):
    def open_with(calibration_samples: int) -> None:
        data = DepthDataModule(num_samples=4, calibration_samples=calibration_samples)
        with open_run(DepthTrainer(**OPTIONS), module, data, ["validation"], {}, str(tmp_path), "importance", "a"):
            pass

    open_with(8)
    open_with(8)
    with pytest.raises(ValueError, match="another constant answer's references, shapes_vqa: there .8 samples, "):
        open_with(16)


TASK = """
from lit_depth.data import ShapesVQA
class Base(ShapesVQA):
    name = "mine"
    def __init__(self): super().__init__(num_images=8)
class Mine(Base):
    def format_answer(self, text): return {text}
"""


def test_the_code_of_a_task_belongs_to_the_run(module, tmp_path, monkeypatch):
    """Of the same name, with the same samples."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "own_task.py"
    for text, message in (("text", None), ("text", None), ("text + 'x'", "another data.tasks, code")):
        path.write_text(TASK.format(text=text))
        sys.modules.pop("own_task", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        task = importlib.import_module("own_task").Mine()
        with nullcontext() if message is None else pytest.raises(ValueError, match=message):
            _, arguments = enter(module, tmp_path, task=task)
    assert list(arguments["data.tasks, code"][0]) == ["own_task.Mine", "own_task.Base"]


# --- versions


@pytest.fixture
def pretend(monkeypatch):
    """Another version of a package from now on; returns the versions before and after."""

    def change(package: str) -> tuple[dict, dict]:
        before = store.current_versions()
        after = before | {package: "99.1"}
        for place in (store, identity, studies_run):
            monkeypatch.setattr(place, "current_versions", lambda: dict(after))
        return before, after

    return change


@pytest.mark.parametrize(
    "package", ["torch", "tokenizers", "pillow", "datasets", "python", "safetensors", "jinja2", "torchmetrics"]
)
def test_other_versions_are_refused_unless_asked_for(module, tmp_path, pretend, package):
    folder, _ = enter(module, tmp_path)
    name = json.loads((folder / "manifest.json").read_text())["run"]
    before, after = pretend(package)
    with pytest.raises(ValueError) as error:
        enter(module, tmp_path)
    assert f"a holds a run made with {package} {before[package]} (now 99.1), which may" in str(error.value)
    assert "--trainer.resume_versions any" in str(error.value)
    enter(module, tmp_path, trainer=DepthTrainer(resume_versions="any", **OPTIONS))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["run"] == name and manifest["history"] == [before, after]
    assert manifest["versions"][package] == "99.1"
    enter(module, tmp_path)  # these are now the run's


def test_under_other_versions_a_model_is_known_by_files_and_weights(copied, tmp_path, pretend):
    """Another version may know more settings; but it is no other model."""
    trainer = DepthTrainer(resume_versions="any", **OPTIONS)
    enter(DepthModule(str(copied)), tmp_path)
    pretend("transformers")
    for change, message in ((edit_weight, "another model.files.model.safetensors"), (restore, None)):
        change(copied)
        model = DepthModule(str(copied))
        model.model.config.new_setting = True
        with nullcontext() if message is None else pytest.raises(ValueError, match=message):
            enter(model, tmp_path, trainer=trainer)


# --- files of other runs


@pytest.mark.parametrize("kind", ["importance", "comparison", "latency"])
def test_a_result_of_another_model_is_refused(module, copied, tmp_path, kind):
    folder, _ = enter(module, tmp_path)
    file = folder / f"{kind}.json"
    file.write_text("{}")
    check_same_model(file, kind, module, {"model.dtype": "auto"})
    with pytest.raises(ValueError, match=rf"{kind}: .* was made with another model.dtype: there \"auto\", here \"x\""):
        check_same_model(file, kind, module, {"model.dtype": "x"})
    edit(copied / "config.json", moe_top_k=1)
    other = DepthModule(str(copied))
    with pytest.raises(
        ValueError, match=rf"{kind}: .* was made with another model.configuration.*Measure it with this model"
    ):
        check_same_model(file, kind, other, {})
    moved = tmp_path / file.name
    shutil.copy(file, moved)
    check_same_model(moved, kind, other, {})
    (folder / "manifest.json").write_text('{"arguments": {}}')
    with pytest.raises(ValueError, match=f"{kind}: .* does not say which model it was made with"):
        check_same_model(file, kind, module, {})


def test_importance_belongs_to_a_model(module, copied, tmp_path):
    folder, _ = enter(module, tmp_path)
    (folder / "layer_importance_scores.json").write_text('{"0": 1}')
    data = DepthDataModule()
    assert read_importance(str(folder / "layer_importance_scores.json"), module, data) == {"0": 1}
    edit(copied / "generation_config.json", repetition_penalty=1.5)
    with pytest.raises(ValueError, match="importance: .* another model.generation_config.repetition_penalty"):
        read_importance(str(folder / "layer_importance_scores.json"), DepthModule(str(copied)), data)


def test_differences_are_named_to_the_last_key():
    there = {"arguments": {"a": {"b": 1}}, "model": {"files": {"x": 1, "y": 2}, "weights": "w"}}
    now = {"arguments": {"a": {"b": 2}}, "model": {"files": {"x": 1, "z": 3}, "weights": "w"}}
    assert list(differences(there, now)) == [
        ("a", {"b": 1}, {"b": 2}),
        ("model.files.z", None, 3),
        ("model.files.y", 2, None),
    ]
    assert list(differences(there, there)) == []


# --- the whole command


@pytest.mark.slow
def test_what_another_run_measured_is_not_taken_over(small_checkpoint, tmp_path, capsys):
    """Records, batch size, times and proxy scores of a run in the folder of another one, file by file."""
    common = ["importance", "--model.checkpoint", small_checkpoint, "--output_dir", tmp_path, "--num_samples", "4"]
    common += ["--methods", "block_influence", "--data.batch_size", "auto"]
    for name, seed in (("a", 0), ("b", 1)):
        assert run([*common, "--name", name, "--data.seed", seed]) == 0
    mine, other = tmp_path / "importance" / "a", tmp_path / "importance" / "b"
    result = (mine / "importance.json").read_bytes()
    files = [
        path.relative_to(other) for path in other.rglob("*") if path.suffix == ".jsonl" or "batch_size" in path.name
    ]
    files += [Path("proxy_scores.json")]
    assert len(files) >= 4
    capsys.readouterr()
    measured = {path: path.read_bytes() for path in mine.rglob("*") if path.relative_to(mine) in files}
    for file in files:
        for path, content in measured.items():  # some of every kind is left to do
            path.write_bytes(b"".join(content.splitlines(True)[:9]) if path.suffix == ".jsonl" else content)
        shutil.copy(other / file, mine / file)
        assert run([*common, "--name", "a"]) == 2, file
        err = capsys.readouterr().err.splitlines()[-1]
        assert f"{file.name} belongs to another run (" in err and "delete it" in err, err
    for path, content in measured.items():
        path.write_bytes(content)
    assert run([*common, "--name", "a"]) == 0 and (mine / "importance.json").read_bytes() == result


@pytest.mark.slow
def test_times_of_another_run_are_not_taken_over(small_checkpoint, tmp_path, capsys):
    common = ["latency", "--model.checkpoint", small_checkpoint, "--output_dir", tmp_path, "--num_samples", "2"]
    common += ["--num_active_blocks", "3", "--new_tokens", "1"]
    for name, seed in (("a", 0), ("b", 1)):
        assert run([*common, "--name", name, "--data.seed", seed]) == 0
    (records,) = (tmp_path / "latency" / "b").rglob("*.jsonl")
    shutil.copy(records, tmp_path / "latency" / "a" / records.relative_to(tmp_path / "latency" / "b"))
    capsys.readouterr()
    assert run([*common, "--name", "a"]) == 2
    assert "rank0.jsonl belongs to another run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_of_tokens_belongs_to_its_run(small_checkpoint, tmp_path, capsys):
    common = ["tokens", "--model.checkpoint", small_checkpoint, "--output_dir", tmp_path]
    for name in ("cat", "dog"):
        assert run([*common, "--name", name, "--prompt", name]) == 0
    shutil.copy(tmp_path / "tokens" / "dog" / "records" / "0000.json", tmp_path / "tokens" / "cat" / "records")
    capsys.readouterr()
    assert run([*common, "--name", "cat", "--prompt", "cat"]) == 2
    assert "0000.json belongs to another run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../a", "", "a/b", ".", "-x", "a\nb", "x" * 101])
@pytest.mark.parametrize("command", ["importance", "tokens"])
def test_a_name_is_checked_before_anything_is_written(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)
    assert run([command, f"--name={name}", "--output_dir", tmp_path / "out"]) == 2
    err = capsys.readouterr().err
    assert "--name: expected the name of one folder" in err and err.count("\n") <= 2
    assert list(tmp_path.iterdir()) == []
