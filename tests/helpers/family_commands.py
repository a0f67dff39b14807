"""What each command of the command line says of each family, and the table of it in the documentation."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.data import DepthDataModule, Sample, Task
from lit_depth.functional import from_mask_id, masked
from lit_depth.functional.engine.decoding_configuration import end_token_ids
from lit_depth.metrics.text import clean_prediction
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.prompting import Prompter, prompter_for
from tests.helpers.commands import SecondShapes, run
from tests.helpers.families import FAMILIES, NUM_BLOCKS, Family
from tests.helpers.model_zoo import forced_logprob
from tests.helpers.sweep_laws import check_every_entry
from tests.helpers.zeroing import zeroed_copy

ROOT = Path(__file__).resolve().parents[2]
PAGE, README = ROOT / "docs" / "families.md", ROOT / "README.md"
# where the packages of the extra `vision` lie, so that every other test runs without them
PACKAGES = Path(os.environ.get("LIT_DEPTH_VISION", Path(sys.prefix) / "vision"))
# PyPI's torchvision is built for CUDA. Beside a torch that is not, its compiled operators cannot be loaded, and its
# import ends where it describes two of them; processors use none of them, so it is enough that they have a name.
_WITH_PACKAGES = """
import json, sys, torch
try:
    import torchvision
except ModuleNotFoundError:
    pass
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from importlib import import_module
module, function, *names = sys.argv[1:]
print(json.dumps({name: getattr(import_module(module), function)(name) for name in names}))
"""
WORKS = "works"
TASK = ("--data.task", "tests.helpers.commands.SecondShapes")
COMMANDS: dict[str, tuple[Any, ...]] = {
    "importance": (),
    "compare": ("--policies", "prefix", "--num_active_blocks", 2, NUM_BLOCKS, "--num_requests", 1),
    "search": ("--max_blocks_to_remove", 1),
    "consistency": (),
    "interactions": ("--num_samples", 4, "--num_held_out", 1, "--max_blocks_to_remove", 3),
    "latency": ("--num_active_blocks", 2, NUM_BLOCKS, "--num_samples", 2, "--new_tokens", 2),
    "select": ("--policies", "prefix", "--num_requests", 2, "--num_checks", 2, "--budget_ms", 10_000),
    "tokens": (),
}
FEW = ("--data.num_samples", 4, "--data.calibration_samples", 4, "--data.batch_size", 2)


def arguments(family: Family, command: str, checkpoint: Path, output: Path) -> list[str]:
    """One command over a few questions, with images where the family sees them."""
    common = ("--model.checkpoint", checkpoint, "--output_dir", output, "--trainer.accelerator", "cpu", *TASK)
    seen = () if family.sees else ("--data.drop_images", "true")
    return list(map(str, (command, *COMMANDS[command], *common, *seen, *(() if command == "tokens" else FEW))))


def outcome(family: Family, command: str, checkpoint: Path, output: Path) -> str:
    """``works``, or what the command says instead; `main` of this process runs it."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = run(arguments(family, command, checkpoint, output))
    if code == 0:
        check(command, output / command / "default")
        if command == "compare":
            check_answers(family, checkpoint, output / command / "default")
        return WORKS
    said = re.findall(r"(?:internal )?error: .*", told.getvalue())
    return said[-1].replace(str(checkpoint), "...") if said else f"exit code {code}"


