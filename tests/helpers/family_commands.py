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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lit_depth.data import DepthDataModule
from lit_depth.functional import from_mask_id, masked
from lit_depth.functional.engine.decoding_configuration import end_token_ids
from lit_depth.metrics.text import clean_prediction
from lit_depth.models.loading import load_checkpoint
from lit_depth.models.prompting import prompter_for
from tests.helpers.commands import SecondShapes, run
from tests.helpers.families import FAMILIES, NUM_BLOCKS, Family

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
from tests.helpers.family_commands import outcomes
print(json.dumps({name: outcomes(name) for name in sys.argv[1:]}))
"""
WORKS = "works"
TASK = ("--data.task", "tests.helpers.commands.SecondShapes")
COMMANDS: dict[str, tuple[Any, ...]] = {
    "importance": (),
    "compare": ("--policies", "prefix", "--num_active_blocks", 2, NUM_BLOCKS, "--latency_repeats", 1),
    "search": ("--max_blocks_to_remove", 1),
    "consistency": (),
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


def check_answers(family: Family, checkpoint: Path, folder: Path) -> None:
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
        assert clean_prediction(text) == clean_prediction(record["prediction"])


def row(family: Family, said: Mapping[str, str]) -> str:
    """A family's line of the table, from what each command said; of a refusal the expectation, not its figures."""
    reasons: dict[str, list[str]] = {}
    for command, text in said.items():
        if text != WORKS:
            reasons.setdefault(text.removeprefix("error: ").partition(";")[0], []).append(command)
    refused = [f"{', '.join(commands)} refused: {reason}" for reason, commands in reasons.items()]
    result = "; ".join(refused) or WORKS
    return f"| {family.name} | `{family.model_class}` | {result} | {', '.join(family.needs)} |"


def outcomes(name: str) -> dict[str, str]:
    """What each command says of a family, over a checkpoint of its own."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "checkpoint")
        checkpoint.mkdir()
        FAMILIES[name].write(checkpoint)
        return {command: outcome(FAMILIES[name], command, checkpoint, Path(folder)) for command in COMMANDS}


def outcomes_with_packages(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """As `outcomes`, in a process that finds the packages of the extra ``vision``."""
    places = [str(ROOT), *([str(PACKAGES)] if PACKAGES.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    command = [sys.executable, "-c", _WITH_PACKAGES, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_table(rows: dict[str, str]) -> None:
    """Put the table into the page, and the names into the README."""
    head = ["| family | class | every command | needs |", "| --- | --- | --- | --- |"]
    groups = {True: "With images", False: "Text"}
    parts = [
        f"### {title}\n\n" + "\n".join([*head, *(rows[name] for name in FAMILIES if FAMILIES[name].sees == sees)])
        for sees, title in groups.items()
    ]
    _between(PAGE, "\n\n".join(parts))
    _between(README, short(rows))


def short(rows: dict[str, str]) -> str:
    """The names of the families alone."""
    named = {
        sees: ", ".join(name for name in FAMILIES if FAMILIES[name].sees == sees and f"| {WORKS} |" in rows[name])
        for sees in (True, False)
    }
    refused = ", ".join(name for name in FAMILIES if f"| {WORKS} |" not in rows[name])
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
    needing = outcomes_with_packages([name for name in names if FAMILIES[name].needs])
    for name in names:
        rows[name] = row(FAMILIES[name], needing.get(name) or outcomes(name))
        print(rows[name], flush=True)
    write_table(rows)
