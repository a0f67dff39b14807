"""One prompt alone: what a processor gives for it, what a padded batch holds of it, and what its tokens are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_depth.functional import run_token_masking, token_masking
from lit_depth.functional.token_masking.prompt import encode_prompt, name_tokens, row_inputs, start_token, token_kinds
from lit_depth.models.loading import BUNDLED, load_bundled
from tests.helpers.tiny_models import IMAGE_TOKEN, tiny_batch, tiny_model

WORDS = ("<s>", "</s>", "NA", "null", "cat", "dog", "is", "a")


@pytest.fixture(scope="module")
def bundled():
    if not (BUNDLED / "model.safetensors").exists():
        pytest.skip("no bundled checkpoint")
    return load_bundled()


def word_tokenizer(adds_start: bool) -> PreTrainedTokenizerFast:
    """One token per word; with a start token in front of every text, or without."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_start:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def picture(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))


def assert_same_inputs(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].equal(value), name


# ---- encoding


@pytest.mark.parametrize("image", [None, picture(84, 56)], ids=["text", "image"])
def test_a_question_is_encoded_as_evaluation_does_it(bundled, image):
    _, processor = bundled
    text = "Is there a red cross?"
    expected = processor(images=None if image is None else [image], text=[text], padding_side="left")
    assert_same_inputs(encode_prompt(processor, text, image), dict(expected))


@pytest.mark.parametrize("image", [None, picture(84, 56)], ids=["text", "image"])
@pytest.mark.parametrize("start", ["", "<|endoftext|>"])
def test_a_raw_prompt_has_one_start_token_and_no_wrapping(bundled, image, start):
    _, processor = bundled
    text = " User: Is there a <|padding|> red cross?\n Assistant: yes"
    found = encode_prompt(processor, start + text, image, raw=True)
    expected = processor(images=image, text=text, apply_prompt_format=False)
    assert_same_inputs(found, dict(expected))
    assert found["input_ids"][0].tolist().count(processor.bos_token_id) == 1
    assert processor.tokenizer.convert_tokens_to_ids("<|padding|>") in found["input_ids"][0]  # parsed, not spelled


@pytest.mark.parametrize("adds_start", [True, False])
@pytest.mark.parametrize("raw", [True, False])
def test_a_tokenizer_gets_the_text_as_it_is(adds_start, raw):
    tokenizer = word_tokenizer(adds_start)
    assert not hasattr(tokenizer, "tokenizer") and start_token(tokenizer) == 0
    plain = encode_prompt(tokenizer, "cat is a dog", raw=raw)
    assert plain["input_ids"].tolist() == [[0] * adds_start + [4, 6, 7, 5]] and plain.keys() <= {
        "input_ids",
        "attention_mask",
    }
    with_start = encode_prompt(tokenizer, "<s> cat is </s>", raw=raw)["input_ids"].tolist()
    assert with_start == [[0] * (adds_start and not raw) + [0, 4, 6, 1]]
    assert encode_prompt(tokenizer, "<s>", raw=True)["input_ids"].tolist() == [[0]]


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_blank_prompts_are_refused(bundled, text):
    for processor in (bundled[1], word_tokenizer(True)):
        for raw in (True, False):
            with pytest.raises(ValueError, match="expected a prompt with text, got an empty one"):
                encode_prompt(processor, text, raw=raw)


def test_a_tokenizer_takes_no_image():
    with pytest.raises(ValueError, match="expected a processor that takes images, got the tokenizer"):
        encode_prompt(word_tokenizer(True), "cat", picture(3, 3))


# ---- rows of a batch


def test_a_row_of_a_batch():
    model = tiny_model("llava")
    batch = tiny_batch(model)
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    for row, padding in enumerate((0, 3, 1, 2)):
        found = row_inputs(batch, row)
        assert found["input_ids"].equal(batch["input_ids"][row : row + 1, padding:])
        assert found["attention_mask"].equal(torch.ones(1, 8 - padding, dtype=torch.long))
        assert found["position_ids"].equal(torch.arange(8 - padding)[None])
        assert found["pixel_values"].equal(batch["pixel_values"][row : row + 1])
        alone = model(**found).logits[0, -1]
        torch.testing.assert_close(alone, model(**batch).logits[row, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, r"input_ids \[batch, seq\]"),
        ({"input_ids": torch.ones(8, dtype=torch.long)}, r"input_ids \[batch, seq\]"),
        ({"attention_mask": torch.ones(4, 1, 8, 8)}, r"attention_mask \[4, 8\], got \[4, 1, 8, 8\]"),
        ({"pixel_values": torch.ones(40, 6)}, "pixel_values with one entry per row, got 40 for 4 rows"),
    ],
)
def test_batches_that_have_no_single_rows(change, message):
    with pytest.raises(ValueError, match=message):
        row_inputs(tiny_batch(tiny_model("llama")) | change, 0)