def check(command: str, folder: Path, num_blocks: int = NUM_BLOCKS, num_samples: int = 4) -> None:
    """The numbers that a command wrote are finite, of every block or mask, and no sample was lost (but to racing)."""
    if command == "tokens":
        table = pd.read_csv(folder / "masking_results.csv", keep_default_na=False)
        assert set(table["layer"]) == set(range(num_blocks))
        assert all(map(math.isfinite, pd.to_numeric(table["l2_distance"])))
    elif command == "latency":
        rows = json.loads((folder / "latency.json").read_text())["summary"]
        assert sorted(row["num_active_blocks"] for row in rows) == [2, num_blocks]
        assert all(row["prefill"]["P50"] > 0 for row in rows)
    else:
        for records in folder.rglob("rank0.jsonl"):
            rows = [json.loads(line) for line in records.read_text().splitlines()][1:]
            samples, masks = ({row[name] for row in rows} for name in ("sample", "mask"))
            assert command == "search" or (len(samples) == num_samples and len(rows) == len(samples) * len(masks))
            assert all(math.isfinite(row["reference_logprob"]) and 0 <= row["score"] <= 1 for row in rows)


def asked(
    family: Family, checkpoint: Path, task: Task | None = None, num_samples: int = 4
) -> tuple[PreTrainedModel, Prompter, dict[str, Sample]]:
    """A family's model, what asks it, and the questions by their names: those of `FEW`, or of another task."""
    model, processor = load_checkpoint(str(checkpoint))
    prompter = prompter_for(model, processor)
    task = task or SecondShapes()
    data = DepthDataModule(prompter, task, num_samples=num_samples, drop_images=not family.sees)
    return model, prompter, {sample.id: sample for sample in data.eval_dataset("validation")}


