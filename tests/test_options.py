"""Options as a user gives them: text stays text, wrong values are named in plain words, and nothing hangs."""

from __future__ import annotations

import functools
import json
import re

import pytest

from lit_depth import commands
from lit_depth.cli import DepthCLI
from lit_depth.data import DepthDataModule, ShapesVQA
from lit_depth.data.tasks.mmmu import MMMU
from lit_depth.module import DepthModule
from lit_depth.options import OptionParser, takes_text
from lit_depth.trainer import DepthTrainer
from tests.helpers.commands import run


class ParsingCLI(DepthCLI):
    """Parses, and runs nothing."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def replace(monkeypatch, command, function):
    """Let another function run in the place of a command's, under its signature."""
    monkeypatch.setattr(DepthTrainer, command, functools.wraps(getattr(DepthTrainer, command))(function))


def make_parser(command: str) -> OptionParser:
    made = ParsingCLI(
        DepthModule,
        DepthDataModule,
        trainer_class=DepthTrainer,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        args=[command],
        command=command,
    )
    return made._subcommand_parsers[command]


@pytest.fixture(scope="module")
def parsers() -> dict[str, OptionParser]:
    return {command: make_parser(command) for command in commands.studies()}


def text_options(parser: OptionParser) -> list[str]:
    hints = {action.option_strings[0]: getattr(action, "_typehint", None) for action in parser._actions}
    return [option for option, hint in hints.items() if option.startswith("--") and hint and takes_text(hint)]


LITERAL = ["null", "none", "~", "true", "1e3", "# x", "[1, 2", "{a: b}", "'quoted'", "- x", " spaced ", "", "*alias"]
LITERAL += ["9" * 5000, "!!python/name:os.system", "a: b", "[" * 300, "é", "%"]


@pytest.mark.parametrize("command", commands.studies())
def test_text_on_the_command_line_is_taken_literally(parsers, command):
    """Every option whose type is text, found by its type."""
    options = text_options(parsers[command])
    assert {"--name", "--output_dir", "--model.checkpoint", "--data.path"} <= set(options)
    for text in LITERAL:
        config = parsers[command].parse_args([f"{option}={text}" for option in options])
        assert {option: config[option[2:]] for option in options} == dict.fromkeys(options, text)


def test_the_options_of_tokens_are_text(parsers):
    assert {"--prompt", "--prompt_file", "--prompts", "--image", "--device"} <= set(text_options(parsers["tokens"]))
    assert "--importance" in text_options(parsers["compare"]) and "--data.task" not in text_options(parsers["compare"])


@pytest.mark.parametrize(
    ("written", "read"),
    [("null", None), ("~", None), ('"null"', "null"), ('"# x"', "# x"), ("'true'", "true"), ("a", "a")],
)
def test_yaml_files_keep_the_meaning_of_yaml(parsers, tmp_path, written, read):
    path = tmp_path / "options.yaml"
    path.write_text(f"prompt: {written}\n")
    assert parsers["tokens"].parse_args(["--config", str(path)])["prompt"] == read


def test_prompts_reach_the_command(monkeypatch):
    given = []
    replace(monkeypatch, "tokens", lambda trainer, *, prompt, **_: given.append(prompt))
    for text in ("null", "none", "true", "1e3", "# x"):
        assert run(["tokens", "--prompt", text]) == 0
    assert given == ["null", "none", "true", "1e3", "# x"]


