"""Multiple choice answered with a letter (science_qa_img)."""

import re
from collections.abc import Sequence

from lit_depth.functional.arguments import checked
from lit_depth.functional.choices import option_letters
from lit_depth.metrics.base import ChoiceMetric, check_references

_LETTER = re.compile(r"\(([A-Za-z])\)[.:]?|([A-Za-z])[.:)]?")
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-Za-z])\)[.:]?|([A-Za-z])[.:)])\s.*", re.DOTALL)
# Capitals only: "the answer is a" may be the beginning of "a dog".
_STATEMENT = re.compile(r"(?i:\banswer(?:\s+is)?\s*:|\banswer\s+is\b)\s*(?:\(([A-Z])\)|([A-Z])(?=[.,:;)!]|\s*$))")


@checked
def parse_choice(prediction: str, options: Sequence[str]) -> str | None:
    """Letter of the option that an answer names, or None.

    Understood are, in this order: a letter alone (``B``, ``b``, ``(B)``, ``B.``, ``B:``, ``B)``); the exact text of one
    option, but for case, white space and a final period; a letter with a text after it (``B. a cat``); and one letter
    after "answer is" or "answer:" (``The answer is B.``). Letters beyond the last option are not understood. Nothing is
    guessed: an answer that names two options, or none, is None.

    Args:
        prediction: Answer of the model.
        options: Texts of the options, in the order of their letters.

    Returns:
        A capital letter, or None.

    Raises:
        ValueError: If there are no options, more than 26, or if ``options`` is a bare string.

    Example:
        >>> parse_choice("The answer is B.", ["dog", "cat"])
        'B'
        >>> parse_choice("A or B", ["dog", "cat"]) is None
        True
    """
    letters = option_letters(options)
    answer = prediction.strip()
    if (whole := parse_whole(answer, options)) is not None:
        return whole
    stated = {"".join(groups) for groups in _STATEMENT.findall(answer)}
    for candidates in (_letter(_LETTER_AND_TEXT, answer), stated):
        if len(candidates) == 1 and set(candidates) <= set(letters):
            return next(iter(candidates))
    return None


def parse_whole(prediction: str, options: Sequence[str]) -> str | None:
    """Letter of the option that is all that an answer says: a letter, or the exact text of one option; or None.

    >>> [parse_whole(text, ["dog", "cat"]) for text in ("(b)", "Cat.", "B. cat")]
    ['B', 'B', None]
    """
    letters, text = option_letters(options), _normalize(prediction)
    same_text = [letter for letter, option in zip(letters, options) if text and _normalize(option) == text]
    for candidates in (_letter(_LETTER, prediction.strip()), same_text):
        if len(candidates) == 1 and set(candidates) <= set(letters):
            return candidates[0]
    return None


def _letter(pattern: re.Pattern[str], text: str) -> list[str]:
    match = pattern.fullmatch(text)
    return [(match[1] or match[2]).upper()] if match else []


def _normalize(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()


@checked
def multiple_choice_accuracy(prediction: str, options: Sequence[str], answer: str | int) -> float:
    """1.0 if the prediction names the right option, else 0.0.

    :func:`parse_choice` says what counts as naming an option. An answer that names none is wrong. Evaluators of
    ScienceQA that fall back to the first option or to a random one (Lu et al., "Learn to Explain", 2022,
    https://arxiv.org/abs/2209.09513) give garbage the score of chance; this one does not.

    Args:
        prediction: Answer of the model.
        options: Texts of the options, in the order of their letters.
        answer: The right option, as a letter or as an index from 0.

    Returns:
        0.0 or 1.0.

    Raises:
        ValueError: If there are no options, more than 26, if ``options`` is a bare string, or if ``answer`` is none of
            them.

    Example:
        >>> multiple_choice_accuracy("(b)", ["dog", "cat"], "B")
        1.0
        >>> multiple_choice_accuracy("", ["dog", "cat"], 0)
        0.0
    """
    letters = option_letters(options)
    accepted = letters[answer : answer + 1] if isinstance(answer, int) and answer >= 0 else answer
    if not isinstance(accepted, str) or len(accepted) != 1 or accepted not in letters:
        raise ValueError(f"expected an answer out of {', '.join(letters)} or its index, got {answer!r}")
    return float(parse_choice(prediction, options) == accepted)


class MultipleChoiceAccuracy(ChoiceMetric):
    """Share of samples whose prediction names the right option; see :func:`multiple_choice_accuracy`.

    References are letters. The state ``parse_failed`` counts the predictions that name no option. Commands read
    the answers as a chat model's besides.

    Example:
        >>> metric = MultipleChoiceAccuracy()
        >>> metric.update(["B", "a cat, I think"], [["B"], ["B"]], options=[["dog", "cat"]] * 2)
        >>> metric.compute(), metric.parse_failed
        (tensor(0.5000), tensor(1))
    """

    also: tuple[str, ...] = ("chat_choice",)

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0.0 or 1.0; the references are the letters of right options."""
        check_references(references)
        return max(multiple_choice_accuracy(prediction, options, reference) for reference in references)

    @staticmethod
    def parses(prediction: str, options: Sequence[str] = ()) -> bool:
        """Whether the prediction names an option."""
        return parse_choice(prediction, options) is not None
