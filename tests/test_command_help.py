"""The short help is read from sources: it has to name what the parser takes, with the parser's defaults."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

from lit_depth.__main__ import at_once
from lit_depth.command_help import group_options, own_options, short_help
from lit_depth.commands import studies

GIVEN = {"self", "trainer", "model", "datamodule"}


def written(default: object) -> str:
    """A default as it is written on the command line."""
    if isinstance(default, (list, tuple)):
        return " ".join(map(str, default))
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def defaults(function) -> dict[str, str]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: written(each.default) for each in parameters if each.name not in GIVEN}


@pytest.mark.parametrize("command", studies())
def test_own_options_are_those_of_the_function(command):
    from lit_depth.trainer import DepthTrainer

    options = own_options(command)
    found = defaults(getattr(DepthTrainer, command))
    assert {option.name: option.default for option in options} == found
    assert all(option.text.endswith(".") for option in options), [o for o in options if not o.text.endswith(".")]


def test_options_of_groups_are_those_of_the_classes():
    from lit_depth.data import DepthDataModule
    from lit_depth.module import DepthModule

    for group, of_class in (("model", DepthModule), ("data", DepthDataModule)):
        assert {o.name for o in group_options(group)} == set(defaults(of_class.__init__)), group


def test_kinds_say_what_to_give():
    kinds = {
        option.name: option.kind for command in ("compare", "export", "importance") for option in own_options(command)
    }
    assert kinds["keep"] == "N..." and kinds["confidence"] == "X" and kinds["weights"] == "{true,false}"
    assert kinds["heal"].startswith("{none,patch") and kinds["split"] == "{train,calibration,validation}"


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_help_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for command in studies():
        lines = short_help(command).splitlines()
        assert [line for line in lines if len(line) > max(int(columns), 112)] == []
    if columns == "80":
        assert len(short_help("compare").splitlines()) <= 80


def test_the_command_s_own_options_come_first():
    lines = short_help("search").splitlines()
    assert lines.index("options of search:") < next(i for i, line in enumerate(lines) if "--model.checkpoint" in line)


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        ([], "usage: lit-depth <command>"),
        (["-h"], "usage: lit-depth <command>"),
        (["--version"], "lit-depth "),
        (["compare", "--help"], "usage: lit-depth compare"),
        (["search", "--keep", "1", "-h"], "usage: lit-depth search"),
    ],
)
def test_answers_that_need_no_import(arguments, begins):
    assert (at_once(arguments) or "").startswith(begins)


@pytest.mark.parametrize("arguments", [["compare"], ["compare", "--help-all"], ["fit", "--help"], ["--config", "x"]])
def test_everything_else_is_run(arguments):
    assert at_once(arguments) is None


@pytest.mark.parametrize(("option", "meant"), [("--verion", "--version"), ("--hlep", "--help")])
def test_a_misspelt_option_without_a_command_gets_the_nearest_name(capsys, option, meant):
    with pytest.raises(SystemExit) as stopped:
        at_once([option])
    assert stopped.value.code == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "meant"), [("comprae", "did you mean compare?"), ("latncy", "latency?"), ("xyz", "lit-depth --help")]
)
def test_a_misspelt_command_gets_the_nearest_name(capsys, command, meant):
    with pytest.raises(SystemExit) as stopped:
        at_once([command, "--name", "x"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: there is no command {command!r}") and meant in error


@pytest.mark.parametrize("arguments", [["compare", "--help"], ["--version"], ["comprae"], ["completion", "bash"]])
def test_they_load_neither_torch_nor_lightning(arguments):
    code = (
        "import json, sys\nfrom lit_depth.__main__ import main\n"
        f"sys.argv = ['lit-depth', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted({'torch', 'lightning', 'transformers', 'pandas'} & set(sys.modules))))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(out.splitlines()[-1]) == []
