"""Which tokens ``lit-depth tokens --knockout`` hides together: the image, every word, or positions that are given."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from lit_depth.functional.arguments import shorten

MOST_WORDS = 256  # each costs as much as half of all blocks, once for every block
_STARTS = ("▁", "Ġ")  # how tokenizers write the blank in front of a word
_LONGEST = 24  # characters of a span's text in its name
Kind = Literal["image", "word", "span"]


class Span(NamedTuple):
    """Tokens that are hidden together; the name says where they stand, so that no two are called alike."""

    name: str
    kind: Kind
    positions: list[int]


def knockout_spans(
    arguments: Any, prompts: Sequence[Any], kinds: Sequence[Sequence[str]], ids: Sequence[Sequence[int]], tokenizer: Any
) -> list[list[Span]]:
    """Spans of every prompt: those that ``arguments.span`` names, else the image and the words.

    Raises:
        ValueError: A prompt without any, or one that has other positions; the message names it.
    """
    given, found = arguments.span and parse_spans(arguments.span), []
    for prompt, of_prompt, tokens in zip(prompts, kinds, ids):
        try:
            spans = given_spans(given, tokens, tokenizer) if given else default_spans(of_prompt, tokens, tokenizer)
        except ValueError as error:
            raise ValueError(f"{prompt.name}: {error}") from error
        if not spans:
            raise ValueError(
                f"{prompt.name}: --knockout needs an image, or text between the start token and the final one"
            )
        found.append(spans)
    return found


def parse_spans(texts: Sequence[str]) -> list[list[int]]:
    """Positions of spans such as ``3-7`` (both ends belong to it) or ``5``.

    >>> parse_spans(["3-5", "9"])
    [[3, 4, 5], [9]]

    Raises:
        ValueError: A text of another form, or an end before its start.
    """
    found = []
    for text in texts:
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", str(text).strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first > 10**6:
            raise ValueError(f"--span: expected positions such as 3-7 or 5, got {shorten(text)}")
        found.append(list(range(first, last + 1)))
    return [span for place, span in enumerate(found) if span not in found[:place]]


def given_spans(positions: Sequence[Sequence[int]], token_ids: Sequence[int], tokenizer: Any) -> list[Span]:
    """Spans of a prompt by their positions.

    Raises:
        ValueError: A position behind the prompt's end.
    """
    found = []
    for span in positions:
        if span[-1] >= len(token_ids):
            raise ValueError(f"--span: expected positions from 0 to {len(token_ids) - 1}, got {span[-1]}")
        found.append(_named(tokenizer.decode([token_ids[place] for place in span]), "span", list(span)))
    return found


def default_spans(kinds: Sequence[str], token_ids: Sequence[int], tokenizer: Any) -> list[Span]:
    """The image as one span, and every word of the text; the start token and the final one belong to none.

    Args:
        kinds: ``vision``, ``text`` or another of each token.
        token_ids: The prompt.
        tokenizer: Says what the tokens are.

    Raises:
        ValueError: More than `MOST_WORDS` words.
    """
    image = [place for place, kind in enumerate(kinds[:-1]) if kind == "vision"]
    words: list[list[int]] = []
    for place, kind in enumerate(kinds[:-1]):
        if kind != "text":
            continue
        if words and words[-1][-1] == place - 1 and not _starts_word(token_ids[place], tokenizer):
            words[-1].append(place)
        else:
            words.append([place])
    if len(words) > MOST_WORDS:
        raise ValueError(
            f"--knockout hides every word on its own, expected at most {MOST_WORDS}, got {len(words)}: name the "
            "positions to hide, --span 3-7 9"
        )
    spans = [_named("image", "image", image)] if image else []
    return spans + [_named(tokenizer.decode([token_ids[i] for i in word]), "word", word) for word in words]


def _starts_word(token_id: int, tokenizer: Any) -> bool:
    """Whether a token begins with a blank, or stands for itself."""
    text, piece = tokenizer.decode([token_id]), str(tokenizer.convert_ids_to_tokens(token_id))
    return text[:1].isspace() or piece.startswith(_STARTS) or token_id in tokenizer.all_special_ids


def _named(text: str, kind: Kind, positions: list[int]) -> Span:
    first, last = positions[0], positions[-1]
    where = str(first) if first == last else f"{first}-{last}"
    text = " ".join(text.split())
    return Span(f"{text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'} [{where}]", kind, positions)