WRONG = [
    (["--trainer.devices", "-1"], "--trainer: no Trainer can be made of these options"),
    (["--trainer.devices", "abc"], "--trainer: no Trainer can be made of these options"),
    (["--trainer.num_nodes", "0"], "--trainer: no Trainer .*num_nodes.* got 0"),
    (["--trainer.strategy", "nope"], "--trainer: no Trainer .*strategy='nope'"),
    (["--trainer.accelerator", "nope"], "--trainer: no Trainer .*accelerator='nope'"),
    (["--seed_everything", "-1"], "--seed_everything: -1 is not in bounds, numpy accepts from 0 to 4294967295"),
    (["--trainer.callbacks", "EarlyStopping"], "--trainer.callbacks: .*required: monitor"),
    (
        ["--trainer.callbacks", '{"class_path": "EarlyStopping", "init_args": {"monitor": 3}}'],
        "--trainer.callbacks: argument monitor: expected text, got 3",
    ),
    (
        ["--trainer.callbacks", "lit_depth.callbacks.BlockMask"],
        "--trainer.callbacks: expected exactly one of active_block_indices and skipped_block_indices, got neither\n",
    ),
    (["--model.max_new_tokens", "-1"], "expected max_new_tokens from 1 to 1048576, got -1"),
    (["--model.max_new_tokens", "0"], "expected max_new_tokens from 1"),
    (["--model.max_new_tokens", "9" * 400], "--model.max_new_tokens: expected a finite number of at most 64 bits"),
    (["--model.max_new_tokens", "512"], "expected max_new_tokens below the model's context of 512 tokens"),
    (["--model.max_rows", "0"], "expected max_rows of at least 1, got 0"),
    (["--model.max_rows", "-1"], "expected max_rows of at least 1, got -1"),
    (["--model.learning_rate", ".nan"], "--model.learning_rate: expected a finite number"),
    (["--model.learning_rate", "9" * 400], "--model.learning_rate: expected a number"),
    (["--active_block_indices", "²"], "expected block indices such as 0 5 10, got '²'"),
    (["--active_block_indices", "9" * 400], "expected block indices such as 0 5 10"),
    (["--num_requests", "-1"], "expected num_requests of at least 0, got -1"),
    (["--num_seeds", "9" * 18], "expected num_seeds from 1 to 1000"),
    (["--num_seeds", "true"], "--num_seeds: expected an integer, got 'true'"),
    (["--num_seeds", "1.5"], "--num_seeds: expected an integer, got '1.5'"),
    (["--confidence", "1e-300"], "expected confidence from 0.5 to 0.9999, got 1e-300"),
    (["--confidence", "9" * 5000], "--confidence: expected"),
    (["--num_active_blocks", "1.5"], "--num_active_blocks: expected a list of integers or null"),
    (["--data.batch_size", "x"], "--data.batch_size: expected an integer or auto, got 'x'"),
    (["--data.num_samples", "0"], "expected num_samples of at least 1, got 0"),
    (["--data.seed", "9" * 19], "--data.seed: expected a finite number of at most 64 bits"),
    (["--data.num_workers", "-1"], "expected num_workers from 0 to 256, got -1"),
    (["--model.betas", "1"], "--model.betas: expected a list of 2 numbers, got '1'"),
    (["--model.betas", "[2, 2]"], "expected betas from 0 to 1, got 2.0"),
    (["--model.phase", "prefil"], "--model.phase: expected both, prefill or decode, got 'prefil'"),
    (["--trainer.logger", "Nope"], "--trainer.logger: expected a Logger class"),
    (["--trainer.callbacks", "a.b.C"], r"expected .* a Callback class or null, got 'a.b.C' \(No module named 'a'\)"),
    (["--config", "/nowhere.yaml"], "--config: File does not exist"),
    (["--config", "[1]"], "--config"),
    (["--trainer.limit_predict_batches", "1"], "expected all batches to be evaluated, got .*limit_predict_batches 1"),
    (["--trainer.limit_predict_batches", "0.5"], "expected all batches to be evaluated, got .* 0.5"),
    (["--trainer.fast_dev_run", "true"], r"expected all batches .*\(fast_dev_run sets it too\): .*--data.num_samples"),
    (["--data.task", "shapes_vqq"], "an unknown task; did you mean shapes_vqa"),
    (["--data.task", "a.b.Task"], "expected the class path of a task, got 'a.b.Task': .*No module named 'a'"),
    (["--data.task", "os.system"], "expected the class path of a lit_depth.data.Task"),
    (["--data.task", "lit_depth.data.Task"], "expected a task with name, metric, max_new_tokens"),
    (["--data.task", "lit_depth.data.hub.HubTask"], "expected a task that can be made without arguments"),
    (["--data.task", "shapes_vqa", "--data.task.num_images", "5"], "expected a class before its arguments"),
    (["--data.task", "lit_depth.data.ShapesVQA", "--data.task.num_images", "x"], "num_images: expected an integer"),
    (["--data.task", "lit_depth.data.ShapesVQA", "--data.task.nope", "x"], "'nope' is not accepted"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(pair[0])[:50] for pair in WRONG])
def test_wrong_values_end_with_code_2_and_two_lines(tmp_path, capsys, arguments, message):
    assert run(["compare", "--output_dir", tmp_path, *arguments]) == 2
    err = capsys.readouterr().err
    text = err[err.index("error:") :]
    assert re.search(message, text), text
    assert text.count("\n") <= 2 and len(text) < 600
    assert "Traceback" not in err and "Union" not in err and "<class" not in err


