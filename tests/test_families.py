"""Every command scores every family of docs/families.md, on a checkpoint with the family's own processor."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import logging

from tests.helpers.families import FAMILIES
from tests.helpers.family_commands import (
    COMMANDS,
    PACKAGES,
    README,
    arguments,
    outcomes,
    row,
    short,
    some_outcomes,
    table,
    with_packages,
)

logging.disable_progress_bar()
PLAIN = [name for name, family in FAMILIES.items() if not family.needs]
NEEDING = [name for name, family in FAMILIES.items() if family.needs]
TABLE = table()


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_commands_and_laws_say_of_a_family_what_the_table_says(name):
    said = some_outcomes(name)
    assert row(FAMILIES[name], said) == TABLE[name], said


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PLAIN)
def test_every_command_and_law_says_of_a_family_what_the_table_says(name):
    said = outcomes(name)
    assert row(FAMILIES[name], said) == TABLE[name], said


@pytest.mark.slow
@pytest.mark.parametrize("found_by", [some_outcomes, pytest.param(outcomes, marks=pytest.mark.exhaustive)])
def test_families_whose_processors_need_packages_are_scored_with_them(found_by):
    if not PACKAGES.is_dir():
        for package in {package for name in NEEDING for package in FAMILIES[name].needs}:
            pytest.importorskip(package, reason="`make venv` puts the packages of the extra vision beside .venv's own")
    found = with_packages(found_by, NEEDING)
    assert {name: row(FAMILIES[name], said) for name, said in found.items()} == {name: TABLE[name] for name in NEEDING}


def test_the_tables_name_every_family():
    assert TABLE.keys() == FAMILIES.keys()
    assert short(TABLE) in README.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("command", "name"), zip(COMMANDS, PLAIN[3:]))
def test_every_command_scores_a_family_in_a_process_of_its_own(command, name, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    FAMILIES[name].write(checkpoint)
    process = [sys.executable, "-m", "lit_depth", *arguments(FAMILIES[name], command, checkpoint, tmp_path)]
    done = subprocess.run(process, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / command / "default" / "manifest.json").is_file()
    assert "Traceback" not in done.stderr
