"""Show what a file of questions was understood to be: ``lit-depth data FILE``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_depth.data import DepthDataModule
from lit_depth.data.columns import MEANINGS
from lit_depth.data.datamodule import EvalDataset
from lit_depth.data.task import BadSample, Sample
from lit_depth.data.tasks.next_token import NextToken
from lit_depth.data.tasks.own_files import OwnFiles
from lit_depth.metrics import clean_prediction
from lit_depth.metrics.base import new_metric
from lit_depth.models.loading import load_bundled, load_checkpoint
from lit_depth.models.prompting import Prompter, prompter_for
from lit_depth.results.page import write_page
from lit_depth.results.report import Report, Section, Table
from lit_depth.results.store import prepare_folder
from lit_depth.studies.shared.constant_answer import best_constant, score_constant
from lit_depth.studies.shared.publish import as_text, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN, _THUMBNAILS, _REASONS = 3, 12, 5
_BEGINNING = 40  # characters of a text


def main(argv: Sequence[str]) -> None:
    """Show which columns, splits, images, answers and metric a file of questions has; writes a page with thumbnails.

    Raises:
        ValueError: If the file is not understood; the message says why.
    """
    given = _parser().parse_args(argv)
    columns = {name: value for name in MEANINGS if (value := getattr(given, f"columns.{name}")) is not None}
    datamodule = DepthDataModule(
        path=given.path,
        columns={name: None if value == "null" else value for name, value in columns.items()},
        allow_outside=given.allow_outside,
        metric=given.metric,
        num_samples=given.num_samples,
        calibration_samples=given.num_samples,
    )
    prompter = prompter_for(*(load_bundled() if given.checkpoint is None else load_checkpoint(given.checkpoint)))
    folder = prepare_folder(Path(given.output_dir) / "data" / datamodule.task.name)
    report = describe(datamodule, prompter)
    page = write_page(folder, report, draw(report, folder / "figures"), {"path": given.path, "columns": columns})
    print("\n".join([as_text(report), "", "written:", f"  {page}"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lit-depth data", description=(main.__doc__ or "").partition("\n")[0])
    parser.add_argument("path", help=".jsonl, .json, .csv, .tsv, .parquet, .arrow, a folder of them, or a hub id")
    for name in MEANINGS:
        parser.add_argument(f"--columns.{name}", metavar="NAME", help=f"column of the {name}; null = there is none")
    parser.add_argument("--metric", help="in place of the one that is guessed")
    parser.add_argument("--allow_outside", action="store_true", help="read images from outside of the folder too")
    parser.add_argument("--checkpoint", help="model whose prompts are shown (default: the bundled one)")
    parser.add_argument("--num_samples", type=int, metavar="N", help="questions per split (default: all)")
    parser.add_argument("--output_dir", default="results", metavar="DIR", help="where the page goes (default: results)")
    return parser


def describe(datamodule: DepthDataModule, prompter: Prompter) -> Report:
    """What a datamodule of own files will ask.

    Args:
        datamodule: Of one task.
        prompter: Writes the prompts that are shown.
    """
    task: Any = datamodule.task
    if isinstance(task, NextToken):
        return _describe_texts(datamodule, prompter)
    read = {role: _read(datamodule.eval_dataset(role)) for role in ("calibration", "validation")}
    good, bad = read["validation"]
    if not good:
        reasons = "; ".join(f"{each.id}: {each.reason}" for each in bad[:_REASONS])
        raise ValueError(f"{datamodule.path}: none of {len(bad)} questions can be asked: {reasons}")
    rows = [_split_row(role, task, samples, refused) for role, (samples, refused) in read.items()]
    headers = ["used as", "read from", "questions", "images", "without answer", "other faults"]
    sections = [
        Section("Columns", _columns_text(task)),
        Section("Splits", _shared_text(read), Table(headers, rows)),
        Section("Answers", _answers_text(task, good)),
        Section("Prompts", _lengths_text(good, prompter), _asked(good[:_SHOWN], prompter)),
    ]
    refused = [each for _, some in read.values() for each in some]
    if refused:
        faults = [[each.id, each.reason] for each in refused[:_REASONS]]
        sections.append(
            Section("Faults", f"{len(refused)} questions are left out.", Table(["question", "why"], faults))
        )
    of_images = {sample.image_id: sample for sample in reversed(good) if sample.image is not None}
    pictures = list(reversed(of_images.values()))[:_THUMBNAILS]
    if pictures:
        sections.append(Section("Pictures", figures=["questions"], printed=False))
    selected = len(read["calibration"][0])
    return Report(
        title=f"Questions of {datamodule.path}",
        headline=f"{datamodule.path}: {len(good):,} questions to report on, {selected:,} to select on.",
        sections=sections,
        kind="data",
        figures={"questions": lambda: _thumbnails(pictures)} if pictures else {},
    )


def _describe_texts(datamodule: DepthDataModule, prompter: Prompter) -> Report:
    """Documents of each role, and how many tokens the model counts in them."""
    rows: list[list[Any]] = []
    for role in ("calibration", "validation"):
        for sample in datamodule.eval_dataset(role).without_images():
            text = sample.references[0]
            rows.append([role, sample.id, len(text), len(prompter.text_ids(text)), " ".join(text.split())[:_BEGINNING]])
    count = len({row[1] for row in rows})
    return Report(
        title=f"Texts of {datamodule.path}",
        headline=f"{datamodule.path}: {count:,} documents, {sum(row[3] for row in rows):,} tokens to be predicted.",
        sections=[Section("Documents", table=Table(["used as", "document", "characters", "tokens", "begins"], rows))],
        kind="data",
    )


def _read(dataset: EvalDataset) -> tuple[list[Sample], list[BadSample]]:
    every = [dataset[position] for position in range(len(dataset))]
    good = [each for each in every if isinstance(each, Sample)]
    return good, [each for each in every if isinstance(each, BadSample)]


def _columns_text(task: Any) -> str:
    if not isinstance(task, OwnFiles):
        return f"task {task.name}"
    unread = task.unread()
    return task.columns.told() + (f"; not read: {', '.join(unread)}" if unread else "")


def _split_row(role: str, task: Any, samples: Sequence[Sample], refused: Sequence[BadSample]) -> list[Any]:
    unanswered = sum("no reference answer" in each.reason for each in refused)
    images = len({sample.image_id for sample in samples if sample.image is not None})
    return [role, task.source(role).split, len(samples), images, unanswered, len(refused) - unanswered]


def _shared_text(read: dict[str, tuple[list[Sample], list[BadSample]]]) -> str:
    images = [{sample.image_id for sample in samples} for samples, _ in read.values()]
    return f"{len(images[0] & images[1])} images stand in both; masks are selected on one and reported on the other."


def _answers_text(task: Any, samples: Sequence[Sample]) -> str:
    metric = new_metric(task.metric)
    answer, tried = best_constant(samples, metric)
    score = float(np.mean(score_constant(answer, samples, metric)))
    distinct = len({clean_prediction(sample.references[0]) for sample in samples})
    why = f", because {task.guess.reason}" if isinstance(task, OwnFiles) and task.metric == task.guess.metric else ""
    return (
        f"metric: {task.metric}{why}. {distinct:,} distinct answers; the constant answer {answer!r} scores "
        f"{score:.3f}, the best of {tried}: a model below it was not shown to do the task. Up to "
        f"{task.max_new_tokens} tokens are generated."
    )


def _lengths_text(samples: Sequence[Sample], prompter: Prompter) -> str:
    lengths = [length for sample in samples if (length := prompter.prompt_length(sample)) is not None]
    if not lengths:
        return "The length of a prompt is known only when its image is prepared."
    low, middle, high = np.percentile(lengths, [0, 50, 100])
    return f"{low:.0f} to {high:.0f} tokens, median {middle:.0f}, images included."


def _asked(samples: Sequence[Sample], prompter: Prompter) -> Table:
    rows = [
        [sample.id, prompter.prompt_text(sample), " | ".join(dict.fromkeys(sample.references))] for sample in samples
    ]
    return Table(["question", "as it is asked", "accepted"], rows)


def _thumbnails(samples: Sequence[Sample]) -> Figure:
    import textwrap

    from matplotlib.figure import Figure

    columns = 4
    figure = Figure(figsize=(10, 3.1 * -(-len(samples) // columns)), layout="constrained")
    for place, sample in enumerate(samples, start=1):
        axes = figure.add_subplot(-(-len(samples) // columns), columns, place)
        assert sample.image is not None
        axes.imshow(sample.image)
        axes.set_axis_off()
        # a dollar sign would begin a formula
        words = f"{sample.question} [{sample.references[0]}]".replace("$", r"\$")
        axes.set_title("\n".join(textwrap.wrap(words, 32)[:4]), fontsize=8)
    return figure
