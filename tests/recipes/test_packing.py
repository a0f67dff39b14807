"""Packed training batches: every question is computed as in a row of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lit_depth.data.task import TrainingItem
from lit_depth.data.tasks.shapes_vqa import CELL_PIXELS, COLORS, EMPTY_COLOR, SHAPES, ShapesTrainingSet
from lit_depth.models.molmo.vision_tokens_molmo import vision_tokens
from lit_depth.models.prompting import TextPrompter
from lit_depth.recipes.packing import PackedCollator, cell_token_indices, cells_of_tokens, segment_mask


@pytest.fixture(scope="module")
def items():
    # Enough for all three image sizes.
    return list(ShapesTrainingSet(num_images=8))


@pytest.fixture(scope="module")
def packed(prompter, items):
    return PackedCollator(prompter)(items)


def unpacked_row(processor, item, number):
    row = processor(images=[item.image], text=[f"vqa2: {item.questions[number]}"], padding_side="left")
    answer = processor.tokenizer(f" {item.answers[number]}", add_special_tokens=False)["input_ids"]
    return row["input_ids"][0].tolist(), [*answer, processor.tokenizer.eos_token_id], row


def segments_of(batch, row):
    """Positions of each question's tokens, read off where the position ids restart."""
    positions = batch["position_ids"][row]
    real = batch["attention_mask"][row, 0].sum(-1) > 1
    real[0] = True
    restarts = [i for i in range(1, len(positions)) if real[i] and positions[i] <= positions[i - 1]]
    prefix = int(positions[restarts[0]])
    bounds = [prefix, *restarts, int(real.sum())]
    return prefix, [range(a, b) for a, b in zip(bounds, bounds[1:])]


def test_every_packed_question_is_its_unpacked_row(processor, items, packed):
    assert {item.image.size for item in items} == {(56, 56), (84, 56), (56, 84)}
    for row, item in enumerate(items):
        prefix, segments = segments_of(packed, row)
        assert len(segments) == len(item.questions) == 6
        for number, segment in enumerate(segments):
            prompt, answer, alone = unpacked_row(processor, item, number)
            keep = [*range(prefix), *segment]
            assert packed["input_ids"][row, keep].tolist() == prompt + answer
            assert packed["position_ids"][row, keep].tolist() == list(range(len(prompt + answer)))
            # Learnt is the answer and the end token, nothing else.
            assert packed["labels"][row, keep].tolist() == [-100] * len(prompt) + answer
            # Among its own tokens the question sees a plain causal row; of the rest it sees nothing.
            seen = packed["attention_mask"][row, 0]
            assert torch.equal(seen[keep][:, keep], torch.ones(len(keep), len(keep), dtype=torch.bool).tril())
            assert int(seen[list(segment)].sum()) == sum(range(prefix + 1, prefix + len(segment) + 1))
            crops = alone["images"].shape[1]
            for key in ("images", "image_masks", "image_input_idx"):
                assert torch.equal(packed[key][row, :crops], alone[key][0]), key


def test_shapes_and_padding(packed, items):
    batch, seq = packed["input_ids"].shape
    assert batch == len(items)
    assert packed["position_ids"].shape == packed["labels"].shape == (batch, seq)
    assert packed["attention_mask"].shape == (batch, 1, seq, seq) and packed["attention_mask"].dtype == torch.bool
    assert packed["attention_mask"].any(-1).all(), "every position attends to something"
    assert packed["cell_shapes"].shape == packed["cell_colors"].shape == (batch, 6)
    assert packed["token_cells"].shape == packed["image_input_idx"].flatten(1).shape
    assert packed["grids"].tolist() == [list(item.grid) for item in items]


def test_packed_logits_equal_unpacked_logits(processor, items, packed):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(processor.tokenizer), **sizes)).eval()
    inputs = {key: packed[key][:2] for key in ("input_ids", "position_ids", "attention_mask")}
    with torch.no_grad():
        together = model(**inputs).logits
        for row in range(2):
            prefix, segments = segments_of(packed, row)
            for number, segment in enumerate(segments):
                prompt, answer, _ = unpacked_row(processor, items[row], number)
                alone = model(torch.tensor([prompt + answer])).logits[0, prefix:]
                torch.testing.assert_close(together[row, list(segment)], alone, atol=1e-5, rtol=1e-5)


