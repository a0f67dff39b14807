from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from lit_depth.data.tasks.shapes_vqa import COLORS, NUMBERS, SHAPES, draw_shapes_image
from lit_depth.models.loading import BUNDLED
from lit_depth.recipes.shapes_tokenizer import EASY_COLORS, EASY_SHAPES, IMAGE_TOKENS, build_tokenizer

PLACES = ("top", "middle", "bottom", "left", "right")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_vocabulary(tokenizer):
    assert len(tokenizer) < 480
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == (
        "<|endoftext|>",
        "<|endoftext|>",
        "<|padding|>",
    )
    assert tokenizer.eos_token_id == 0 and tokenizer.pad_token_id == 1
    expected = list(range(len(tokenizer) - 5, len(tokenizer)))
    assert tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS)) == expected


@pytest.mark.parametrize(
    "answer", sorted({*COLORS, *SHAPES, *NUMBERS, "yes", "no", "above", "below", *PLACES, *EASY_COLORS, *EASY_SHAPES})
)
def test_an_answer_is_one_token(tokenizer, answer):
    assert len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) == 1


def test_a_word_of_the_task_is_one_token(tokenizer):
    for index in range(100):
        weights = {"color": 0.1, "count": 0.2, "existence": 0.1, "relation": 0.2, "place": 0.2, "hop": 0.2}
        for question in draw_shapes_image(0, "train", index, weights).questions:
            tokens = tokenizer.tokenize(f" User: vqa2: {question.text} Assistant:")
            words = [" User", ":", " vqa", "2", ":"]
            words += [f" {word}" for word in question.text.removesuffix("?").split()] + ["?", " Assistant", ":"]
            assert [tokenizer.convert_tokens_to_string([token]) for token in tokens] == words


@pytest.mark.parametrize("text", ["plain text", "Où est 😀?\n\t two  spaces ", "数字 1234567890 {}~", ""])
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_image_tokens_are_not_split(tokenizer):
    ids = tokenizer("<im_start><im_patch> x", add_special_tokens=False)["input_ids"]
    assert ids[:2] == tokenizer.convert_tokens_to_ids(["<im_start>", "<im_patch>"])


@pytest.mark.slow
def test_same_tokenizer_in_every_process(tokenizer):
    code = (
        "from lit_depth.recipes.shapes_tokenizer import build_tokenizer; import hashlib;"
        "print(hashlib.sha256(build_tokenizer().backend_tokenizer.to_str().encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


@pytest.mark.parametrize(
    "question",
    [
        "does the image not contain a teal shape?",
        "is there not a gray shape in the image?",
        "what is the color of the rectangle?",
        "is no brown shape present?",
    ],
)
def test_a_word_of_easy_vqa_is_one_token(tokenizer, question):
    words = question.removesuffix("?").split()
    assert len(tokenizer.tokenize(f" {question}")) == len(words) + 1


def test_the_bundled_models_tokenizer_is_this_one(tokenizer):
    stored = AutoTokenizer.from_pretrained(BUNDLED)
    assert stored.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert stored.init_kwargs["padding_side"] == tokenizer.padding_side == "left"
    assert (stored.bos_token, stored.eos_token, stored.pad_token) == (
        tokenizer.bos_token,
        tokenizer.eos_token,
        tokenizer.pad_token,
    )


def test_the_bundled_model_has_room_for_all_words(tokenizer):
    config = json.loads((BUNDLED / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer) <= config["embedding_size"] and config["embedding_size"] % 16 == 0


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 0, 1)
