"""Options under the names of earlier versions: every new name is an option, and an old one gives the same run."""

from __future__ import annotations

import inspect

import pytest
import yaml

from lit_depth.option_names import RENAMED, SHORT, current_keys, current_name
from lit_depth.trainer import DepthTrainer
from tests.test_options import make_parser


@pytest.mark.parametrize("command", RENAMED)
def test_new_names_are_options_and_old_ones_are_none(command):
    own = inspect.signature(getattr(DepthTrainer, command)).parameters
    assert set(RENAMED[command].values()) <= own.keys() and not RENAMED[command].keys() & own.keys()


def test_an_old_name_is_told_once_and_read_as_the_new_one(capsys):
    assert current_name("--latency_repeats=3", "compare", ()) == "--num_requests=3"
    assert capsys.readouterr().err == "hint: --latency_repeats is now --num_requests\n"
    assert current_name("--latency_repeats", "search", ()) == "--latency_repeats" and current_name("x", "", ()) == "x"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", SHORT)
def test_short_forms_give_way_to_a_command_s_own_option(name):
    assert current_name(f"--{name}", "compare", ()) == f"--data.{name}"
    assert current_name(f"--{name}", "latency", [name]) == f"--{name}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("latency_repeats: 3\nname: x\n", {"num_requests": 3, "name": "x"}),
        ('{"latency_new_tokens": 3}', {"new_tokens": 3}),
        ("compare:\n  latency_repeats: 3\n", {"compare": {"num_requests": 3}}),
        ("latency:\n  max_new_tokens: 3\nmodel:\n  max_new_tokens: 4\n",)
        + ({"latency": {"new_tokens": 3}, "model": {"max_new_tokens": 4}},),
    ],
)
def test_files_of_options(capsys, content, expected):
    assert yaml.safe_load(current_keys(content)) == expected
    assert " is now " in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["latency_repeats: [", "- latency_repeats", "latency_repeats", "text: latency_repeats"]
)
def test_what_cannot_be_read_and_what_is_a_value_stay(capsys, content):
    assert current_keys(content) == content and capsys.readouterr().err == ""


def test_the_parser_reads_old_names_in_files(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("latency_repeats: 0\nlatency_new_tokens: 7\nmodel:\n  max_new_tokens: 4\n", encoding="utf-8")
    read = make_parser("compare").parse_args(["--config", str(path)])
    assert (read.num_requests, read.new_tokens, read.model.max_new_tokens) == (0, 7, 4)
