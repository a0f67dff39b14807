"""Tasks that are read from tables: from a repository on the hub, or from a local folder of parquet files."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_depth.data.images import ImageFolder
from lit_depth.data.rows import (
    PLACE,
    ArrowTable,
    Layout,
    QuestionRows,
    answer_texts,
    column_names,
    content_id,
    most_common_first,
    shared_ids,
)
from lit_depth.data.sources import (
    LocalSource,
    Source,
    canonical_split,
    find_splits,
    image_folder,
    load_table,
    repository_names,
)
from lit_depth.data.task import SPLITS, Sample, Task, check_split, task_names

CAULDRON = Layout(image="images", questions="texts", question="user", answer="assistant", instructed=True)
"""Columns of ``HuggingFaceM4/the_cauldron``: conversations about images, written for training."""

_MOLMO_NEW_TOKENS = 12
# Rows that are looked at before a split counts as one whose answers are withheld.
_ANSWER_ROWS = 256


class HubTask(Task):
    """A task over a dataset on the hub, or over parquet files with the same columns.

    The roles "calibration" and "validation" never share an image: where both are served by one split of the dataset,
    a hash of the image id deals its images out, half to each. So it is with "train" where the dataset has nothing but
    a train split: that role then has the images of "calibration".

    A subclass names the dataset in the attributes below and, where the columns need more than reading, overrides
    `question`, `references` or `options`.

    Args:
        repository: ``owner/name`` on the hub; null = the task's own.
        config: Configuration, or several to be read one after another; null = the task's own, and none of another
            repository's.
        revision: Branch, tag or commit; null = the task's own.
        splits: The dataset's split for a role, such as ``{calibration: train}``; other roles stay as they are.
        streaming: Read only as many rows as samples are asked for, the first ones of the split, instead of the whole
            split: quick, but no random sample.
        parity: ``molmo`` asks and stops as Molmo's own evaluation does where that differs: 12 new tokens, and what the
            task's class says.

    Attributes:
        splits: The dataset's split by role.
        train_source: Where the role "train" is read from, if not from the repository.
        layouts: How the columns may be arranged; the first one that fits is used.
        drops_rows_without_image: Leave out rows without image, which belong to the dataset, instead of counting them
            as bad.

    Raises:
        ValueError: If ``splits`` names an unknown role, or ``parity`` is unknown.
    """

    needs_image = True
    repository: str
    config: str | tuple[str, ...] | None = None
    revision: str = "main"
    splits: Mapping[str, str]
    train_source: Source | None = None
    layouts: tuple[Layout, ...]
    drops_rows_without_image = False

    def __init__(
        self,
        repository: str | None = None,
        config: str | list[str] | None = None,
        revision: str | None = None,
        splits: dict[str, str] | None = None,
        streaming: bool = False,
        parity: Literal["molmo"] | None = None,
    ) -> None:
        if parity not in (None, "molmo"):
            raise ValueError(f"{self.name}: parity must be null or molmo, got {parity!r}")
        for role in splits or ():
            check_split(role)
        if repository is not None and self.repository not in repository_names(repository):
            self.config = None  # that of the task's own repository means nothing in another one
        self.repository = repository or self.repository
        self.config = tuple(config) if isinstance(config, list) else config or self.config
        self.revision = revision or self.revision
        self.splits = {**self.splits, **(splits or {})}
        if splits and "train" in splits:
            self.train_source = None
        self.streaming = streaming
        self.parity = parity
        if parity == "molmo":
            self.max_new_tokens = _MOLMO_NEW_TOKENS
        self._image_ids: dict[Source | LocalSource, list[str]] = {}
        self._image_contents: dict[Source | LocalSource, list[tuple[str, ...]]] = {}

    # what a subclass may override

    def question(self, entry: Mapping[str, Any]) -> str:
        """Return the question's text.

        Args:
            entry: The columns of the row; ``question`` and ``answer`` are there whatever the columns are called.

        Raises:
            ValueError: If there is none; this costs the sample only.
        """
        text = str(entry["question"] or "").strip()
        if not text:
            raise ValueError("the row has no question")
        return text

    def references(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the accepted answers, none where they are withheld; arguments as for `question`."""
        return answer_texts(entry["answer"])

    def options(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the texts to choose from, none for an open question; arguments as for `question`."""
        return ()

    # what is the same for all

    def load(self, split: str, path: str | None = None) -> QuestionRows:
        """Return the questions of a role, see `Task.load`.

        Raises:
            ValueError: If the role or its split does not exist, the source cannot be read, a column is missing, or the
                answers are withheld.
        """
        source = self.source(split, path)
        dataset = self._table(source)
        layout = self._fit_layout(dataset.features.arrow_schema, source)
        table = ArrowTable(dataset.select_columns(layout.columns(dataset.column_names)))
        image_ids = self._ids_of_images(table, layout, source)
        kept = self._rows_of_role(split, path, source, layout, image_ids)
        if self.drops_rows_without_image and layout.image is not None:
            there = [bool(images) for images in self._contents(table, layout, source)]
            kept = kept[np.array(there, dtype=bool)[kept]]
        # an empty list counts as one question, so that its row is reported instead of passed over
        lengths = np.ones(len(table), dtype=np.int64)
        if layout.questions is not None:
            lengths = np.maximum(np.array(table.list_lengths(layout.questions), dtype=np.int64), 1)
        rows = np.repeat(kept, lengths[kept])
        # a question is numbered from the first of its row
        starts = np.repeat(np.cumsum(lengths[kept]) - lengths[kept], lengths[kept])
        numbers = np.arange(len(rows)) - starts
        questions = QuestionRows(table, image_ids, rows, numbers, layout, source.split, self._image_folder(source))
        return self._checked(questions, source)

    def stream(self, split: str, num_samples: int, path: str | None = None) -> QuestionRows:
        """Return the first questions of a role, from different rows as far as there are enough, reading no further.

        Arguments and errors are those of `Task.stream`.
        """
        source = self.source(split, path)
        part, folder = self._part(split, path, source), self._image_folder(source)
        layout: Layout | None = None
        table: dict[int, dict[str, Any]] = {}
        image_ids: dict[int, str] = {}
        for index, one_row in enumerate(load_table(source, self.name, streaming=True).with_format("arrow")):
            layout = layout or self._fit_layout(one_row.schema, source)
            row = one_row.select(layout.columns(one_row.column_names)).to_pylist()[0]
            contents = self._content(row, layout, folder)
            # rows that share some of several images are not brought together: the others were not read yet
            joined = "/".join(contents) if layout.by_content else ""
            image_id = self._named(row, layout) or joined or f"{source.split}/{index}"
            if part is not None and half(image_id) != part:
                continue
            if self.drops_rows_without_image and not contents:
                continue
            table[index], image_ids[index] = row, image_id
            if len(table) == num_samples:
                break
        if layout is None:
            raise ValueError(f"{self.name}: split {source.split!r} of {describe(source)} has no rows")
        lengths = {index: layout.count(row) for index, row in table.items()}
        turns = ((index, turn) for turn in range(max(lengths.values(), default=0)) for index in table)
        # not always a row's first question: those of one kind may stand at the same place in every row
        places = ((index, (turn + index) % lengths[index]) for index, turn in turns if turn < lengths[index])
        rows, numbers = zip(*sorted(islice(places, num_samples))) if table else ((), ())
        questions = QuestionRows(table, image_ids, rows, numbers, layout, source.split, folder)
        return self._checked(questions, source)

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        place = row[PLACE]
        layout = place.layout
        entry = layout.entry(row, place.number)
        parts = [place.split, place.row]
        if layout.questions is not None:
            parts.append(place.number)
        if layout.question_id is not None and entry[layout.question_id] is not None:
            parts.append(entry[layout.question_id])
        images = layout.images_of(row)
        return Sample(
            id="/".join(map(str, parts)),
            image_id=place.image_id,
            image=next(iter(images), None),
            more_images=images[1:],
            question=self.question(entry),
            # predictions lose the same white space before they are scored
            references=tuple(" ".join(answer.split()) for answer in self.references(entry)),
            options=self.options(entry),
            meta={"dataset_split": place.split, **{key: entry[key] for key in layout.meta if key in entry}},
        )

    def source(self, split: str, path: str | None = None) -> Source | LocalSource:
        """Return where the rows of a role are read from.

        Args:
            split: The role.
            path: A local folder instead of the hub.

        Raises:
            ValueError: If the role is unknown, or neither the dataset nor the folder has a split for it.
        """
        check_split(split)
        if path is not None:
            return self._local_source(split, path)
        if split == "train" and self.train_source is not None:
            return self.train_source
        if split not in self.splits:
            there = ", ".join(f"{role} = {name}" for role, name in self.splits.items())
            raise ValueError(f"{self.name}: {self.repository} has no split for the role {split}; there are {there}")
        return Source(self.repository, self.splits[split], self.config, self.revision)

    def _image_folder(self, source: Source | LocalSource) -> ImageFolder:
        return image_folder(source)

    def _table(self, source: Source | LocalSource) -> Any:
        return load_table(source, self.name, streaming=False)

    def _local_source(self, role: str, path: str) -> LocalSource:
        others = task_names() - {self.name}
        found = find_splits(path, self.name, others, self.config, self.splits.values())
        wanted = canonical_split(self.splits.get(role, role))
        # No dataset calls a split calibration, so that file was made on purpose; and anything is better than train.
        if role in found and (role == "calibration" or wanted == "train"):
            return found[role]
        if wanted in found:
            return found[wanted]
        # A single split serves for calibration and validation; what is called train must be meant for training.
        if len(found) == 1 and role != "train":
            return next(iter(found.values()))
        raise ValueError(
            f"{self.name}: the role {role} needs {wanted}*.parquet in {next(iter(found.values())).folder}; the splits "
            f"there are {', '.join(sorted(found))}"
        )

    def _sources(self, path: str | None) -> dict[str, Source | LocalSource]:
        """Sources of all roles that have one."""
        found = {}
        for role in SPLITS:
            try:
                found[role] = self.source(role, path)
            except ValueError:
                continue
        return found

    def _part(self, role: str, path: str | None, source: Source | LocalSource) -> int | None:
        """Which half of the source's images is the role's; None = all of them, as where nothing is selected."""
        if self.without_answers:
            return None
        sharing = [other for other, theirs in self._sources(path).items() if theirs == source]
        if "validation" not in sharing or len(sharing) == 1:
            return None
        return 1 if role == "validation" else 0

    def _rows_of_role(
        self, role: str, path: str | None, source: Source | LocalSource, layout: Layout, image_ids: list[str]
    ) -> np.ndarray:
        part = self._part(role, path, source)
        if part is not None:
            return np.flatnonzero([half(image_id) == part for image_id in image_ids])
        keep = np.ones(len(image_ids), dtype=bool)
        validation = self._sources(path).get("validation")
        # Some datasets repeat images in their splits. Where nothing but the content tells, it is looked at.
        if role != "validation" and validation is not None and _same_place(source, validation) and layout.by_content:
            dataset = self._table(validation)
            theirs = self._fit_layout(dataset.features.arrow_schema, validation)
            reserved = {image for images in self._contents(ArrowTable(dataset), theirs, validation) for image in images}
            keep = np.array([reserved.isdisjoint(images) for images in self._image_contents[source]], dtype=bool)
            if not keep.all():
                rank_zero_warn(
                    f"{self.name}: {np.count_nonzero(~keep):,} of {len(keep):,} rows of split {source.split!r} show "
                    f"images of split {validation.split!r}, which results are reported on, and are left out"
                )
        return np.flatnonzero(keep)

    def _ids_of_images(self, table: ArrowTable, layout: Layout, source: Source | LocalSource) -> list[str]:
        if source not in self._image_ids:
            names: Iterable[str | None]
            if layout.image_id is not None:
                names = [self._named(row, layout) for row in table.cells([layout.image_id])]
            elif layout.by_content:
                names = shared_ids(self._contents(table, layout, source))
            else:
                names = [None] * len(table)
            self._image_ids[source] = [name or f"{source.split}/{index}" for index, name in enumerate(names)]
        return self._image_ids[source]

    def _named(self, row: Mapping[str, Any], layout: Layout) -> str | None:
        """The image's name in its own column, or None where there is none."""
        value = row.get(layout.image_id) if layout.image_id else None
        if value is None or value != value:
            return None
        # integers are stored so where one of them is missing
        is_whole = isinstance(value, float) and value.is_integer()
        return str(int(value) if is_whole else value).strip() or None

    def _contents(self, table: ArrowTable, layout: Layout, source: Source | LocalSource) -> list[tuple[str, ...]]:
        """What tells the images of each row from others."""
        if source not in self._image_contents:
            rows, folder = table.cells(layout.image_cells), self._image_folder(source)
            self._image_contents[source] = [self._content(row, layout, folder) for row in rows]
        return self._image_contents[source]

    def _content(self, row: Mapping[str, Any], layout: Layout, folder: ImageFolder) -> tuple[str, ...]:
        return tuple(filter(None, (content_id(image, folder) for image in layout.images_of(row))))

    def _fit_layout(self, schema: Any, source: Source | LocalSource) -> Layout:
        """The first layout whose columns are all there, without the optional ones that are not."""
        there = column_names(schema)
        missing = {layout: [name for name in layout.required if name not in there] for layout in self.layouts}
        layout = min(self.layouts, key=lambda layout: len(missing[layout]))
        if missing[layout]:
            raise ValueError(
                f"{self.name}: column {', '.join(map(repr, missing[layout]))} is missing in split {source.split!r} of "
                f"{describe(source)}; it has {', '.join(there)}"
            )
        image_id, question_id = (name if name in there else None for name in (layout.image_id, layout.question_id))
        return replace(layout, image_id=image_id, question_id=question_id)

    def _checked(self, questions: QuestionRows, source: Source | LocalSource) -> QuestionRows:
        if self.without_answers:
            return questions
        texts = questions.without_images()
        first = min(len(texts), _ANSWER_ROWS)
        if first and not any(self._is_answered(texts[position]) for position in range(first)):
            raise ValueError(
                f"{self.name}: split {source.split!r} of {describe(source)} has no answers (none in its first {first} "
                "questions): they are withheld, so nothing can be scored; take another split, or lit-depth answers "
                "for predictions alone"
            )
        return questions

    def _is_answered(self, row: dict[str, Any]) -> bool:
        place = row[PLACE]
        try:
            return bool(self.references(place.layout.entry(row, place.number)))
        # malformed is not withheld: the row is reported where it is evaluated
        except Exception:
            return True


class SoftAccuracyTask(HubTask):
    """A task with ten answers by different people, scored by how many of them agree."""

    metric = "VQAAccuracy"
    num_references = 10

    def references(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        answers = answer_texts(entry["answer"], keep_empty=True)
        if answers and len(answers) < self.num_references:
            raise ValueError(f"expected {self.num_references} answers, got {len(answers)}")
        return most_common_first(answers)


def without_period(answers: tuple[str, ...]) -> tuple[str, ...]:
    """Remove the final period that datasets written for training put behind an answer.

    >>> without_period(("Soil.", "3.5"))
    ('Soil', '3.5')
    """
    return tuple(answer.removesuffix(".").rstrip() for answer in answers)


def half(image_id: str) -> int:
    """Deal an image to one of two halves, 0 or 1, by a hash of its id.

    >>> [half(str(image)) for image in range(8)]
    [1, 0, 1, 1, 1, 0, 0, 1]
    """
    return hashlib.blake2b(image_id.encode(), digest_size=1).digest()[0] & 1


def describe(source: Source | LocalSource) -> str:
    """Name a source in a message."""
    if isinstance(source, LocalSource):
        return source.folder
    return source.repository if source.config is None else f"{source.repository}, config {source.config}"


def _same_place(one: Source | LocalSource, other: Source | LocalSource) -> bool:
    if isinstance(one, LocalSource) or isinstance(other, LocalSource):
        return one != other
    return one != other and one.repository == other.repository