def check_answers(
    family: Family, checkpoint: Path, folder: Path, task: Task | None = None, num_samples: int = 4
) -> None:
    """What `compare` recorded in batches is what the model says of each question alone, under each mask.

    That is the answer which ``generate`` gives, and the log-probability of the reference, decoded token by token.
    """
    task = task or SecondShapes()
    model, prompter, samples = asked(family, checkpoint, task, num_samples)
    (path,) = (folder / "records").rglob("validation/rank0.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert len({record["mask"] for record in records}) > 1
    for record in records:
        sample = samples[record["sample"]]
        inputs = prompter.encode([sample])
        with masked(model, from_mask_id(record["mask"])):
            tokens = model.generate(
                **inputs,
                max_new_tokens=task.max_new_tokens,
                do_sample=False,
                eos_token_id=end_token_ids(model, prompter.tokenizer),
                pad_token_id=prompter.tokenizer.pad_token_id or 0,
            )
            logprob = forced_logprob(model, inputs, prompter.answer_ids(sample.references[:1]))
        new = tokens[:, inputs["input_ids"].shape[1] :]
        (text,) = prompter.tokenizer.batch_decode(new, skip_special_tokens=True)
        assert clean_prediction(text) == clean_prediction(record["prediction"])
        assert record["reference_logprob"] == pytest.approx(float(logprob), rel=0, abs=1e-5)


def sublayers(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> str:
    """``works``, where a half that is skipped is one that adds zeros; else why halves cannot be skipped."""
    mask = torch.ones(2 * NUM_BLOCKS, dtype=torch.bool)
    mask[[3, 4]] = False  # the MLP of a block, and the attention of the next
    real = inputs["attention_mask"].bool()
    try:
        with masked(model, mask, granularity="sublayer"), torch.no_grad():
            found = model(**inputs, use_cache=False).logits[real]
    except ValueError as refusal:
        return f"refused: {str(refusal).removesuffix('; skip whole blocks instead')}"
    with torch.no_grad():
        expected = zeroed_copy(model, mask)(**inputs, use_cache=False).logits[real]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    return WORKS


def engine(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> str:
    """``works``, where many masks are answered in one pass; else why they are not; the answers are right in both."""
    said = check_every_entry(model, inputs)
    return said[0].partition(" is answered ")[2] if said else WORKS


LAWS = {"sublayers": sublayers, "engine": engine}


def row(family: Family, said: Mapping[str, str]) -> str:
    """A family's line of the table, from what each command and law said; of a refusal the reason, not its figures.

    A command that was not asked is taken to work.
    """
    reasons: dict[str, list[str]] = {}
    for command in COMMANDS:
        if said.get(command, WORKS) != WORKS:
            reasons.setdefault(said[command].removeprefix("error: ").partition(";")[0], []).append(command)
    refused = [f"{', '.join(commands)} refused: {reason}" for reason, commands in reasons.items()]
    laws = [re.sub(r" \[[\d, ]+\]|, got .*", "", said[law]).replace("|", r"\|") for law in LAWS]
    cells = (family.name, f"`{family.model_class}`", "; ".join(refused) or WORKS, *laws, ", ".join(family.needs))
    return f"| {' | '.join(cells)} |"


def some_commands(name: str) -> list[str]:
    """Commands that differ most in what they ask of a model, and two of the others by turns."""
    turns = (("search", "latency"), ("consistency", "select"), ("interactions", "latency"))
    return ["importance", "compare", "tokens", *turns[list(FAMILIES).index(name) % len(turns)]]


def some_outcomes(name: str) -> dict[str, str]:
    """As `outcomes`, of `some_commands` alone."""
    return outcomes(name, some_commands(name))


def outcomes(name: str, commands: Iterable[str] = tuple(COMMANDS)) -> dict[str, str]:
    """What each command and law says of a family, over a checkpoint of its own."""
    family = FAMILIES[name]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "checkpoint")
        checkpoint.mkdir()
        family.write(checkpoint)
        said = {command: outcome(family, command, checkpoint, Path(folder)) for command in commands}
        model, prompter, samples = asked(family, checkpoint)
        inputs = prompter.encode(list(samples.values())[:2])
    return said | {law: says(model, inputs) for law, says in LAWS.items()}


def with_packages(function: Callable[[str], Any], names: Iterable[str]) -> dict[str, Any]:
    """What a function says of each family, in a process that finds the packages of the extra ``vision``."""
    places = [str(ROOT), *([str(PACKAGES)] if PACKAGES.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    command = [sys.executable, "-c", _WITH_PACKAGES, function.__module__, function.__name__, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_table(rows: dict[str, str]) -> None:
    """Put the table into the page, and the names into the README."""
    names = ("family", "class", "every command", *LAWS, "needs")
    head = [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] * len(names))} |"]
    groups = {True: "With images", False: "Text"}
    parts = [
        f"### {title}\n\n" + "\n".join([*head, *(rows[name] for name in FAMILIES if FAMILIES[name].sees == sees)])
        for sees, title in groups.items()
    ]
    _between(PAGE, "\n\n".join(parts))
    _between(README, short(rows))


def short(rows: dict[str, str]) -> str:
    """The names of the families alone."""
    scored = {name for name in FAMILIES if rows[name].split(" | ")[2] == WORKS}
    named = {
        sees: ", ".join(name for name in FAMILIES if FAMILIES[name].sees == sees and name in scored)
        for sees in (True, False)
    }
    refused = ", ".join(name for name in FAMILIES if name not in scored)
    lines = [f"- with images: {named[True]}", f"- text: {named[False]}"]
    return "\n".join([*lines, *([f"- but for some commands: {refused}"] if refused else [])])


def _between(path: Path, text: str) -> None:
    begin, end = "<!-- families -->", "<!-- end of families -->"
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def table() -> dict[str, str]:
    """The lines of the page as they stand, by family."""
    lines = PAGE.read_text().splitlines()
    return {name: line for line in lines for name in FAMILIES if line.startswith(f"| {name} |")}


def main(options: list[str]) -> None:
    if options[:1] != ["--table"] or not set(options[1:]) <= set(FAMILIES):
        sys.exit("expected --table, or --table and names of families: runs their commands and writes docs/families.md")
    names, rows = options[1:] or list(FAMILIES), table()
    needing = with_packages(outcomes, [name for name in names if FAMILIES[name].needs])
    for name in names:
        rows[name] = row(FAMILIES[name], needing.get(name) or outcomes(name))
        print(rows[name], flush=True)
    write_table(rows)
