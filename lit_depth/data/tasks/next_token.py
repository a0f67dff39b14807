"""Plain texts: the log-probability of every token, given the text before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_depth.data.columns import plain_name
from lit_depth.data.sources import LocalSource, find_splits
from lit_depth.data.tables import SUFFIXES, read_files
from lit_depth.data.task import Nouns, Sample, Task
from lit_depth.data.tasks.own_files import serving_split

TEXT = ".txt"
_COLUMNS = ("text", "document", "content", "article", "story", "passage")
LONGEST_WINDOW = 2048  # tokens, where a model's context is longer: the logits of all of them are held at once


class NextToken(Task):
    """Documents from text files, one each, or from the rows of a table with a column of texts.

    Documents are cut into windows as ``loglikelihood_rolling`` of lm-evaluation-harness cuts them: disjoint, each token
    counted once. The first window follows the token that texts begin with, a further one the token before it; the last
    one, which is shorter, as many tokens as a window holds. A sample is a window, and documents are what intervals are
    clustered by; of a single document, its windows.

    A role that has files of its own reads these. Else documents are dealt out, half to calibration and half to
    validation; a single document is cut in the middle.

    Args:
        column: Name of the column of texts, where it is not called as usual.
    """

    name = "next_token"
    answer_kind = "free"
    metric = "logprob_per_token"
    max_new_tokens = 0
    nouns = Nouns("window", "document")

    def __init__(self, column: str | None = None) -> None:
        self.column = column

    def load(self, split: str, path: str | None = None) -> Any:
        """Return the documents of a role, see `Task.load`; `windows` cuts them.

        Raises:
            ValueError: If there is no path, no text in it, or no column of texts.
        """
        if path is None:
            raise ValueError("next_token reads texts: expected --data.path FILE.txt, a folder of them, or a table")
        found = find_splits(path, self.name, suffixes=(TEXT,) if TEXT in _kinds(path) else SUFFIXES)
        named = {role: serving_split(found, role, path) for role in dict.fromkeys(("calibration", "validation", split))}
        documents = [each for each in self._read(found[named[split]]) if each["text"].strip()]
        if not documents:
            raise ValueError(f"{path}: expected texts, got none that is not empty")
        if named["calibration"] == named["validation"] and split != "train":
            documents = _half(documents, split == "validation")
        return documents

    def _read(self, source: LocalSource) -> list[dict[str, Any]]:
        if all(Path(file).suffix.lower() == TEXT for file in source.files):
            root = Path(source.folder)
            names = [Path(file).name if root.is_file() else str(Path(file).relative_to(root)) for file in source.files]
            return [{"document": name, "text": _text(Path(file))} for name, file in zip(names, source.files)]
        table = read_files(source.files)
        usual = [name for name in table.column_names if plain_name(name) in _COLUMNS]
        column = self.column or next(iter(usual), None)
        if column not in table.column_names or (self.column is None and len(usual) > 1):
            raise ValueError(
                f"{source.folder}: expected one column of texts, got {', '.join(table.column_names)}; "
                "name it: --data.columns.text NAME"
            )
        return [{"document": f"row {row}", "text": text or ""} for row, text in enumerate(table[column])]

    def windows(self, documents: Sequence[dict[str, Any]], prompter: Any, longest: int) -> list[dict[str, Any]]:
        """Rows of one window each.

        Args:
            documents: As `load` returns them.
            prompter: Of the model, for its tokens.
            longest: Most tokens of a window that are counted.
        """
        first, rows = prompter.first_ids(), []
        for document in documents:
            ids = prompter.text_ids(document["text"])
            for start, prompt, counted in cut(ids, first, longest):
                text = prompter.tokenizer.decode(counted)
                rows.append(
                    {"document": document["document"], "start": start, "tokens": (prompt, counted), "text": text}
                )
        if len(documents) == 1:
            rank_zero_warn(
                f"{documents[0]['document']} is the only document: intervals take its {len(rows)} windows of up to "
                f"{longest:,} tokens as independent"
            )
            rows = [{**row, "cluster": f"{row['document']}/{row['start']}"} for row in rows]
        return rows

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        document = row["document"]
        if "tokens" not in row:
            return Sample(document, document, None, "", (row["text"],))
        return Sample(
            id=f"{document}/{row['start']}",
            image_id=row.get("cluster", document),
            image=None,
            question="",
            references=(row["text"],),
            continuations=(row["text"],),
            prompt="",
            tokens=row["tokens"],
        )


def cut(ids: Sequence[int], first: Sequence[int], longest: int) -> Iterator[tuple[int, list[int], list[int]]]:
    """Start, prompt and counted tokens of each window of a text.

    >>> [(prompt, counted) for _, prompt, counted in cut([1, 2, 3, 4, 5, 6, 7], [0], 3)]
    [([0], [1, 2, 3]), ([3], [4, 5, 6]), ([4, 5, 6], [7])]

    Args:
        ids: Tokens of the text.
        first: What the first one follows.
        longest: Most tokens of a window that are counted.
    """
    for start in range(0, len(ids), longest):
        counted = list(ids[start : start + longest])
        before = list(ids[max(0, start + len(counted) - longest - 1) : start])
        yield start, before or list(first), counted


def document_of(sample: str) -> str:
    """Name of the document that a window is of, by its id.

    >>> document_of("texts/one.txt/2047")
    'texts/one.txt'
    """
    return sample.rpartition("/")[0]


def is_text(path: str) -> bool:
    """Whether a path is a text file, or a folder of text files without tables."""
    kinds = _kinds(path)
    return TEXT in kinds and not kinds & set(SUFFIXES)


def _kinds(path: str) -> set[str]:
    """Endings of the files of a folder, of those below it where it has no texts or tables itself."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return {place.suffix.lower()}
    # results of an earlier run may lie in a folder beside the texts
    here = {file.suffix.lower() for file in place.iterdir()}
    return here if here & {TEXT, *SUFFIXES} else {file.suffix.lower() for file in place.rglob("*")}


def _half(documents: list[dict[str, Any]], second: bool) -> list[dict[str, Any]]:
    if len(documents) > 1:
        ordered = sorted(documents, key=lambda each: hashlib.blake2b(each["document"].encode()).digest())
        return ordered[int(second) :: 2]
    (document,) = documents
    text, middle = document["text"], len(document["text"]) // 2
    # at white space, so that no word is torn
    place = next((at for at in range(middle, len(text)) if text[at].isspace()), middle)
    name = f"{document['document']}, {'second' if second else 'first'} half"
    return [{"document": name, "text": text[place:] if second else text[:place]}]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected UTF-8, got another encoding; save it as UTF-8") from error
