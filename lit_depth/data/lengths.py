"""How long a prompt may be, in tokens, and a bound for texts that are too long to be worth tokenising."""

import weakref
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

from tokenizers import models
from transformers.convert_slow_tokenizer import bytes_to_unicode

HUGE = 100_000  # characters, which take a tokenizer a few tenths of a second
# by tokenizer, for as long as it lives
_MOST_OF_EACH: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()


class PromptLimit(NamedTuple):
    """How many tokens a prompt may have.

    Attributes:
        tokens: Largest number, tokens of images included.
        origin: Where it comes from, for messages.
        context: Tokens of prompt and reference answer together; None = no limit.
    """

    tokens: int
    origin: str
    context: int | None = None

    def refusal(self, num_tokens: int, num_answer: int, at_least: str = "", of_images: int = 0) -> str | None:
        """Why a prompt of so many tokens, and its reference answer, cannot be evaluated; None if they can.

        Args:
            of_images: Tokens of the prompt that carry image features.
        """
        if num_tokens > self.tokens:
            share = f" ({of_images:,} of images: --model.processor_kwargs makes them smaller)" if of_images else ""
            return (
                f"the prompt has {at_least}{num_tokens:,} tokens{share}, the limit is {self.tokens:,} ({self.origin})"
            )
        if self.context is not None and num_tokens + num_answer > self.context:
            return (
                f"the reference answer has {at_least}{num_answer:,} tokens behind a prompt of {num_tokens:,}, the "
                f"model's context is {self.context:,}"
            )
        return None


def fewest_tokens(tokenizer: Any, text: str) -> int:
    """A number of tokens that a text surely has, found without tokenising it: a megabyte takes 0.1 s instead of 2 to 7.

    A token stands for a piece of the text. So of every byte (or character) the text has at most as many as its tokens
    times the most of it that any token of the vocabulary has.

    Only for byte-level BPE, and BPE that falls back to bytes, is there a bound (else 0): others may leave parts of a
    text out, or stand one token for any unknown stretch.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.BPE):
        return 0
    pre_tokenizer, added = repr(backend.pre_tokenizer), tokenizer.added_tokens_decoder.values()
    by_bytes = "ByteLevel" in pre_tokenizer
    swallows = "Removed" in pre_tokenizer or any(token.lstrip or token.rstrip for token in added)
    if swallows or not (by_bytes or backend.model.byte_fallback):
        return 0
    if tokenizer not in _MOST_OF_EACH:
        _MOST_OF_EACH[tokenizer] = _most_of_each(tokenizer.get_vocab(), [token.content for token in added], by_bytes)
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    counts = Counter(_as_characters(text) if by_bytes else text)
    # a character that no token has is spelt in bytes, of which each is a token
    return max((-(-count // _MOST_OF_EACH[tokenizer].get(each, 1)) for each, count in counts.items()), default=0)


def _most_of_each(vocabulary: Iterable[str], added: Iterable[str], by_bytes: bool) -> dict[str, int]:
    """The most of each character that a token has.

    >>> _most_of_each(["a", "aba"], ["bb"], by_bytes=True)
    {'a': 2, 'b': 2}
    """
    most: dict[str, int] = {}
    # tokens of byte-level BPE are spelt in characters that stand for bytes, added ones are plain text
    for token in chain(vocabulary, map(_as_characters, added) if by_bytes else added):
        for each in set(token):
            most[each] = max(most.get(each, 1), token.count(each))
    return most


def _as_characters(text: str) -> str:
    """The bytes of a text, as the characters that byte-level BPE writes for them."""
    return text.encode("utf-8", "replace").decode("latin-1").translate(bytes_to_unicode())
