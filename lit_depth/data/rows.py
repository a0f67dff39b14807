"""Tables of questions: which column holds what, and one row per question."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lit_depth.data.images import ImageFolder

PLACE = "_place"  # key under which a row carries its `Place`


@dataclass(frozen=True)
class Layout:
    """Which columns of a table hold what.

    Args:
        image: Column of the image or of a list of images, or several such columns. None = there is none.
        question: Column of the question, or key in the elements of ``questions``. None = there is none.
        answer: Column of the answers, or key in the elements of ``questions``.
        questions: Column with a list of questions about the row's image; each becomes a sample.
        further: Other columns that must be there.
        question_id: Column that names the question, where there is one.
        image_id: Column that names the image, where there is one. Without it, rows with a list of questions are
            images, and other rows are told apart by the content of their images, see `shared_ids`.
        optional: Columns or keys that are read where they are there.
        meta: Columns or keys kept in `lit_depth.data.Sample.meta` where they are there.
        instructed: Questions end in a line that asks for a short answer; it is cut off.
    """

    image: str | tuple[str, ...] | None = "image"
    question: str | None = "question"
    answer: str = "answers"
    questions: str | None = None
    further: tuple[str, ...] = ()
    question_id: str | None = None
    image_id: str | None = None
    optional: tuple[str, ...] = ()
    meta: tuple[str, ...] = ()
    instructed: bool = False

    @property
    def required(self) -> tuple[str, ...]:
        """Columns without which the table cannot be read; ``list.key`` for a key in the elements of a list."""
        prefix = "" if self.questions is None else f"{self.questions}."
        keys = [f"{prefix}{key}" for key in (self.question, self.answer) if key is not None]
        return tuple(name for name in (*self.image_columns, self.questions, *keys, *self.further) if name is not None)

    @property
    def image_columns(self) -> tuple[str, ...]:
        """Columns that hold images, in the order in which these are shown."""
        return (self.image,) if isinstance(self.image, str) else self.image or ()

    @property
    def image_cells(self) -> tuple[str, ...]:
        """Columns that `images_of` reads."""
        return self.image_columns

    @property
    def by_content(self) -> bool:
        """Whether images are told apart by their content."""
        return self.image is not None and self.image_id is None and self.questions is None

    def columns(self, there: Sequence[str]) -> list[str]:
        """The columns to read, of those that are there."""
        names = (*self.required, *self.optional, *self.meta, self.question_id, self.image_id)
        return [name for name in there if name in names]

    def count(self, row: Mapping[str, Any]) -> int:
        """Questions of a row. An empty list counts as one, so that the row is reported instead of passed over."""
        return 1 if self.questions is None else max(1, len(list_elements(row[self.questions])))

    def entry(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        """One question of a row: its columns, those of the question's list element, and ``question``, ``answer``.

        Raises:
            ValueError: If the row has no such question.
        """
        entry = dict(row)
        if self.questions is not None:
            elements = list_elements(row[self.questions])
            if number >= len(elements) or not isinstance(elements[number], Mapping):
                raise ValueError("the row has no question")
            entry |= elements[number]
        question, answer = None if self.question is None else entry.get(self.question), entry.get(self.answer)
        if self.instructed and isinstance(question, str):
            question = question.strip().partition("\n")[0]
        return entry | {"question": question, "answer": answer}

    def images_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """The row's images as they are stored, in order."""
        return tuple(image for name in self.image_columns for image in self.images_in(row.get(name)))

    def images_in(self, cell: Any) -> tuple[Any, ...]:
        """The images in a cell."""
        return tuple(image for image in (cell if isinstance(cell, list) else [cell]) if image is not None)


@dataclass(frozen=True)
class Place:
    """Where a question stands: dataset split, row in it, number in the row's list, the row's image id and layout."""

    split: str
    row: int
    number: int
    image_id: str
    layout: Layout


@dataclass(frozen=True, eq=False)
class QuestionRows(Sequence[dict[str, Any]]):
    """Rows of a table counted by question: a row with a list of questions occurs once for each.

    ``table`` and ``image_ids`` give a row and its image id by the row's number. Each question has the number of its row
    (``rows``), and its own in the row's list (``numbers``). ``folder``: where rows may name images by path.
    """

    table: Any
    image_ids: Any
    rows: Sequence[int] | np.ndarray
    numbers: Sequence[int] | np.ndarray
    layout: Layout
    split: str
    folder: ImageFolder | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: Any) -> Any:
        """The question's row, its images undecoded, with its `Place` under `PLACE`."""
        row = int(self.rows[position])
        place = Place(self.split, row, int(self.numbers[position]), self.image_ids[row], self.layout)
        return {**self.table[row], PLACE: place}

    def without_images(self) -> QuestionRows:
        """The same questions without reading images, for what depends on the text only."""
        if not isinstance(self.table, ArrowTable) or self.layout.image is None:
            return self
        return replace(self, table=self.table.without(self.layout.image_columns))

    def images(self, positions: Iterable[int]) -> Iterator[Any]:
        """The images of these questions as they are stored, one after another, each row's once."""
        for row in dict.fromkeys(int(self.rows[position]) for position in positions):
            yield from self.layout.images_of(self.table[row])


