from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from lit_depth.data.tasks.shapes_vqa import COLORS, NUMBERS, SHAPES, draw_shapes_image
from lit_depth.recipes.shapes_tokenizer import IMAGE_TOKENS, build_tokenizer


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


@pytest.mark.parametrize("answer", [*COLORS, *SHAPES, *NUMBERS, "yes", "no", "above", "left"])
def test_an_answer_is_one_token(tokenizer, answer):
    assert len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) == 1


def test_a_word_of_the_task_is_one_token(tokenizer):
    for index in range(100):
        for question in draw_shapes_image(0, "train", index).questions:
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


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 0, 1)
