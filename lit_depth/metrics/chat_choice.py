"""Multiple choice as chat models answer it: in bold, in a box, or in a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_depth.functional.arguments import checked
from lit_depth.functional.choices import option_letters
from lit_depth.metrics.base import ChoiceMetric, check_references
from lit_depth.metrics.multiple_choice import parse_whole
from lit_depth.metrics.text import clean_prediction

# Letters are capitals, and followed by no word: "Answer A" is a choice, "the answer is A dog" is not.
_ENDS = (
    r"(?=[)\]*_`]*(?:[.,:;!?)]|\s*$|\s*\n|\s*[-\u2013\u2014]\s"
    r"|\s+(?i:because|since|as|is|not|rather\s+than|instead\s+of)\b))"
)
_LETTER = rf"[\s*_`]*[(\[]?([A-Z])[)\]]?{_ENDS}"
_BOXED = re.compile(
    r"\\boxed\{\s*(?:\\(?:text|math)[a-z]*\{)?\(?([A-Z])\)?\}?\s*\}|<answer>\s*\(?([A-Z])\)?\s*</answer>"
)
_STATED = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)\b(?:\s+(?:to|for)\s+(?:the|this)\s+question)?"
    rf"(?:\s+(?:is|would\s+be|should\s+be|must\s+be))?)[\s*_`]*[:-]?{_LETTER}"
    rf"|(?i:\b(?:choose|pick|select|go(?:ing)?\s+with)\b){_LETTER}"
    r"|(?<![\w'])([A-Z])[)\]*_`]*\s+(?i:is\s+(?:the\s+)?(?:correct|right|best|answer)\b)"
)
_EMPHASISED = re.compile(r"(?<![\w*_`])[*_`]{1,3}\s*[(\[]?([A-Z])(?=[.:)\]*_`]|\s*[-\u2013\u2014])")
_BRACKETED = re.compile(r"\[([A-Z])\]|\(([A-Z])\)")
_LEADING = re.compile(r"^[(\[]?([A-Z])[)\]]?(?:[.:,)]|\s+(?i:because|since|as|is)\b|\s*[-\u2013\u2014])")
_LISTED = re.compile(r"(?<![\w'])([A-Z])[)\]]?[.:)](?=\s)")
_CLAUSE = re.compile(r"[.,;:!?\n]|\b(?:but|so)\b", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"\b(?:not|never|neither|nor|cannot|except|instead\s+of|rather\s+than|wrong|incorrect|eliminate|exclude|rule\s+out)\b"
    r"|n['\u2019]t\b",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"[)\]}*_`'\"]*\s+(?:(?:is|are|was|were|seems|looks)\s+(?:\w+\s+)?(?:not|wrong|incorrect|false|excluded|eliminated)\b"
    r"|\w+n['\u2019]t\b|cannot\b|(?:does|do|can)\s+not\b)",
    re.IGNORECASE,
)
# a further letter of a list: "A, B", "A or B", "A. B."; not the article in "B. A cat"
_NEXT = re.compile(
    r"[)\]*_`]*\s*(?:[.,:;/&]|\band\b|\bor\b)*\s*(?:and\s+|or\s+)?[*_`(\[]*([A-Z])"
    r"(?=[.,:;)\]*_`/&]|\s*$|\s+(?:and|or)\b)"
)


@checked
def parse_chat_choice(prediction: str, options: Sequence[str]) -> str | None:
    r"""Letter of the option that a chat model's answer names, or None.

    An answer that is a letter or the text of an option, and nothing else, is that. In others these are looked for, the
    clearest that is there: ``\boxed{B}``; "option B", "the answer is B", "I choose B", "B is correct"; a line that is a
    letter or the text of an option; ``**B**``; ``(B)``, ``[B]``; and a letter at the beginning, as in "B. a cat" or "B
    because ...". It has to name exactly one option, in the whole answer or else in its last line, where the conclusion
    stands. A letter that is denied ("not C", "(A) is wrong") does not count, and of a list ("A, B"; the options once
    more) there is none. Nothing is guessed.

    Args:
        prediction: Answer of the model.
        options: Texts of the options, in the order of their letters.

    Returns:
        A capital letter, or None.

    Raises:
        ValueError: As `lit_depth.metrics.parse_choice`.

    Example:
        >>> [parse_chat_choice(text, ["dog", "cat"]) for text in ("**B**", "Option B", "B because it purrs", "A or B")]
        ['B', 'B', 'B', None]
    """
    letters, answer = set(option_letters(options)), prediction.strip()
    whole = parse_whole(clean_prediction(answer) if "Answer:" in answer else answer, options)
    if whole is not None:
        return whole
    listed = letters & set(_LISTED.findall(answer))
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    alone = {letter for line in lines if (letter := parse_whole(line, options)) is not None}
    for text in (answer, *lines[-1:]):
        boxed, stated, emphasised, bracketed, leading = (
            _named(form, text, letters) for form in (_BOXED, _STATED, _EMPHASISED, _BRACKETED, _LEADING)
        )
        if leading:  # the options once more begin with a letter too
            leading |= listed
        # a weaker kind does not settle what a stronger one leaves open
        found = boxed or stated or alone or emphasised or bracketed or leading
        if len(found) == 1 and found <= letters:
            return next(iter(found))
    return None


def _named(form: re.Pattern[str], text: str, letters: set[str]) -> set[str]:
    """Letters that stand in a form and are not denied, each with the one that follows it in a list."""
    found: set[str] = set()
    for match in form.finditer(text):
        place = next(group for group in range(1, form.groups + 1) if match[group])
        before, after = _CLAUSE.split(text[: match.start()])[-1], text[match.end(place) :]
        if _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after):
            continue
        further = _NEXT.match(after)
        found |= {match[place], *({further[1]} & letters if further else ())}
    return found


class ChatChoiceAccuracy(ChoiceMetric):
    """Share of samples whose answer names the right option, read by :func:`parse_chat_choice`.

    Of datasets with an official reading it is the second score, never the official one.

    Example:
        >>> metric = ChatChoiceAccuracy()
        >>> metric.update(["**B**", "it purrs"], [["B"], ["B"]], options=[["dog", "cat"]] * 2)
        >>> metric.compute(), metric.parse_failed
        (tensor(0.5000), tensor(1))
    """

    also: tuple[str, ...] = ("multiple_choice",)
    reads_whole = True

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0.0 or 1.0; the references are the letters of right options."""
        check_references(references)
        return float(parse_chat_choice(prediction, options) in references)

    @staticmethod
    def parses(prediction: str, options: Sequence[str] = ()) -> bool:
        """Whether the answer names an option."""
        return parse_chat_choice(prediction, options) is not None
