"""Multiple choice as chat models answer it: in bold, in a box, or in a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_depth.functional.arguments import checked
from lit_depth.metrics.base import ChoiceMetric, check_references
from lit_depth.metrics.multiple_choice import parse_choice

_MARKED = re.compile(
    r"\\boxed\{\s*(?:\\text\{)?\(?([A-Z])\)?\}?\s*\}|\*\*\s*\(?([A-Z])\)?(?=[.:)\s*])|\[([A-Z])\]|\(([A-Z])\)"
)
# Capitals only, and not "A" before a word: "Answer A" is a choice, "the answer is A dog" is not.
_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)\b(?:\s+is)?)\s*:?\s*\**\(?([A-Z])\)?(?=\**(?:[.,:;)!*]|\s*$|\s+(?i:because|since|as)\b))"
)
_LEADING = re.compile(r"\(?([A-Z])\)?(?:[.:,)]|\s+(?i:because|since|as|is)\b|\s*[-\u2013\u2014])")


@checked
def parse_chat_choice(prediction: str, options: Sequence[str]) -> str | None:
    """Letter of the option that a chat model's answer names, or None.

    First comes the strict reading of `lit_depth.metrics.parse_choice`. Where it finds nothing, these are read, the
    first kind of which names exactly one option: ``\\boxed{B}``, ``**B**``, ``[B]``, ``(B)``; "option B", "answer B",
    "the correct choice is B"; and a letter at the beginning, as in "B because ...". Of several sentences the last one
    counts, where the reasoning before it names other options. Nothing is guessed.

    Args:
        prediction: Answer of the model.
        options: Texts of the options, in the order of their letters.

    Returns:
        A capital letter, or None.

    Raises:
        ValueError: As `parse_choice`.

    Example:
        >>> [parse_chat_choice(text, ["dog", "cat"]) for text in ("**B**", "Option B", "B because it purrs", "A or B")]
        ['B', 'B', 'B', None]
    """
    strict = parse_choice(prediction, options)
    if strict is not None:
        return strict
    letters = {chr(ord("A") + place) for place in range(len(options))}
    lines = [line for line in prediction.strip().splitlines() if line.strip()]
    # the whole answer first; of a longer one its last line, which is where the conclusion stands
    for text in (prediction.strip(), *lines[-1:]):
        named = [{"".join(groups) for groups in pattern.findall(text)} for pattern in (_MARKED, _NAMED)]
        leading = _LEADING.match(text)
        for found in (*named, {leading[1]} if leading else set()):
            if len(found & letters) == 1 and found <= letters:
                return next(iter(found))
    return None


class ChatChoiceAccuracy(ChoiceMetric):
    """Share of samples whose answer names the right option, read by :func:`parse_chat_choice`.

    Of datasets with an official reading it is the second score, never the official one.

    Example:
        >>> metric = ChatChoiceAccuracy()
        >>> metric.update(["**B**", "it purrs"], [["B"], ["B"]], options=[["dog", "cat"]] * 2)
        >>> metric.compute(), metric.parse_failed
        (tensor(0.5000), tensor(1))
    """

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Score of one answer, 0.0 or 1.0; the references are the letters of right options."""
        check_references(references)
        return float(parse_chat_choice(prediction, options) in references)

    @staticmethod
    def parses(prediction: str, options: Sequence[str] = ()) -> bool:
        """Whether the answer names an option."""
        return parse_chat_choice(prediction, options) is not None
