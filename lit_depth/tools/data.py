"""Show what a file of questions was understood to be: ``lit-depth data FILE``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lit_depth.data import DepthDataModule
from lit_depth.data.columns import MEANINGS
from lit_depth.data.eval_dataset import EvalDataset
from lit_depth.data.lengths import PromptLimit
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
from lit_depth.results.terminal import tell
from lit_depth.studies.shared.constant_answer import best_constant, score_constant
from lit_depth.studies.shared.publish import as_text, draw
from lit_depth.tool_options import parser_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN, _THUMBNAILS, _REASONS = 3, 12, 5
_THUMBNAIL_SIZE = 320  # pixels
_BEGINNING = 40  # characters of a text


def main(argv: Sequence[str]) -> None:
    """Show which columns, splits, images, answers and metric a file of questions has; writes a page with thumbnails.

    Raises:
        ValueError: If the file is not understood; the message says why.
    """
    given = parser_of("data").parse_args(argv)
    columns = {name: value for name in MEANINGS if (value := getattr(given, f"columns.{name}")) is not None}
    datamodule = DepthDataModule(
        path=given.path,
        columns={name: None if value == "null" else value for name, value in columns.items()},
        allow_outside=given.allow_outside,
        metric=given.metric,
        num_samples=given.num_samples,
        calibration_samples=given.num_samples,
    )
    task = datamodule.task
    if isinstance(task, OwnFiles) and task.columns.answer is None:
        datamodule = datamodule.without_answers()
    model, processor = load_bundled() if given.checkpoint is None else load_checkpoint(given.checkpoint)
    prompter = prompter_for(model, processor)
    datamodule.attach(SimpleNamespace(prompter=prompter, model=model))
    folder = prepare_folder(Path(given.output_dir) / "data" / datamodule.task.name)
    report = describe(datamodule, prompter)
    page = write_page(folder, report, draw(report, folder / "figures"), {"path": given.path, "columns": columns})
    tell("\n".join([as_text(report), "", "written:", f"  {page}"]), {"task": datamodule.task.name, "page": page})


def describe(datamodule: DepthDataModule, prompter: Prompter) -> Report:
    """What a datamodule of own files will ask.

    Args:
        datamodule: Of one task.
        prompter: Writes the prompts that are shown.
    """
    task: Any = datamodule.task
    if isinstance(task, NextToken):
        return _describe_texts(datamodule, prompter)
    limit = datamodule.prompt_limit()
    # without answers nothing is selected, and all are asked
    roles = ("validation",) if task.without_answers else ("calibration", "validation")
    read = {role: _read(datamodule.eval_dataset(role), prompter, limit) for role in roles}
    reported, selected = read["validation"], read.get("calibration")
    if not reported.samples:
        reasons = "; ".join(f"{each.id}: {_reason(each)}" for each in reported.bad[:_REASONS])
        raise ValueError(f"{datamodule.path}: none of {len(reported.bad)} questions can be asked: {reasons}")
    rows = [_split_row(role, task, of_role) for role, of_role in read.items()]
    headers = ["used as", "read from", "questions", "images", "without answer", "other faults"]
    sections = [
        Section("Columns", _columns_text(task)),
        Section("Splits", _shared_text(task, reported, selected), Table(headers, rows)),
        Section("Answers", _answers_text(task, reported.samples)),
        Section("Prompts", _lengths_text(reported.lengths), _asked(reported.samples[:_SHOWN], prompter)),
    ]
    refused = [each for of_role in read.values() for each in of_role.bad]
    if refused:
        faults = [[each.id, _reason(each)] for each in refused[:_REASONS]]
        text = f"{len(refused):,} of the questions cannot be asked. Rows are counted from 0."
        sections.append(Section("Faults", text, Table(["question", "why"], faults)))
    if reported.shown:
        sections.append(Section("Pictures", figures=["questions"], printed=False))
    return Report(
        title=f"Questions of {datamodule.path}",
        headline=f"{datamodule.path}: {_count(reported, selected)}.",
        sections=sections,
        kind="data",
        figures={"questions": lambda: _thumbnails(reported.shown)} if reported.shown else {},
    )


def _count(reported: _Read, selected: _Read | None) -> str:
    if selected is None:
        return f"{len(reported.samples):,} questions without answers"
    return f"{len(reported.samples):,} questions to report on, {len(selected.samples):,} to select on"


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


class _Read(NamedTuple):
    """What the questions of a role are, of which few keep their pictures."""

    samples: list[Sample]
    bad: list[BadSample]
    lengths: list[int]  # tokens of the prompts, as far as they are known
    images: set[bytes]  # digests of all pictures
    shown: list[Sample]  # the first ones with pictures, as thumbnails


def _read(dataset: EvalDataset, prompter: Prompter, limit: PromptLimit | None) -> _Read:
    read = _Read([], [], [], set(), [])
    refusals: dict[int, str | None] = {}  # of the model's processor, by number of images
    for position in range(len(dataset)):
        sample = dataset[position]
        if isinstance(sample, BadSample):
            read.bad.append(sample)
            continue
        length, count = prompter.prompt_length(sample), len(sample.images)
        if count not in refusals:
            refusals[count] = _refusal(prompter, sample)
        reason = refusals[count] or (None if length is None or limit is None else limit.refusal(length, 0))
        if reason is not None:
            read.bad.append(BadSample(sample.id, reason))
            continue
        read.lengths.extend([] if length is None else [length])
        digests = {hashlib.blake2b(f"{image.size}".encode() + image.tobytes()).digest() for image in sample.images}
        if digests - read.images and len(read.shown) < _THUMBNAILS:
            read.shown.append(replace(sample, image=None, more_images=tuple(map(_small, sample.images))))
        read.images.update(digests)
        read.samples.append(replace(sample, image=None, more_images=()))
    return read


def _refusal(prompter: Prompter, sample: Sample) -> str | None:
    """Why a model does not take a question of so many images; None = it does."""
    try:
        prompter.encode([sample])
    except (ValueError, NotImplementedError) as error:
        return f"{len(sample.images)} images are not taken by this model: {error}" if sample.images else str(error)
    return None


def _small(image: Any) -> Any:
    small = image.copy()
    small.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    return small


def _reason(bad: BadSample) -> str:
    return bad.reason.removeprefix("ValueError: ")


def _columns_text(task: Any) -> str:
    if not isinstance(task, OwnFiles):
        return f"task {task.name}"
    unread = task.unread()
    return task.columns.told() + (f"; not read: {', '.join(unread)}" if unread else "")


def _split_row(role: str, task: Any, read: _Read) -> list[Any]:
    unanswered = [each for each in read.bad if "no reference answer" in each.reason]
    left_out = len(read.samples) if task.without_answers else getattr(task, "unanswered", {}).get(role, 0)
    others = len(read.bad) - len(unanswered)
    return [role, task.source(role).split, len(read.samples), len(read.images), len(unanswered) + left_out, others]


def _shared_text(task: Any, reported: _Read, selected: _Read | None) -> str:
    if selected is None:
        return "Nothing is selected: all of one split are asked."
    one = task.source("calibration") == task.source("validation")
    dealt = " One split serves for both: its images are dealt out, half to each." if one else ""
    shared = len(reported.images & selected.images)
    what = ": name what is the same image in a column image_id, or leave one out" if shared else ""
    return f"Masks are selected on one and reported on the other; {shared} images stand in both{what}.{dealt}"


def _answers_text(task: Any, samples: Sequence[Sample]) -> str:
    if task.without_answers:
        return (
            "There is no column of answers: nothing is scored, and lit-depth answers gives predictions alone. Up to "
            f"{task.max_new_tokens} tokens are generated."
        )
    metric = new_metric(task.metric)
    try:
        answer, tried = best_constant(samples, metric)
        score = float(np.mean(score_constant(answer, samples, metric)))
    except ValueError as error:
        raise ValueError(
            f"--metric {task.metric} does not fit these answers: {error}; give another --metric"
        ) from error
    distinct = len({clean_prediction(sample.references[0]) for sample in samples})
    why = f", because {task.guess.reason}" if isinstance(task, OwnFiles) and task.metric == task.guess.metric else ""
    return (
        f"metric: {task.metric}{why}. {distinct:,} distinct answers; the constant answer {answer!r} scores "
        f"{score:.3f}, the best of {tried}: a model below it was not shown to do the task. Up to "
        f"{task.max_new_tokens} tokens are generated."
    )


def _lengths_text(lengths: Sequence[int]) -> str:
    if not lengths:
        return "The length of a prompt is known only when its image is prepared."
    low, middle, high = np.percentile(lengths, [0, 50, 100])
    return f"Between {low:.0f} and {high:.0f} tokens, median {middle:.0f}, images included."


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
        axes.imshow(_side_by_side(sample.images))
        axes.set_axis_off()
        # a dollar sign would begin a formula
        answer = f" [{sample.references[0]}]" if sample.references else ""
        words = f"{sample.question}{answer}".replace("$", r"\$")
        axes.set_title("\n".join(textwrap.wrap(words, 32)[:4]), fontsize=8)
    return figure


def _side_by_side(images: Sequence[Any]) -> Any:
    """The pictures of a question as one, in their order, with a gap between them."""
    from PIL import Image

    gap = _THUMBNAIL_SIZE // 16
    size = (sum(image.width + gap for image in images) - gap, max(image.height for image in images))
    canvas, left = Image.new("RGB", size, "white"), 0
    for image in images:
        canvas.paste(image, (left, (size[1] - image.height) // 2))
        left += image.width + gap
    return canvas
