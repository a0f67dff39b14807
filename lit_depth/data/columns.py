"""Which column of a user's own table holds what, which answers it means, and which metric fits them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from lit_depth.data.rows import parse_list
from lit_depth.data.task import AnswerKind
from lit_depth.functional.choices import MAX_OPTIONS, option_letters

# Usual names by meaning, in small letters and without `_`, `-` or blanks. The first group that has a column wins, so
# that a table with both a "question" and a "text" column is understood; two columns of one group are asked about.
_USUAL = {
    "question": (("question", "questions", "query"), ("prompt", "instruction", "input"), ("text", "problem")),
    "answer": (("answer", "answers"), ("label", "labels", "target", "reference", "references"), ("output", "caption")),
    "image": (
        ("image", "images"),
        ("imagepath", "imagefile", "filename", "imagefilename", "picture", "photo"),
    ),
    "options": (("options", "choices"),),
    "id": (("id", "questionid", "qid", "sampleid"),),
    "image_id": (("imageid",),),
    "split": (("split", "fold"),),
}
MEANINGS = tuple(_USUAL)
SEVERAL = ("image", "options")  # meanings that several columns may have together
_NUMBERED = re.compile(r"((?:image|picture|photo|img)(?:path|file|filename)?|filename)(\d+)")
_ANSWER_KEYS = ("answer", "answers", "text", "value", "label")  # where objects keep the answer, as those of SQuAD do
_NUM_HUMANS = 10  # answers per question of VQAv2 and its kin, by different people
BY_LIKELIHOOD = "acc"  # metric of options that are chosen by the log-probability of their texts
_LONG_WORDS = 6  # an answer of more words is no short phrase


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold each meaning; None = there is none.

    Args:
        question: What is asked. Without it, images are to be described.
        answer: One accepted answer or a list of them.
        image: Pictures, in the order of the columns: bytes, base64, a path relative to the file, or a list of these.
        options: Texts to choose from.
        id: Names the question; else its place does.
        image_id: Names the image; else its content does.
        split: Says which split a row belongs to.
    """

    question: str | None = None
    answer: str | None = None
    image: str | tuple[str, ...] | None = None
    options: str | tuple[str, ...] | None = None
    id: str | None = None
    image_id: str | None = None
    split: str | None = None

    def told(self) -> str:
        """The columns in one line.

        >>> Columns(question="Q", options=("A", "B")).told()
        'question = Q, options = A, B'
        """
        pairs = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = {name: value if isinstance(value, str) else ", ".join(value) for name, value in pairs.items() if value}
        return ", ".join(f"{name} = {value}" for name, value in shown.items())


def find_columns(
    there: Sequence[str],
    given: Mapping[str, str | None] | None = None,
    where: str = "",
    without_answers: bool = False,
) -> Columns:
    """Find the columns of a table by their usual names.

    >>> find_columns(["Question", "answer", "image_path", "notes"]).told()
    'question = Question, answer = answer, image = image_path'
    >>> find_columns(["question", "A", "B", "C", "answer"]).options
    ('A', 'B', 'C')
    >>> find_columns(["question", "answer", "left", "right"], {"image": "left, right"}).image
    ('left', 'right')

    Args:
        there: Names of the columns that there are.
        given: Meaning and name of columns that are called otherwise, of images and options perhaps several, separated
            by commas; a name of None = there is none of this meaning.
        where: Name of the table, for messages.
        without_answers: Whether a column of answers may be missing.

    Raises:
        ValueError: If a given column or meaning does not exist, two columns would match one meaning, or there is
            neither a question nor an image.
    """
    unknown = sorted(set(given or {}) - set(_USUAL))
    if unknown:
        raise ValueError(f"--data.columns: expected {', '.join(_USUAL)}, got {', '.join(unknown)}")
    named = {meaning: _named(meaning, name, there) for meaning, name in (given or {}).items()}
    absent = [name for names in named.values() for name in names if name not in there]
    if absent:
        raise ValueError(f"--data.columns: {where} has no column {absent[0]!r}; it has {', '.join(there)}")
    taken = {name for names in named.values() for name in names}
    found: dict[str, Any] = {
        meaning: names[0] if len(names) == 1 else names or None for meaning, names in named.items()
    }
    for meaning, groups in _USUAL.items():
        if meaning not in named:
            found[meaning] = _usual(meaning, groups, there, taken, where)
    if "image" not in named:
        found["image"] = _numbered(found["image"], [name for name in there if name not in taken], where)
    if found["options"] is None and "options" not in named:
        found["options"] = _lettered(there)
    if found["question"] is None and found["image"] is None:
        raise ValueError(
            f"{where}: expected a column of questions or images, got {', '.join(there) or 'none'}; "
            "name it: --data.columns.question NAME"
        )
    if found["answer"] is None and not without_answers:
        raise ValueError(
            f"{where}: expected a column of answers, got {', '.join(there)}; name it: --data.columns.answer NAME. "
            "Without any, lit-depth answers gives predictions alone"
        )
    return Columns(**found)


