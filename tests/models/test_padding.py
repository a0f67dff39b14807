"""Rows with and without images in one batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lit_depth.models.loading import load_checkpoint
from lit_depth.models.padding import encode_rows, left_padded, pad_token
from tests.helpers.tiny_checkpoints import PATCHES, write_llava

RED, BLUE = (Image.new("RGB", (9, 9), color) for color in ("red", "blue"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load_checkpoint(str(write_llava(tmp_path_factory.mktemp("llava"))))


def test_left_padding():
    batch = left_padded([[3, 4, 5], [6]], pad=9)
    assert batch["input_ids"].tolist() == [[3, 4, 5], [9, 9, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(("pad", "end", "expected"), [(0, 5, 0), (None, 5, 5), (None, None, 0)])
def test_what_rows_are_filled_with(pad, end, expected):
    assert pad_token(type("Tokenizer", (), {"pad_token_id": pad, "eos_token_id": end})) == expected


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 3, 2], [3, 1], [0], [2, 0]])
def test_a_row_is_the_same_beside_any_other(llava, order):
    model, processor = llava
    rows = [("one <image> end", [RED]), ("none", []), ("two <image> <image>", [BLUE, RED]), ("a longer one", [])]
    chosen = [rows[place] for place in order]
    batch = encode_rows(processor, *zip(*chosen))
    images = [image for _, shown in chosen for image in shown]
    assert len(batch.get("pixel_values", ())) == len(images)
    for row, (text, shown) in enumerate(chosen):
        # as the processor alone writes it
        alone = processor(text=[text], images=shown or None, return_tensors="pt")
        kept = batch["attention_mask"][row].bool()
        assert kept[-1] and torch.equal(batch["input_ids"][row][kept], alone["input_ids"][0])
        assert (batch["input_ids"][row][~kept] == processor.tokenizer.pad_token_id).all()
        assert (batch["input_ids"][row] == model.config.image_token_id).sum() == PATCHES * len(shown)
    if images:
        expected = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        assert torch.equal(batch["pixel_values"], expected)


def test_a_mixed_batch_answers_as_its_rows_do_alone(llava):
    model, processor = llava
    rows = [("one <image> end", [RED]), ("none", []), ("two <image> <image>", [BLUE, RED])]
    together = model.generate(**encode_rows(processor, *zip(*rows)), max_new_tokens=4, do_sample=False)[:, -4:]
    for row, (text, shown) in enumerate(rows):
        alone = model.generate(**encode_rows(processor, [text], [shown]), max_new_tokens=4, do_sample=False)
        assert torch.equal(alone[0, -4:], together[row])


def test_types_of_tokens_are_zero_where_a_part_has_none(llava):
    class WithTypes:
        tokenizer = llava[1].tokenizer

        def __call__(self, **arguments):
            encoded = dict(llava[1](**arguments))
            return {**encoded, "mm_token_type_ids": torch.ones_like(encoded["input_ids"]), "labels": torch.zeros(1)}

    alone = lambda texts: left_padded([[7] * 9 for _ in texts], 1)  # noqa: E731
    batch = encode_rows(WithTypes(), ["x <image>", "y"], [[RED], []], without_images=alone)
    assert batch.keys() == {"input_ids", "attention_mask", "mm_token_type_ids", "pixel_values"}
    assert batch["mm_token_type_ids"].sum(1).tolist()[1] == 0 < batch["mm_token_type_ids"].sum(1).tolist()[0]
    assert batch["input_ids"][1].tolist() == [7] * 9


def test_a_tokenizer_without_anything_to_pad_with_is_named(llava):
    class Unpadded:
        tokenizer = type("Tokenizer", (), {"pad_token_id": None})()

    with pytest.raises(ValueError, match="expected a tokenizer with a pad token, got a Tokenizer without"):
        encode_rows(Unpadded(), ["x"], [[]])


def test_an_input_that_would_not_reach_the_model_is_refused():
    class Processor:
        tokenizer = SimpleNamespace(pad_token_id=0)
        image_processor = SimpleNamespace(model_input_names=["pixel_values", "tgt_sizes"])

        def __call__(self, images, text, **options):
            ids = torch.ones(len(text), 2, dtype=torch.long)
            return {"input_ids": ids, "attention_mask": ids, "pixel_values": ids, "tgt_sizes": ids}

    with pytest.raises(ValueError, match="it makes tgt_sizes, which is not known"):
        encode_rows(Processor(), ["What?"], [["picture"]])
