"""MMMU: multiple choice and open questions, read by the rules of the official parser."""

import ast
import math
import re
from collections.abc import Sequence

from lit_depth.functional.arguments import checked
from lit_depth.functional.choices import option_letters
from lit_depth.metrics.base import ChoiceMetric, check_references
from lit_depth.metrics.text import clean_prediction

# Words after which an open answer is expected to follow, in the order of the official parser.
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = set(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?\d+(?:\.\d+)?[eE][-+]?\d+"),  # 1.2e3
    re.compile(r"-?(?:\d*\.\d+|\d+\b)(?![eE][-+]?\d|[,\d])"),  # 1234, 1.5, .5, none of them a part of the others
)


@checked
def mmmu_accuracy(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if an MMMU question is answered right, else 0.0.

    The rules are those of the official parser (Yue et al., "MMMU", 2024, https://arxiv.org/abs/2311.16502), except that
    an answer in which it finds no option is wrong, where the official one draws an option at random.

    - With options: :func:`parse_mmmu_choice` reads the letter.
    - Without: what follows words such as "so" and "is", and every number in it, are candidates. Numbers are right if
      they equal a reference after rounding to two decimals; texts, if they contain one, without regard to case.

    A reference that is written as a list (``"['24/7', '3.429']"``, as the dataset has it) stands for its items.

    Args:
        prediction: Answer of the model.
        references: At least one accepted answer; with options, letters.
        options: Texts of the options in the order of their letters; empty for an open question.

    Returns:
        0.0 or 1.0.

    Raises:
        ValueError: If there is no reference or an empty one, or if ``references`` or ``options`` is a bare string.

    Example:
        >>> mmmu_accuracy("(B)", ["B"], ["$6", "$7"])
        1.0
        >>> mmmu_accuracy("It could be 41, so 42", ["42"])
        1.0
        >>> mmmu_accuracy("", ["A"], ["$6", "$7"])
        0.0
    """
    check_references(references)
    accepted = [item for reference in references for item in _items(reference)]
    if len(options):
        return float(parse_mmmu_choice(prediction, options) in accepted)
    if not all(item.strip() for item in accepted):  # it would be found in every answer
        raise ValueError(f"expected reference answers that are not empty, got {references!r}")
    targets = [form for item in accepted for form in _normalize(item)]
    return float(any(_matches(candidate, targets) for candidate in _open_candidates(prediction)))


@checked
def parse_mmmu_choice(prediction: str, options: Sequence[str]) -> str | None:
    """Letter of the option that an MMMU answer names, or None.

    An answer of several lines is reduced to one by :func:`~lit_depth.metrics.clean_prediction`. Then letters in
    brackets count, or else letters between spaces, or else, in answers of more than five words, texts of options; the
    last one wins. Letters are capitals. Note that the article in "A big dog" is read as option A. An option with an
    empty text has a letter of its own, as in the prompt and in the dataset's answers (Molmo's evaluator leaves such
    options out, and then reads the letters behind them as other ones).

    Args:
        prediction: Answer of the model.
        options: Texts of the options, in the order of their letters.

    Returns:
        A capital letter, or None.

    Raises:
        ValueError: If no option has a text, if there are more than 26, or if ``options`` is a bare string.

    Example:
        >>> parse_mmmu_choice("I believe that the cost is $7 dollars", ["$6", "$7"])
        'B'
        >>> parse_mmmu_choice("b", ["$6", "$7"]) is None
        True
    """
    letters = option_letters(options)
    answer = clean_prediction(prediction)
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    answer = f" {answer} "
    positions = {letter: answer.rfind(f"({letter})") for letter in letters}
    if max(positions.values()) < 0:
        positions = {letter: answer.rfind(f" {letter} ") for letter in letters}
    if max(positions.values()) < 0 and len(answer.split()) > 5:
        positions = {
            letter: answer.lower().rfind(text.lower()) if text.strip() else -1 for letter, text in zip(letters, options)
        }
    last = max(positions, key=positions.__getitem__)
    return last if positions[last] >= 0 else None


def _items(reference: str) -> list[str]:
    if reference.lstrip().startswith("["):
        try:
            return [str(item) for item in ast.literal_eval(reference.strip())]
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # a text that only begins with a bracket
            pass
    return [reference]


def _open_candidates(prediction: str) -> list[str | float]:
    """Texts and numbers of an open answer that are compared with the references."""
    answer = prediction.strip().strip(".").lower()
    lines = answer.split("\n")
    # an equation counts in the last line only
    tails = [*(_tail(line, _INDICATORS) for line in lines[:-1]), _tail(lines[-1], (*_INDICATORS, "="))]
    texts = [tail for tail in tails if tail and tail not in _TRIVIAL] or [answer]
    numbers = [number for text in texts for pattern in _NUMBERS for number in pattern.findall(text)]
    return [form for text in texts + numbers for form in _normalize(text)]


def _tail(line: str, indicators: Sequence[str]) -> str:
    """Shortest text that follows the last occurrence of an indicator; empty if there is none."""
    shortest = ""
    for indicator in indicators:
        if indicator in line:
            tail = line.rpartition(indicator)[2].strip()
            # an empty text is replaced even by a longer one
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _normalize(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the lower-cased text; a single letter only matches where a word ends."""
    text = text.strip()
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        number = math.nan  # which is a text too: it equals no number
    if not math.isnan(number):
        return [round(number, 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _matches(candidate: str | float, targets: list[str | float]) -> bool:
    if isinstance(candidate, float):
        return candidate in targets
    return any(target in candidate for target in targets if isinstance(target, str))


class MMMUAccuracy(ChoiceMetric):
    """Share of MMMU questions answered right; see :func:`mmmu_accuracy`.

    The state ``parse_failed`` counts the predictions for questions with options that name none.

    Example:
        >>> metric = MMMUAccuracy()
        >>> metric.update(["B", "42.0", "?"], [["B"], ["42"], ["A"]], options=[["$6", "$7"], [], ["$6", "$7"]])
        >>> metric.compute(), metric.parse_failed
        (tensor(0.6667), tensor(1))
    """

    also: tuple[str, ...] = ("chat_choice",)

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0.0 or 1.0."""
        return mmmu_accuracy(prediction, references, options)

    @staticmethod
    def parses(prediction: str, options: Sequence[str] = ()) -> bool:
        """Whether the prediction names an option; an open answer always parses."""
        return not options or parse_mmmu_choice(prediction, options) is not None
