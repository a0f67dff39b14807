"""Which tokens are hidden together: the image, words as the tokenizer writes them, or given positions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lit_depth.studies.tokens import knockout_spans as module
from lit_depth.studies.tokens.knockout_spans import default_spans, given_spans, knockout_spans, parse_spans

PIECES = ["<s>", "<image>", "<image>", "Ġwhat", "Ġcol", "or", "▁is", "?", "</s>", ":"]


class Tokenizer:
    """Tokens are indices into `PIECES`; a leading blank is lost in decoding for one of its two marks."""

    all_special_ids = (0, 8)

    def decode(self, ids):
        return "".join(PIECES[i].replace("Ġ", " ").replace("▁", "") for i in ids)

    def convert_ids_to_tokens(self, token_id):
        return PIECES[token_id]


KINDS = ["start", "vision", "vision", *["text"] * 7]
IDS = list(range(len(PIECES)))


def test_the_image_is_one_span_and_every_word_another():
    spans = default_spans(KINDS, IDS, Tokenizer())
    assert [(span.name, span.kind, span.positions) for span in spans] == [
        ("image [1-2]", "image", [1, 2]),
        ("what [3]", "word", [3]),
        ("color [4-5]", "word", [4, 5]),
        ("is? [6-7]", "word", [6, 7]),
        ("</s> [8]", "word", [8]),  # and the final token belongs to none
    ]
    assert default_spans(["start", "text"], [0, 9], Tokenizer()) == []


def test_words_do_not_go_on_behind_an_image():
    kinds = ["text", "text", "vision", "text", "text"]
    spans = default_spans(kinds, [3, 5, 1, 5, 9], Tokenizer())
    assert [span.positions for span in spans] == [[2], [0, 1], [3]]


def test_given_positions_hold_both_ends():
    found = given_spans(parse_spans(["3-5", "7", " 7 "]), IDS, Tokenizer())
    assert [(span.name, span.kind, span.positions) for span in found] == [
        ("what color [3-5]", "span", [3, 4, 5]),
        ("? [7]", "span", [7]),
    ]
    (long,) = given_spans([list(range(10))], IDS, Tokenizer())
    assert long.name == "<s><image><image> wha... [0-9]"


@pytest.mark.parametrize("text", ["", "a", "7-3", "-1", "3-", "1.5", "9" * 30, "0-9999999"])
def test_positions_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="--span: expected positions such as 3-7 or 5, got"):
        parse_spans([text])


def test_mistakes_name_the_prompt(monkeypatch):
    prompts = [SimpleNamespace(name="first"), SimpleNamespace(name="second")]
    both = (prompts, [KINDS, KINDS[:4]], [IDS, IDS[:4]], Tokenizer())
    with pytest.raises(ValueError, match="second: --span: expected positions from 0 to 3, got 5"):
        knockout_spans(SimpleNamespace(span=["2-5"]), *both)
    monkeypatch.setattr(module, "MOST_WORDS", 3)
    with pytest.raises(ValueError, match="first: .* at most 3, got 4: name the positions to hide, --span 3-7 9"):
        knockout_spans(SimpleNamespace(span=None), *both)
    with pytest.raises(ValueError, match="first: --knockout needs an image, or text"):
        knockout_spans(SimpleNamespace(span=None), prompts[:1], [["start", "text"]], [[0, 3]], Tokenizer())
