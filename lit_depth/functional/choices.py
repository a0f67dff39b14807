"""The letters of multiple choice: prompts, answers and metrics number the options by this one list."""

import string
from collections.abc import Sequence

MAX_OPTIONS = len(string.ascii_uppercase)


def option_letters(options: Sequence[str]) -> str:
    """Letters of the options, one for each; an empty text has one too, because answers count it.

    >>> option_letters(["a cat", "", "a dog"])
    'ABC'

    Raises:
        ValueError: If no option has a text, there are more than 26, or ``options`` is a bare string.
    """
    if isinstance(options, str) or len(options) > MAX_OPTIONS or not any(option.strip() for option in options):
        raise ValueError(f"expected options as a list of 1 to {MAX_OPTIONS} texts, not all empty, got {options!r}")
    return string.ascii_uppercase[: len(options)]
