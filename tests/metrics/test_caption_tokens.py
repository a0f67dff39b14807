"""Words of captions: the reference vectors, and sentences whose words the Java tokenizer gave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_depth.metrics import tokenize_caption


def test_equals_reference_vectors(vectors) -> None:
    for vector in vectors("ptb_tokenizer"):
        assert " ".join(tokenize_caption(vector["input"])) == vector["ptb_tokenized"], vector["id"]


def test_predicted_captions_equal_reference_vectors(vectors) -> None:
    for vector in vectors("cider"):
        words = [" ".join(tokenize_caption(item["prediction"])) for item in vector["items"]]
        assert words == vector["scores"]["tokenized_preds"], vector["id"]


# Recorded from Stanford CoreNLP 3.4.1, PTBTokenizer -preserveLines -lowerCase, the 17 marks removed.
RECORDED = [
    ("The dog can't, won't, cannot and could not go.", "the dog ca n't wo n't can not and could not go"),
    (
        "I'm gonna wanna gotta lemme gimme dunno 'tis 'twas",
        "i 'm gon na wan na got ta lem me gim me dunno 't is 't was",
    ),
    (
        "They're we've she'll he'd y'all o'clock rock 'n' roll",
        "they 're we 've she 'll he 'd y' all o'clock rock 'n' roll",
    ),
    ("The boys' bikes and the boss's hat", "the boys bikes and the boss 's hat"),
    (
        "Dr. Smith and Mr. Jones on St. James St. near Mt. Hood.",
        "dr. smith and mr. jones on st. james st. near mt. hood",
    ),
    ('A sign that says "STOP" on it.', "a sign that says stop on it"),
    ("A sign that says 'stop' on it", "a sign that says stop on it"),
    ("An old-fashioned photo (taken in 1950) of a man", "an old-fashioned photo -lrb- taken in 1950 -rrb- of a man"),
    ("A 1/2 pizza, 3/4 of it is 1 1/2 gone", "a 1/2 pizza 3/4 of it is 1 1/2 gone"),
    ("10% of 1,000 people; 3.5 m; .5 kg", "10 % of 1,000 people 3.5 m .5 kg"),
    ("Price: $5.00, £3, €4, 50¢ and ¥100", "price $ 5.00 # 3 $ 4 50 cents and ¥ 100"),
    ("at 10:30 a.m. or 5 p.m. on Jan. 5, 2010", "at 10:30 a.m. or 5 p.m. on jan. 5 2010"),
    ("The U.K. and U.S.A. are here.", "the u.k. and u.s.a. are here"),
    ("A woman ... smiling...", "a woman smiling"),
    ("wow!!! what??? huh?! ok!", "wow !!! what ??? huh ?! ok"),
    ("a--b a - b a -- b a–b a—b a---b", "a b a b a b a b a b a b"),
    ("a/b c_d a*b a+b a=b a&b a & b AT&T R&B", "a/b c_d a * b a + b a = b a & b a & b at&t r&b"),
    ("No. 5 and no. 5 and no.", "no. 5 and no. 5 and no"),
    ("1st 2nd 3rd 20s 1990's '90s 80's", "1st 2nd 3rd 20s 1990 's '90s 80 's"),
    ("T-shirt t-shirts x-ray", "t-shirt t-shirts x-ray"),
    ("A man,a dog and a cat", "a man a dog and a cat"),
    ("“curly” ‘single’ it’s don’t", "curly single it 's do n't"),
    ("a J. Crew store, plan B. The man", "a j. crew store plan b the man"),
    ("approx. 5 ft. tall and 10 in. wide", "approx 5 ft. tall and 10 in wide"),
    ("mother- and father-in-law, a stop-sign's red", "mother and father-in-law a stop-sign 's red"),
    ("12:30pm, 5x7, a ford f-150", "12:30 pm 5x7 a ford f-150"),
    ("a ball #1 in the #worldcup by @someone", "a ball # 1 in the #worldcup by @someone"),
    ("naïve café 😀 smile", "naïve café smile"),
]


@pytest.mark.parametrize(("text", "expected"), RECORDED)
def test_recorded(text: str, expected: str) -> None:
    assert " ".join(tokenize_caption(text)) == expected


plain = st.lists(st.sampled_from(["a", "dog", "runs", "t-shirt", "10", "red"]), max_size=8)


@given(plain, st.sampled_from([" ", "  ", "\t", "\n"]), st.sampled_from(["", ".", "!", "?", "..."]))
def test_plain_words_stay_themselves(words: list[str], space: str, end: str) -> None:
    text = space.join(words).upper() + end
    # a single letter before a period at the end is a word like any other
    assert tokenize_caption(text) == words


@given(st.text(max_size=40))
def test_any_text_gives_lower_case_words_without_space(text: str) -> None:
    for word in tokenize_caption(text):
        assert word and word == word.lower() and not any(character.isspace() for character in word)


def test_long_garbage_takes_no_time() -> None:
    for piece in ("a", "a.", "a-", "1,", "'", "@", "a@", "<a", "http://", ".", "!?"):
        tokenize_caption(piece * 5000)