class ArrowTable:
    """A `datasets.Dataset` as rows of plain values: stored bytes where the columns declare images."""

    def __init__(self, dataset: Any) -> None:
        # Arrow rows skip the decoding of images, whether a column declares them or not.
        self.dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.dataset[row].to_pylist()[0]

    def without(self, columns: Sequence[str]) -> ArrowTable:
        """The table without these columns, of which some may be gone already."""
        there = self.dataset.column_names
        return ArrowTable(self.dataset.remove_columns([name for name in columns if name in there]))

    def cells(self, columns: Sequence[str], batch_size: int = 64) -> Iterator[dict[str, Any]]:
        """Iterate over the rows of some columns, reading no other."""
        for batch in self.dataset.select_columns(list(columns)).iter(batch_size):
            yield from batch.to_pylist()

    def list_lengths(self, name: str) -> list[int]:
        """Number of elements in each row of a column of lists; an absent list has none."""
        lengths: list[int] = []
        for batch in self.dataset.select_columns(name).iter(4096):
            for chunk in batch.column(name).chunks:
                # a list of structs is stored as such, or as a struct of lists
                lists = chunk if hasattr(chunk, "value_lengths") else chunk.flatten()[0]
                lengths += [length or 0 for length in lists.value_lengths().to_pylist()]
        return lengths


def column_names(schema: Any) -> list[str]:
    """Names of an Arrow schema's columns, and ``list.key`` for the keys of structs and of lists of structs."""
    import pyarrow.types

    names = []
    for field in schema:
        names.append(field.name)
        inner = getattr(field.type, "value_type", field.type)
        if pyarrow.types.is_struct(inner):
            names += [f"{field.name}.{inner.field(i).name}" for i in range(inner.num_fields)]
    return names


def list_elements(value: Any) -> list[Any]:
    """Elements of a stored list of structs, which some files keep as a struct of lists.

    >>> list_elements({"question": ["a", "b"], "answer": ["1", "2"]})
    [{'question': 'a', 'answer': '1'}, {'question': 'b', 'answer': '2'}]
    """
    if isinstance(value, Mapping):
        return [dict(zip(value, items)) for items in zip(*value.values())]
    return list(value or [])


def content_id(image: Any, folder: ImageFolder | None = None) -> str | None:
    """Name an undecoded image by its content, or by its place below a folder; None where there is none."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        image = (image if folder is None else folder.name(image)).encode()
    return hashlib.blake2b(image, digest_size=12).hexdigest() if image else None


def shared_ids(contents: Sequence[Sequence[str]]) -> list[str | None]:
    """One id for rows that share an image, be it through other rows: the least of all their images' ids.

    So rows of different ids share none, and those of one image each have the id of their image. None = no image.

    >>> shared_ids([["c", "d"], ["a"], [], ["d", "b"]])
    ['b', 'a', None, 'b']
    """
    names: dict[str, str] = {}

    def least(name: str) -> str:
        while names.setdefault(name, name) != name:
            names[name] = name = names[names[name]]
        return name

    for images in contents:
        first, *others = sorted(map(least, images)) or [""]
        names.update(dict.fromkeys(others, first))
    return [least(images[0]) if images else None for images in contents]


def answer_texts(value: Any, keep_empty: bool = False) -> tuple[str, ...]:
    """Read the accepted answers, however they are stored: a text, a number, a list, a list written as a text.

    They are stripped, repeated ones kept, empty ones only beside others and with ``keep_empty``, where their number
    matters.

    >>> answer_texts("['two', '2']"), answer_texts([{"answer": "net"}]), answer_texts(3), answer_texts(["", None])
    (('two', '2'), ('net',), ('3',), ())
    """
    if isinstance(value, str):
        value = parse_list(value)
    answers = value if isinstance(value, (list, tuple)) else [value]
    answers = [answer.get("answer") if isinstance(answer, Mapping) else answer for answer in answers]
    texts = tuple("" if answer is None else str(answer).strip() for answer in answers)
    return texts if keep_empty and any(texts) else tuple(filter(None, texts))


def parse_list(text: str) -> list[Any]:
    """Read a list that is written as a Python literal, in brackets; any other text is the only element.

    >>> parse_list("['1/3', '0.33']"), parse_list("[see note"), parse_list("B")
    (['1/3', '0.33'], ['[see note'], ['B'])
    """
    if not text.strip().startswith("["):
        return [text]
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [text]
    return value if isinstance(value, list) else [text]


def most_common_first(answers: Sequence[str]) -> tuple[str, ...]:
    """Put the most frequent answer first, the earliest on ties; the rest keep their order.

    >>> most_common_first(["red", "blue", "blue"])
    ('blue', 'red', 'blue')
    """
    if not answers:
        return ()
    first = answers.index(Counter(answers).most_common(1)[0][0])
    return (answers[first], *answers[:first], *answers[first + 1 :])