# ---- names and kinds


def test_every_token_has_its_text(bundled):
    model, processor = bundled
    image, text = picture(84, 56), "vqa2: Is there a cross?"
    frame = run_token_masking(model, processor, text, image=image, num_output_tokens=3, after_end=True)
    inputs = encode_prompt(processor, text, image)
    ids = inputs["input_ids"][0].tolist()
    plain = token_masking(model, inputs, 3, after_end=True)
    assert list(frame.columns) == [name.replace("token_id", "token_masked") for name in plain.columns]
    pd.testing.assert_frame_equal(frame.drop(columns="token_masked"), plain.drop(columns="token_id"))
    names = processor.tokenizer.convert_ids_to_tokens(plain["token_id"].tolist())
    assert frame["token_masked"].tolist() == [name.replace("Ġ", " ") for name in names]  # all whole words here
    assert frame.attrs["input_ids"] == ids
    generated = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, eos_token_id=None)
    assert frame.attrs["generated_text"] == processor.tokenizer.decode(generated[0, len(ids) :])


def test_the_end_token_is_the_last_that_is_generated(bundled):
    """The end token is the tokenizer's, which the model's own configuration need not name."""
    model, processor = bundled
    text, image = "vqa2: Is there a cross?", picture(84, 56)
    asked = encode_prompt(processor, text, image)
    answer = model.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :]
    known, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        frame = run_token_masking(model, processor, text, image=image, num_output_tokens=8)
    finally:
        model.generation_config.eos_token_id = known
    whole = run_token_masking(model, processor, text, image=image, num_output_tokens=8, after_end=True)
    assert frame.attrs["generated_text"] == processor.decode(answer) and len(whole.attrs["generated_ids"]) == 7
    assert frame.attrs["next_id"] == processor.tokenizer.eos_token_id and len(frame.attrs["generated_ids"]) == 1
    assert frame["generation_step"].max() == 1
    pd.testing.assert_frame_equal(frame, whole[whole["generation_step"] <= 1])


def test_kinds_of_tokens(bundled):
    model, processor = bundled
    for image in (picture(84, 56), picture(300, 40), None):
        ids = encode_prompt(processor, "Is there a cross?", image)["input_ids"][0].tolist()
        num_image = 0 if image is None else processor.image_processor.num_image_tokens(image.height, image.width)
        expected = ["start"] + ["vision"] * num_image + ["text"] * (len(ids) - 1 - num_image)
        assert token_kinds(processor, ids, model.config) == expected
    config = tiny_model("llava").config
    assert token_kinds(word_tokenizer(True), [0, IMAGE_TOKEN, 4, 0], config) == ["start", "vision", "text", "text"]


def test_a_text_model_and_its_tokenizer():
    tokenizer = word_tokenizer(True)
    sizes = dict(vocab_size=len(WORDS), hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=2)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    frame = run_token_masking(model, tokenizer, "NA null", num_output_tokens=2, after_end=True)
    steps = frame.query("layer == 0 and variant == 'Full'")["token_masked"].tolist()
    generated = frame.attrs["generated_text"].split()
    assert steps == ["<s>", "NA", "null", "<s>", "NA", "null", generated[0]] and len(generated) == 2
    alone = run_token_masking(model, tokenizer, "<s>", raw=True)
    assert alone[["l2_distance", "cosine_distance"]].isna().all(axis=None) and alone["token_masked"].unique() == ["<s>"]


def test_the_table_of_ids_stays_as_it_is(bundled):
    model, processor = bundled
    plain = token_masking(model, encode_prompt(processor, "cross"))
    before = plain.copy()
    name_tokens(plain, processor)
    pd.testing.assert_frame_equal(plain, before)
