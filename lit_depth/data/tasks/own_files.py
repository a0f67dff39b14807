"""A user's own questions: any table, or a folder of them, without a task class."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_depth.data.columns import Columns, Guess, find_columns, guess_metric, option_texts, read_answers
from lit_depth.data.hub import HubTask
from lit_depth.data.images import ImageFolder, stored_path
from lit_depth.data.rows import PLACE, Layout, QuestionRows
from lit_depth.data.sources import LocalSource, Source, canonical_split, find_splits, load_table
from lit_depth.data.tables import FOLDER, SUFFIXES, pictures, read_files, saved_splits
from lit_depth.data.task import AnswerKind, Nouns, check_split

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# which split serves a role, the best one first
_SERVES = {
    "validation": ("validation", "test", "dev", "testdev", "unnamed", "calibration", "train"),
    "calibration": ("calibration", "train", "dev", "validation", "test", "testdev", "unnamed"),
    "train": ("train", "unnamed"),
}
_LOOKED_AT = 256  # rows, for a guess of what the answers are
_FEWEST_NEW_TOKENS, _MOST_NEW_TOKENS = 16, 128


@dataclass(frozen=True)
class OwnLayout(Layout):
    """Columns of a user's own table, whose pictures may be written in many ways.

    Args:
        folder: Column of the folder from which paths count, where files of several folders make up one table.
    """

    folder: str | None = None

    @property
    def image_cells(self) -> tuple[str, ...]:
        """See `Layout.image_cells`."""
        return self.image_columns if self.folder is None else (*self.image_columns, self.folder)

    def images_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """See `Layout.images_of`."""
        images = super().images_of(row)
        if self.folder is None:
            return images
        paths = [stored_path(image) for image in images]
        return tuple(
            image if path is None or "://" in path else os.path.join(row[self.folder], path)
            for image, path in zip(images, paths)
        )

    def images_in(self, cell: Any) -> tuple[Any, ...]:
        """The pictures in a cell, see `pictures`."""
        return pictures(cell)


class OwnFiles(HubTask):
    """Questions from a file of your own: JSON lines, JSON, CSV, TSV, parquet, arrow, a folder of these, or a hub id.

    Columns are found by their usual names (`lit_depth.data.columns.find_columns`); images are paths relative to the
    file, bytes or base64. Splits are files or folders called so, a column, or else halves by image: what selects masks
    and what reports on them never share an image.

    Args:
        path: The file or folder, a folder that `datasets` saved, or ``owner/name`` on the hub.
        columns: Meaning and name of columns that are called otherwise, see `find_columns`.
        allow_outside: Read images from outside of the folder too.

    Raises:
        ValueError: If there is no such table, it cannot be read, or its columns are not understood.
    """

    needs_image = False
    repository = ""
    splits: Mapping[str, str] = {}

    def __init__(self, path: str, columns: Mapping[str, str | None] | None = None, allow_outside: bool = False) -> None:
        super().__init__()
        self.path = path
        self.given = dict(columns or {})
        self.allow_outside = allow_outside
        place = Path(os.path.abspath(Path(path).expanduser()))
        self.name = re.sub(r"\W+", "_", place.stem).strip("_").lower() or "own_files"
        self._tables: dict[tuple[str, ...], Any] = {}
        self._loaded: dict[tuple[str, bool], QuestionRows] = {}
        self.unanswered: dict[str, int] = {}  # questions that were left out, by role

    @cached_property
    def found(self) -> dict[str, Source | LocalSource]:
        """Splits by name, those of a split column included."""
        every = self._files()
        if len(every) != 1:
            return every
        whole = next(iter(every.values()))
        if isinstance(whole, Source) or self.columns.split is None:
            return every
        column = self.columns.split
        values = Counter(self._table(whole)[column])
        spelt: dict[str, list[Any]] = {}
        for value in values:
            if value is not None and str(value).strip():
                spelt.setdefault(canonical_split(str(value)), []).append(value)
        lost = sum(count for value, count in values.items() if value is None or not str(value).strip())
        if lost:
            say(f"{self.path}: {lost:,} rows name no split in the column {column!r} and are left out")
        return {split: replace(whole, split=split, rows=(column, tuple(those))) for split, those in spelt.items()}

    def _files(self) -> dict[str, Source | LocalSource]:
        place = Path(self.path).expanduser()
        saved = saved_splits(place)
        if saved is not None:
            return {canonical_split(name): LocalSource(str(place), name, f, self.path) for name, f in saved.items()}
        if not place.exists() and _HUB_ID.fullmatch(self.path):
            return self._on_the_hub()
        if place.is_file() and place.suffix.lower() not in SUFFIXES:
            raise ValueError(f"--data.path: expected a file of {', '.join(SUFFIXES)}, got {self.path}")
        splits = find_splits(self.path, self.name, suffixes=SUFFIXES, above=True)
        return {name: _beside_images(source) for name, source in splits.items()}

    def _on_the_hub(self) -> dict[str, Source | LocalSource]:
        import datasets

        try:
            names = datasets.get_dataset_split_names(self.path)
        # whatever three libraries raise where there is no network, no such dataset, or several configurations
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"--data.path: {self.path} is no file or folder here, and the hub does not give it: {reason}"
            ) from error
        return {canonical_split(name): Source(self.path, name) for name in names}

    @cached_property
    def columns(self) -> Columns:
        """Which column holds what, in the first split."""
        first = next(iter(self._files().values()))
        return find_columns(self._table(first).column_names, self.given, self.path, without_answers=True)

    def unread(self) -> list[str]:
        """Columns that nothing is read from."""
        first = next(iter(self._files().values()))
        known = {name for value in astuple(self.columns) for name in (value if isinstance(value, tuple) else (value,))}
        return [name for name in self._table(first).column_names if name not in known and name != FOLDER]

    def source(self, split: str, path: str | None = None) -> Source | LocalSource:
        """Return the split that serves a role, see `HubTask.source`; ``path`` is this task's own already."""
        return self.found[serving_split(self.found, split, self.path)]

    def load(self, split: str, path: str | None = None) -> QuestionRows:
        """Return the questions of a role that have an answer, see `HubTask.load`; how many have none is said."""
        key = (split, self.without_answers)
        if key not in self._loaded:  # the metric is guessed from what is asked
            questions = super().load(split, path)
            self._loaded[key] = questions if self.without_answers else self._with_answers(questions, split)
        return self._loaded[key]

    def _with_answers(self, questions: QuestionRows, split: str) -> QuestionRows:
        answered, rows = self._answered(questions), np.asarray(questions.rows)
        open_rows = rows[~answered]
        if len(open_rows):
            of_split = "" if len(self.found) == 1 else f" of split {questions.split!r}"
            say(
                f"{self.path}: of {len(rows):,} questions for {split} {len(open_rows):,} without an answer left out, "
                f"the first in row {open_rows[0]:,}{of_split}, counted from 0"
            )
        self.unanswered[split] = len(open_rows)
        return replace(questions, rows=rows[answered], numbers=np.asarray(questions.numbers)[answered])

    def _answered(self, questions: QuestionRows) -> np.ndarray:
        """Which of the questions, bool ``[questions]``, have an answer, one that cannot be read included."""
        answers = [row[questions.layout.answer] for row in questions.table.cells([questions.layout.answer], 4096)]
        # most are plain words, of which a large table has millions
        plain = [isinstance(answer, str) and answer[:1].isalnum() for answer in answers]
        return np.array([plain[row] or bool(read_answers(answers[row])) for row in questions.rows], dtype=bool)

    def _table(self, source: Source | LocalSource) -> Any:
        if isinstance(source, Source):
            return load_table(source, self.name, streaming=False)
        if source.files not in self._tables:
            folders = {Path(file).parent for file in source.files}
            self._tables[source.files] = read_files(source.files, source.folder if len(folders) > 1 else None)
        table = self._tables[source.files]
        if source.rows is None:
            return table
        column, names = source.rows
        return table.select([row for row, value in enumerate(table[column]) if value in names])

    def _fit_layout(self, schema: Any, source: Source | LocalSource) -> Layout:
        there = [name for name in schema.names if name != FOLDER]
        columns = find_columns(there, self.given, self.path, self.without_answers)
        folder = FOLDER if FOLDER in schema.names else None
        options = columns.options if isinstance(columns.options, tuple) else (columns.options,)
        return OwnLayout(
            image=columns.image,
            question=columns.question,
            answer=columns.answer or "",
            question_id=columns.id,
            image_id=columns.image_id,
            optional=tuple(filter(None, (*options, folder))),
            folder=folder,
        )

    def _rows_of_role(
        self, role: str, path: str | None, source: Source | LocalSource, layout: Layout, image_ids: list[str]
    ) -> np.ndarray:
        part = self._part(role, path, source)
        if part is None:
            return super()._rows_of_role(role, path, source, layout, image_ids)
        # of a few images, halves by a hash alone are too uneven: here they differ by one image at most
        ordered = sorted(set(image_ids), key=lambda image_id: hashlib.blake2b(image_id.encode()).digest())
        if len(ordered) < 2:
            what = "questions" if layout.image is None else "images"
            linked = (
                ": all questions are linked by images that they share; give a column split, or image_id that says what "
                "belongs together"
            )
            raise ValueError(
                f"{self.path}: expected two {what} or more, half to select masks on and half to report on, got "
                f"{len(ordered)}{linked if len(image_ids) > 1 else ''}"
            )
        chosen = set(ordered[part::2])
        return np.flatnonzero([image_id in chosen for image_id in image_ids])

    def question(self, entry: Mapping[str, Any]) -> str:
        return super().question(entry) if self.columns.question is not None else ""

    def options(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        return option_texts(entry, self.columns.options)

    def references(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        return read_answers(entry["answer"], self.options(entry))

    def _image_folder(self, source: Source | LocalSource) -> ImageFolder:
        folder = super()._image_folder(source)
        return ImageFolder(folder.start, (*folder.tops, "/")) if self.allow_outside else folder

    @cached_property
    def _accepted(self) -> list[tuple[str, ...]]:
        """Accepted answers of the first questions, without those that cannot be read."""
        accepted = []
        for row in islice(self.load("validation").without_images(), _LOOKED_AT):
            place = row[PLACE]
            try:
                accepted.append(self.references(place.layout.entry(row, place.number)))
            except ValueError:  # such a row is reported where it is evaluated
                continue
        return accepted

    @cached_property
    def guess(self) -> Guess:
        """The metric and the kind of answer that fit the answers, and why."""
        columns, by_likelihood = self.columns, self.answer_by == "likelihood"
        if columns.answer is None:
            return Guess("agreement", "choice" if columns.options else "short", "there is no column of answers")
        if by_likelihood and columns.options is None:
            raise ValueError(
                f"{self.path}: expected a column of options to choose from by likelihood, got {columns.told()}; "
                "name it: --data.columns.options NAME"
            )
        has_options, has_question = columns.options is not None, columns.question is not None
        return guess_metric(self._accepted, has_options, has_question, by_likelihood)

    @cached_property
    def metric(self) -> str:  # type: ignore[override]  # found when it is asked for; assigned to choose another
        """Name of the metric that fits."""
        return self.guess.metric

    def tell(self) -> None:
        """Say which columns hold what, and which metric was guessed and why, if one was."""
        say(f"{self.path}: {self.columns.told()}")
        if self.columns.answer is None:
            say(f"{self.path}: no column of answers, so nothing is scored: lit-depth answers gives predictions alone")
        elif self.metric == self.guess.metric:
            say(f"{self.path}: metric {self.metric}, because {self.guess.reason}; another one: --data.metric NAME")

    @cached_property
    def nouns(self) -> Nouns:  # type: ignore[override]
        """Questions are clustered by image where images are shown or named."""
        return Nouns(cluster="image" if self.columns.image or self.columns.image_id else "question")

    @cached_property
    def answer_kind(self) -> AnswerKind:  # type: ignore[override]
        """Kind of the answers that there are."""
        return self.guess.answer_kind

    @cached_property
    def max_new_tokens(self) -> int:  # type: ignore[override]
        """Room for the longest of the answers: a token has two characters or more in nearly every language."""
        accepted = [] if self.columns.answer is None else self._accepted
        longest = max((len(text) for texts in accepted for text in texts), default=0)
        return min(max(longest // 2, _FEWEST_NEW_TOKENS), _MOST_NEW_TOKENS)


def serving_split(found: Collection[str], role: str, path: str) -> str:
    """Which of the splits that there are serves a role.

    Raises:
        ValueError: If none does.
    """
    for name in _SERVES[check_split(role)]:
        if name in found:
            return name
    if len(found) == 1 and role != "train":
        return next(iter(found))
    raise ValueError(
        f"{path}: expected a split for the role {role}, such as {_SERVES[role][0]} or {_SERVES[role][1]}, got "
        f"{', '.join(found)}; to deal the rows out instead of by the column of splits: --data.columns.split null"
    )


def _beside_images(source: LocalSource) -> LocalSource:
    """The source, whose rows name images from the folder of its files where that is one."""
    folders = {str(Path(file).parent) for file in source.files}
    return replace(source, folder=folders.pop()) if len(folders) == 1 else source


@rank_zero_only
def say(line: str) -> None:
    """Tell the user, once for all processes, beside the results: on the standard error."""
    print(line, file=sys.stderr)
