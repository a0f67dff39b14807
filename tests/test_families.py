"""Every command scores every family of docs/families.md, on a checkpoint with the family's own processor."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import logging

from lit_depth.data import DepthDataModule
from lit_depth.functional import from_mask_id, masked
from lit_depth.functional.engine.decoding_configuration import end_token_ids
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.prompting import prompter_for
from tests.helpers.commands import SecondShapes
from tests.helpers.families import FAMILIES
from tests.helpers.family_commands import (
    COMMANDS,
    PACKAGES,
    README,
    WORKS,
    arguments,
    outcome,
    outcomes_with_packages,
    row,
    short,
    table,
)

logging.disable_progress_bar()
PLAIN = [name for name, family in FAMILIES.items() if not family.needs]
NEEDING = [name for name, family in FAMILIES.items() if family.needs]
TABLE = table()


@pytest.fixture(params=PLAIN)
def family(request):
    return FAMILIES[request.param]


@pytest.mark.slow
def test_every_command_scores_a_family_as_the_table_says(family, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    family.write(checkpoint)
    said = {command: outcome(family, command, checkpoint, tmp_path) for command in COMMANDS}
    assert row(family, said) == TABLE[family.name], said
    if said["compare"] == WORKS:
        check_answers(family, checkpoint, tmp_path / "compare" / "default")


def check_answers(family, checkpoint, folder):
    """What `compare` recorded in batches is what the model generates for each question alone, under each mask."""
    model, processor = load_checkpoint(str(checkpoint))
    prompter, task = prompter_for(model, processor), SecondShapes()
    data = DepthDataModule(prompter, task, num_samples=4, drop_images=not family.sees)
    samples = {sample.id: sample for sample in data.eval_dataset("validation")}
    (path,) = (folder / "records").rglob("validation/rank0.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert len({record["mask"] for record in records}) > 1
    for record in records:
        inputs = prompter.encode([samples[record["sample"]]])
        with masked(model, from_mask_id(record["mask"])):
            tokens = model.generate(
                **inputs,
                max_new_tokens=task.max_new_tokens,
                do_sample=False,
                eos_token_id=end_token_ids(model, prompter.tokenizer),
                pad_token_id=prompter.tokenizer.pad_token_id or 0,
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        (text,) = prompter.tokenizer.batch_decode(new, skip_special_tokens=True)
        assert text.split() == record["prediction"].split()  # blanks are not kept as they are


@pytest.mark.slow
def test_families_whose_processors_need_packages_are_scored_with_them():
    if not PACKAGES.is_dir():
        for package in {package for name in NEEDING for package in FAMILIES[name].needs}:
            pytest.importorskip(package, reason="`make venv` puts the packages of the extra vision beside .venv's own")
    found = outcomes_with_packages(NEEDING)
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