def _named(meaning: str, name: str | None, there: Sequence[str]) -> tuple[str, ...]:
    if name is None:
        return ()
    if name in there or meaning not in SEVERAL:
        return (name,)
    return tuple(part.strip() for part in name.split(","))


def _numbered(usual: str | None, there: Sequence[str], where: str) -> str | tuple[str, ...] | None:
    """Columns ``image_1``, ``image_2``, ... in the order of their numbers, behind ``image`` where that is the first."""
    numbers: dict[str, dict[str, int]] = {}
    for name in there:
        match = _NUMBERED.fullmatch(plain_name(name))
        if match is not None:
            numbers.setdefault(match[1], {})[name] = int(match[2])
    if not numbers:
        return usual
    ((stem, found), *others) = numbers.items()
    names = sorted(found, key=lambda name: found[name])
    is_first = usual is not None and plain_name(usual) == stem and min(found.values()) > 1
    if others or len(set(found.values())) < len(found) or (usual is not None and not is_first):
        every = [*([usual] if usual else []), *(name for some in numbers.values() for name in some)]
        raise ValueError(
            f"{where}: the columns {' and '.join(map(repr, every))} could be the images; name one, or several in their "
            f"order: --data.columns.image {','.join(every[:2])}"
        )
    names = [usual, *names] if usual is not None else names
    return names[0] if len(names) == 1 else tuple(names)


def _usual(
    meaning: str, groups: Sequence[Sequence[str]], there: Sequence[str], taken: set[str], where: str
) -> str | None:
    for names in groups:
        matching = [name for name in there if name not in taken and plain_name(name) in names]
        if len(matching) > 1:
            raise ValueError(
                f"{where}: the columns {' and '.join(map(repr, matching))} could both be the {meaning}; "
                f"name one: --data.columns.{meaning} {matching[0]}"
            )
        if matching:
            return matching[0]
    return None


def plain_name(name: str) -> str:
    """The letters and digits of a name, in small letters."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _lettered(there: Sequence[str]) -> tuple[str, ...] | None:
    """Columns ``A``, ``B``, ... that hold an option each, as spreadsheets of multiple choice have them."""
    names = []
    for letter in map(chr, range(ord("A"), ord("A") + MAX_OPTIONS)):
        match = next((name for name in there if name.strip() in (letter, f"option_{letter}", f"option {letter}")), None)
        if match is None:
            break
        names.append(match)
    return tuple(names) if len(names) > 1 else None


def option_texts(row: Mapping[str, Any], column: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The options of a row: a list, a list written as a text, a mapping of letters, or one text per column.

    >>> option_texts({"choices": '["cat", "dog"]'}, "choices"), option_texts({"A": "cat", "B": ""}, ("A", "B"))
    (('cat', 'dog'), ('cat',))
    """
    if column is None:
        return ()
    if isinstance(column, tuple):
        return tuple(text for text in (_text(row[name]) for name in column) if text)
    value = row[column]
    if isinstance(value, str):
        value = _listed(value)
    if isinstance(value, Mapping):
        # {"text": [...], "label": [...]} as ARC has them, or {"A": "cat", "B": "dog"}
        value = value.get("text") if isinstance(value.get("text"), list) else list(value.values())
    return tuple(_text(option) for option in value or ())


def _listed(text: str) -> Any:
    """A list that a text may be, in JSON, as a Python literal, or separated by ``|`` or ``;``."""
    if text.strip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return parse_list(text)
    return next((text.split(mark) for mark in ("|", ";") if mark in text), [text] if text.strip() else [])


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()


