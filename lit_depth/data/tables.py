"""Tables of a user's own: JSON, JSON lines, CSV, TSV, parquet, arrow, and folders that `datasets` saved."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.data.rows import list_elements, parse_list

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_JSON = (".jsonl", ".ndjson", ".json")
_SEPARATORS = (",", "\t", ";", "|")
FOLDER = "_folder"  # column with the folder of the row's file, where there are several
_CELLS: dict[str, Any] = {"skipinitialspace": True, "keep_default_na": False}  # "NA" and "None" are answers
# what a saved `datasets.DatasetDict` or `datasets.Dataset` has in its folder
_SAVED = ("dataset_dict.json", "state.json")
_ROWS_AT_ONCE = 1_000  # of JSON lines: one holds several pictures in base64, perhaps
_FEWEST_BASE64 = 64  # characters; no picture is smaller, many file names are longer than half of it


def saved_splits(folder: Path) -> dict[str, tuple[str, ...]] | None:
    """Folders of the splits that `datasets` saved in a folder, by name; None = it saved nothing there."""
    if (folder / _SAVED[0]).is_file():
        names = json.loads((folder / _SAVED[0]).read_text(encoding="utf-8"))["splits"]
        return {name: (str(folder / name),) for name in names}
    return {"unnamed": (str(folder),)} if (folder / _SAVED[1]).is_file() else None


def read_files(files: Sequence[str], folder: str | None = None) -> datasets.Dataset:
    """The rows of files of one kind, one file after another.

    Values of JSON, CSV and TSV are texts: what is not a text in JSON (a number, a list) stands as it is written in
    JSON, so that an answer may be ``3`` in one row and ``"two"`` in the next; ``NaN`` is nothing, and ``3.0`` is 3. An
    empty cell of a CSV is an empty text, and blanks before a cell are none of it.

    Args:
        files: Paths of files, or one folder that `datasets` saved.
        folder: Add a column `FOLDER` with the folder of the row's file, as it is called from this one; None = do not.

    Raises:
        ValueError: If the files are of several kinds, there are no rows, or a file cannot be read; the message names
            the file and, where it is known, the line.
    """
    table = _read_files(files, folder)
    if not len(table):
        raise ValueError(f"{', '.join(files)}: expected rows, got none")
    return table


def _read_files(files: Sequence[str], folder: str | None) -> datasets.Dataset:
    import datasets

    datasets.disable_progress_bars()  # they stand in the way of the command's own
    kinds = {Path(file).suffix.lower() for file in files}
    if len(kinds) > 1:
        raise ValueError(f"expected files of one kind for one split, got {', '.join(files)}; name one of them")
    suffix = kinds.pop()
    if Path(files[0]).is_dir():
        return datasets.load_from_disk(files[0])
    if suffix in _JSON:
        rows = (dict(row, **_beside(file, folder)) for file in files for row in _json_rows(Path(file)))
        return _from_texts(rows)
    if suffix in (".csv", ".tsv"):
        return _joined(files, folder)
    try:
        return datasets.load_dataset(suffix.removeprefix("."), data_files=list(files), split="train")
    # whatever a damaged file raises in one of the libraries below
    except Exception as error:
        raise ValueError(f"cannot read {', '.join(files)}: {_first_line(error.__cause__ or error)}") from error


def _beside(file: str, folder: str | None) -> dict[str, str]:
    return {} if folder is None else {FOLDER: os.path.relpath(Path(file).parent, folder)}


def _joined(files: Sequence[str], folder: str | None) -> datasets.Dataset:
    import datasets

    tables = [_read_separated(Path(file)) for file in files]
    for file, table in zip(files, tables):
        if set(table.column_names) != set(tables[0].column_names):
            raise ValueError(
                f"expected the same columns in the files of one split, got {', '.join(tables[0].column_names)} in "
                f"{files[0]} and {', '.join(table.column_names)} in {file}; name one of them"
            )
    for number, file in enumerate(files):
        for name, value in _beside(file, folder).items():
            tables[number] = tables[number].add_column(name, [value] * len(tables[number]))
    return datasets.concatenate_datasets(tables)


def _json_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if file.suffix.lower() == ".json":
            text = file.read_text(encoding="utf-8-sig")
            if not text.strip():
                return iter(())
            try:
                return iter(_row_list(json.loads(text), file))
            except json.JSONDecodeError as error:
                # many a file of JSON lines is called .json
                if "\n" not in text.strip() or error.msg != "Extra data":
                    raise ValueError(f"{file}, line {error.lineno}: expected JSON, got {error.msg}") from error
        return _json_lines(file)
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error


def _json_lines(file: Path) -> Iterator[Mapping[str, Any]]:
    # other line ends are characters that JSON allows inside a text
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        try:
            yield from _json_line_rows(lines, file)
        except UnicodeDecodeError as error:
            raise _not_utf8(file) from error


def _json_line_rows(lines: Iterable[str], file: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: expected an object in JSON, got {error.msg}") from error
        if not isinstance(row, Mapping):
            raise ValueError(f"{file}, line {number}: expected an object in JSON, got {line.strip()[:40]}")
        yield row


def _row_list(content: Any, file: Path) -> list[Mapping[str, Any]]:
    """The rows of a JSON document: a list of objects, or an object that holds one such list, or one of columns."""
    lists = {} if not isinstance(content, Mapping) else {k: v for k, v in content.items() if isinstance(v, list)}
    of_rows = [value for value in lists.values() if value and all(isinstance(row, Mapping) for row in value)]
    if isinstance(content, list) and all(isinstance(row, Mapping) for row in content):
        return content
    if len(of_rows) == 1:
        return of_rows[0]
    lengths = {len(column) for column in lists.values()}
    if lists and len(lists) == len(content) and len(lengths) == 1:
        return [dict(zip(lists, values)) for values in zip(*lists.values())]
    raise ValueError(f"{file}: expected a list of objects, got {type(content).__name__}")


def _from_texts(rows: Iterable[Mapping[str, Any]]) -> datasets.Dataset:
    """A table of texts, built some rows at a time: all as Python objects would take several times the memory."""
    import datasets
    import pyarrow as pa

    rows, parts = iter(rows), []
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        names = dict.fromkeys(str(name) for row in some for name in row)
        texts = {name: [_as_text(row.get(name)) for row in some] for name in names}
        parts.append(pa.table({name: pa.array(column, pa.string()) for name, column in texts.items()}))
    table = pa.concat_tables(parts, promote_options="default") if parts else pa.table({})
    # a fingerprint of its own would pickle the whole table
    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex[:16])


def _as_text(value: Any) -> str | None:
    if value is None or value != value or isinstance(value, str):
        return value if isinstance(value, str) else None
    # libraries write integers so where one of them is missing
    is_whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_whole else value, ensure_ascii=False)


def _read_separated(file: Path) -> datasets.Dataset:
    import datasets

    try:
        separator, names = _header(file)
        return datasets.load_dataset(
            "csv",
            data_files=str(file),
            split="train",
            sep=separator,
            header=0,
            names=names,
            # 007 is not 7
            features=datasets.Features({name: datasets.Value("string") for name in names}),
            encoding="utf-8-sig",
            **_CELLS,
        )
    # pandas and datasets wrap one another's errors
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, UnicodeDecodeError):
            raise _not_utf8(file) from error
        reason = _first_line(cause)
        hint = "; a text that holds the separator stands in quotes" if "fields in line" in reason else ""
        raise ValueError(f"{file}: {reason}{hint}") from error


def _header(file: Path) -> tuple[str, list[str]]:
    """The separator and the names of the columns, without the blanks around them.

    Raises:
        ValueError: If there are none, or two are the same.
    """
    import pandas as pd

    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        first = lines.readline()
    if not first.strip():
        raise ValueError("expected a first line with the names of the columns, got none")
    # people's spreadsheets write semicolons where the comma is the decimal point
    separator = "\t" if file.suffix.lower() == ".tsv" else max(_SEPARATORS, key=first.count)
    # the second line as well: of more cells than there are names pandas would take the first for a name of the row
    top = pd.read_csv(file, sep=separator, header=None, nrows=2, dtype=str, encoding="utf-8-sig", **_CELLS)
    if len(top) < 2:
        raise ValueError("expected rows below the names of the columns, got none")
    names = [name.strip() for name in top.iloc[0]]
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise ValueError(f"expected columns of different names, got {repeated[0]!r} twice")
    return separator, [name or f"column {number}" for number, name in enumerate(names, start=1)]


def _not_utf8(file: Path) -> ValueError:
    return ValueError(f"{file}: expected UTF-8, got another encoding; save it as UTF-8")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix(
        "Error tokenizing data. C error: "
    )


def pictures(value: Any) -> tuple[Any, ...]:
    """What a cell says of pictures, each in a form that `lit_depth.data.images.load_image` takes.

    A text is a path, base64 with or without ``data:image/...;base64,``, or several of these: a list in JSON, or
    separated by ``;`` or ``|``. An address of the web is refused there: pictures are not fetched.

    >>> pictures("photos/1.jpg"), pictures('["a.png", "b.png"]'), pictures("a.png; b.png"), pictures("")
    (('photos/1.jpg',), ('a.png', 'b.png'), ('a.png', 'b.png'), ())
    """
    if isinstance(value, str):
        return _written_pictures(value.strip())
    if isinstance(value, Mapping) and any(isinstance(part, list) for part in value.values()):
        value = list_elements(value)
    # numbers would be pixels, which no picture is made of
    if isinstance(value, list | tuple) and not any(isinstance(each, int | float | list) for each in value):
        return tuple(picture for each in value for picture in _single_picture(each))
    return _single_picture(value)


def _single_picture(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), str):
        value = value["bytes"]
    if isinstance(value, str):
        text = value.strip()
        # tables come from Windows, too
        return (_decoded(text) or text.replace("\\", "/"),) if text else ()
    if isinstance(value, Mapping):
        is_none = not value.get("bytes") and not value.get("path") and not value.keys().isdisjoint(("bytes", "path"))
    else:
        is_none = value is None or value != value
    return () if is_none else (value,)


def _written_pictures(text: str) -> tuple[Any, ...]:
    if text[:1] in ("[", "{"):
        try:
            listed = json.loads(text)
        except ValueError:  # "[1].png" is a name as good as any
            listed = parse_list(text)
        return pictures(listed)
    # no ";" as in data:image/png;base64
    is_one = text.startswith("data:") or _decoded(text) is not None
    return pictures([text] if is_one else re.split("[;|]", text))


def _decoded(text: str) -> bytes | None:
    """The bytes of base64; None where the text is no such thing."""
    head, _, content = text.rpartition(";base64,")
    if not head.startswith("data:") and (len(text) < _FEWEST_BASE64 or "." in text):
        return None
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error:
        return None