VALUES = ["", "x", "-1", "1.5", "1e400", "9" * 400, "9" * 5000, "null", "[]", "[[1]]", '{"a": {"b": 1}}', "²", "[null]"]
VALUES += ["[" * 300, "&a [*a]", "\x01", "!!python/name:os.system"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare", "tokens", "select"])
def test_no_value_of_any_option_is_more_than_two_lines(parsers, command, capsys):
    """Taken, or refused in plain words: whatever the option's type and the value."""
    parser = parsers[command]
    skipped = ("trainer.", "model.", "data.") if command != "compare" else ("trainer.",)
    for action in parser._actions:
        if not hasattr(action, "_typehint") or action.dest.startswith(skipped) or action.dest.endswith(".help"):
            continue
        for value in VALUES:
            try:
                parser.parse_args([f"{action.option_strings[0]}={value}"])
            except SystemExit as ending:
                err = capsys.readouterr().err
                assert ending.code == 2 and err.count("\n") == 2 and len(err) < 500, (action.dest, value, err)
                assert re.search(f"--{action.dest}: expected|is not accepted", err) and "<class" not in err, (
                    action.dest,
                    value,
                    err,
                )


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij")
)
DEEP = {"yaml": "[" * 5000 + "]" * 5000, "json": '{"a":' * 5000 + "1" + "}" * 5000}
FILES = {
    "bomb": BOMB,
    "deep yaml": DEEP["yaml"],
    "deep json": DEEP["json"],
    "itself": "&a [*a]",
    "no date": "- 2020-13-45",
}


@pytest.mark.parametrize("option", ["--config", "--prompts"])
@pytest.mark.parametrize("name", FILES)
def test_hostile_yaml_ends(tmp_path, capsys, option, name):
    """A few lines that stand for a billion values, or overflow the stack of whoever reads them."""
    path = tmp_path / "hostile.yaml"
    path.write_text(FILES[name])
    assert run(["tokens", option, path, "--output_dir", tmp_path]) == 2
    err = capsys.readouterr().err
    assert err[err.index("error:") :].count("\n") <= 2 and len(err) < 800


def test_deep_json_as_importance_is_an_error_of_one_line(tmp_path, capsys):
    path = tmp_path / "scores.json"
    path.write_text(DEEP["json"])
    assert run(["compare", "--importance", path, "--output_dir", tmp_path]) == 2
    assert "nested too deeply" in capsys.readouterr().err


def test_what_nobody_expected_ends_with_code_1_and_one_line(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("boom\nin two lines")

    replace(monkeypatch, "tokens", fail)
    assert run(["tokens"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "internal error: RuntimeError: boom in two lines; run again with --debug"
    )
    with pytest.raises(RuntimeError, match="boom"):
        run(["tokens", "--debug"])


class Given(ShapesVQA):
    """A task of somebody else's."""

    name = "given"

    def __init__(self, num_images: int = 20) -> None:
        super().__init__(num_images=num_images, seed=3)


PATH = f"{__name__}.Given"


@pytest.fixture
def tasks_given(monkeypatch):
    """Tasks of the datamodule that a command gets."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    found = []
    replace(monkeypatch, "importance", lambda trainer, *, datamodule, **_: found.extend(datamodule.tasks))
    return found


@pytest.mark.parametrize(
    ("arguments", "kinds", "num_images"),
    [
        (["--data.task", PATH], ["given"], 20),
        (["--data.task", PATH, "--data.task.num_images", "30"], ["given"], 30),
        (["--data.task", PATH, "--data.task.init_args.num_images", "30"], ["given"], 30),
        (["--data.task.class_path", PATH, "--data.task.init_args.num_images", "30"], ["given"], 30),
        (["--data.task", json.dumps({"class_path": PATH, "init_args": {"num_images": 30}})], ["given"], 30),
        (["--data.tasks", PATH, "shapes_vqa"], ["given", "shapes_vqa"], 20),
        (["--data.task", "lit_depth.data.ShapesVQA"], ["shapes_vqa"], None),
        (["--data.task", "ShapesVQA"], ["shapes_vqa"], None),
    ],
    ids=str,
)
def test_tasks_by_class_path(tasks_given, arguments, kinds, num_images):
    assert run(["importance", *arguments]) == 0
    assert [task.name for task in tasks_given] == kinds
    assert num_images is None or tasks_given[0].num_images == num_images


@pytest.mark.parametrize(
    ("text", "kinds", "num_images"),
    [
        (f"data:\n  task: {PATH}\n", ["given"], 20),
        (f"data:\n  task:\n    class_path: {PATH}\n    init_args: {{num_images: 30}}\n", ["given"], 30),
        (f"data:\n  tasks:\n  - {PATH}\n  - class_path: lit_depth.data.ShapesVQA\n", ["given", "shapes_vqa"], 20),
    ],
)
def test_tasks_by_class_path_in_yaml(tasks_given, tmp_path, text, kinds, num_images):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    assert run(["importance", "--config", path]) == 0
    assert [task.name for task in tasks_given] == kinds and tasks_given[0].num_images == num_images


def test_a_task_by_name_of_its_class():
    assert type(DepthDataModule(task="MMMU").task) is MMMU