def read_answers(value: Any, options: Sequence[str] = ()) -> tuple[str, ...]:
    """The accepted answers of a row; with options the letters of the right ones.

    >>> read_answers(3.0), read_answers('["two", "2"]'), read_answers(float("nan"))
    (('3',), ('two', '2'), ())
    >>> read_answers("dog", ["cat", "dog"]), read_answers(0, ["cat", "dog"]), read_answers("(b)", ["cat", "dog"])
    (('B',), ('A',), ('B',))

    Args:
        value: Text, number, list of these, or a list in JSON or as a Python literal; with options a letter, the text of
            an option, or its number from 0.
        options: Texts to choose from.

    Raises:
        ValueError: If the answer is none of the options.
    """
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        value = _unpacked(_listed(value), value)
    values = _unpacked(value)
    plain = [int(each) if isinstance(each, float) and each.is_integer() else each for each in values]
    texts = tuple(filter(None, (_text(each) for each in plain)))
    if not options:
        return texts
    return tuple(_letter(text, options) for text in texts)


def _unpacked(value: Any, written: str | None = None) -> list[Any]:
    """The answers in a list, or in an object that keeps them under a usual name; else the object as it is written.

    >>> _unpacked({"text": ["two"], "answer_start": [7]}), _unpacked([{"answer": "net"}, 3]), _unpacked({"total": 1})
    (['two'], ['net', 3], ['{"total": 1}'])
    """
    if isinstance(value, list | tuple):
        return [answer for each in value for answer in (_unpacked(each) if isinstance(each, Mapping) else [each])]
    if not isinstance(value, Mapping):
        return [value]
    key = next((key for key in _ANSWER_KEYS if key in value), None)
    return [written or json.dumps(value, ensure_ascii=False, default=str)] if key is None else _unpacked(value[key])


def _letter(answer: str, options: Sequence[str]) -> str:
    letters = option_letters(options)
    same = [letter for letter, option in zip(letters, options) if _plain_text(option) == _plain_text(answer)]
    bare = answer.strip("() .:").upper()
    if len(same) == 1:
        return same[0]
    if len(bare) == 1 and bare in letters:
        return bare
    if answer.isdecimal() and int(answer) < len(options):
        return letters[int(answer)]
    raise ValueError(f"expected an answer out of {', '.join(letters)}, or the text of an option, got {answer!r}")


def _plain_text(text: str) -> str:
    return " ".join(text.split()).casefold()


class Guess(NamedTuple):
    """What the answers of a table suggest, and why."""

    metric: str
    answer_kind: AnswerKind
    reason: str


def guess_metric(
    answers: Sequence[tuple[str, ...]], has_options: bool, has_question: bool = True, by_likelihood: bool = False
) -> Guess:
    """The metric that fits the answers of some questions.

    >>> guess_metric([("3",), ("12",)], has_options=False)
    Guess(metric='exact', answer_kind='number', reason='the answers are short')
    >>> guess_metric([("A",)], has_options=True).metric
    'multiple_choice'

    Args:
        answers: Accepted answers of each question.
        has_options: Whether there are options to choose from.
        has_question: Whether anything is asked beside an image; without it, images are described.
        by_likelihood: Whether options are chosen by log-likelihood.
    """
    given = [accepted for accepted in answers if accepted]
    if by_likelihood:
        return Guess(BY_LIKELIHOOD, "choice", "options are chosen by the sum of their tokens' log-probabilities")
    if has_options:
        return Guess("multiple_choice", "choice", "there are options")
    if not has_question:
        return Guess("cider", "caption", "there is no question, so images are described")
    if given and min(map(len, given)) >= _NUM_HUMANS:
        return Guess("vqa", "short", f"there are {_NUM_HUMANS} answers to each question")
    words = Counter(len(accepted[0].split()) > _LONG_WORDS for accepted in given)
    if words[True] > words[False]:
        return Guess("anls", "free", f"the answers have more than {_LONG_WORDS} words")
    are_numbers = bool(given) and all(_is_number(text) for accepted in given for text in accepted)
    return Guess("exact", "number" if are_numbers else "short", "the answers are short")


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