def test_cell_tokens_lie_on_their_cells(processor):
    # Each cell has its own grey, so the pixels behind a token tell which cell it is, whatever crop it comes from.
    for rows, columns in ((2, 2), (2, 3), (3, 2), (3, 3)):
        grey = np.arange(1, rows * columns + 1).reshape(rows, columns).repeat(CELL_PIXELS, 0).repeat(CELL_PIXELS, 1)
        image = Image.fromarray(np.stack([grey * 20] * 3, -1).astype(np.uint8))
        batch = processor(images=[image], text=["x"], padding_side="right")
        indices = cell_token_indices(batch["image_input_idx"][0], (rows, columns))
        assert indices.shape == (rows * columns, 4) and indices.unique().numel() == indices.numel()
        # 8 x 8 patches of 7 x 7 x 3 values per crop -> the mean over the 2 x 2 patches of each token, [crops * tokens].
        patches = batch["images"][0].reshape(-1, 4, 2, 4, 2, 49, 3)[..., 0].mean((2, 4, 5)).reshape(-1)
        mean, std = processor.image_processor.image_mean[0], processor.image_processor.image_std[0]
        cells = (patches * std + mean) * 255 / 20 - 1
        assert torch.allclose(cells[indices], torch.arange(rows * columns)[:, None].expand(-1, 4).float(), atol=1e-3)


def test_every_token_knows_the_cell_behind_its_centre(processor):
    # The places of the tokens as the processor's geometry has them, computed without the collator.
    side = processor.image_processor.image_token_length_h
    for rows, columns in ((2, 2), (2, 3), (3, 2)):
        height, width = rows * CELL_PIXELS, columns * CELL_PIXELS
        image = Image.new("RGB", (width, height))
        idx = processor(images=[image], text=["x"], padding_side="right")["image_input_idx"][0]
        cells = cells_of_tokens(idx, (rows, columns))
        place = {token.position: token for token in vision_tokens(processor.image_processor, height, width)}
        for number, position in enumerate(idx.flatten().tolist()):
            if position < 0:
                assert cells[number] == -1
            elif number < side * side:  # the overview: a square of the longer side, centred on the image
                down, across = ((n + 0.5) / side * max(height, width) for n in divmod(number, side))
                y, x = down - (max(height, width) - height) / 2, across - (max(height, width) - width) / 2
                inside = 0 <= y < height and 0 <= x < width
                assert cells[number] == (y // CELL_PIXELS * columns + x // CELL_PIXELS if inside else -1)
            else:
                left, top, right, bottom = place[position].box
                y, x = (top + bottom) / 2, (left + right) / 2
                assert cells[number] == y // CELL_PIXELS * columns + x // CELL_PIXELS


def test_cell_labels_are_padded_and_aligned(packed, items):
    for row, item in enumerate(items):
        cells = len(item.cell_shapes)
        assert packed["cell_shapes"][row].tolist() == [*item.cell_shapes, *[-100] * (6 - cells)]
        assert packed["cell_colors"][row].tolist() == [*item.cell_colors, *[-100] * (6 - cells)]
        images, cells_behind = packed["images"][row], packed["token_cells"][row]
        tokens = images.reshape(-1, 4, 2, 4, 2, 147).transpose(2, 3).reshape(-1, 4 * 147)
        for cell, color in enumerate(item.cell_colors):
            # The high-resolution tokens of a cell see more than its background exactly when it holds an object.
            behind = (cells_behind == cell).nonzero().flatten()
            pixels = tokens[behind[behind >= 16]].reshape(-1, 3)
            assert (pixels.std(0).max() > 0.1) == (color != EMPTY_COLOR)
    assert packed["cell_colors"].max() <= len(COLORS) and packed["cell_shapes"].max() <= len(SHAPES)


@pytest.mark.parametrize("grid", [(3, 2), (2, 3), (5, 5)])
def test_a_grid_that_does_not_fit_is_refused(processor, grid):
    batch = processor(images=[Image.new("RGB", (56, 56))], text=["x"], padding_side="right")
    with pytest.raises(ValueError, match=f"divide into {grid[0]} x {grid[1]} cells, got 16 tokens in 4 rows"):
        cell_token_indices(batch["image_input_idx"][0], grid)


def test_items_without_labels_have_no_label_tensors(prompter, items):
    item = TrainingItem(items[0].image, ("a question?", "b?"), ("yes", "some other words"))
    batch = PackedCollator(prompter)([item, items[1]])
    assert not {"token_cells", "cell_shapes", "cell_colors", "grids"} & set(batch)
    assert batch["input_ids"].shape[0] == 2


def test_one_answer_per_question_is_required(prompter, items):
    with pytest.raises(ValueError, match="one answer per question"):
        PackedCollator(prompter)([TrainingItem(items[0].image, ("a?", "b?"), ("yes",))])


def test_padding_attends_to_itself_only():
    mask = segment_mask(torch.tensor([[0, 0, 1, -1, -1]]))[0, 0]
    assert torch.equal(mask[3:], torch.eye(5, dtype=torch.bool)[3:])
    assert not mask[:3, 3:].any()


def test_another_family_is_refused(processor):
    with pytest.raises(ValueError, match="expected a Molmo model to train, .* got a TextPrompter"):
        PackedCollator(TextPrompter(processor.tokenizer))
