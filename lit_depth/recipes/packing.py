"""Training batches of Molmo's family: all questions of an image packed behind its tokens, with labels of its cells."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_depth.data.task import Sample, TrainingItem
from lit_depth.functional.inputs import IGNORE
from lit_depth.models.molmo import MolmoPrompter


class PackedCollator:
    """Make a training batch in which the questions of one image share its tokens.

    A row is ``BOS, image tokens, question 1, answer 1, EOS, question 2, answer 2, EOS, ...``. A question attends to
    the image and to itself, and its positions continue those of the image, so every question is computed exactly as in
    a row of its own: the image is paid for once instead of once per question.

    Args:
        prompter: Writes the questions.

    Raises:
        ValueError: If it is another family's.
    """

    def __init__(self, prompter: Any) -> None:
        if not isinstance(prompter, MolmoPrompter):
            raise ValueError(
                f"expected a Molmo model to train, whose rows are packed here, got a {type(prompter).__name__}: give "
                "--data.train_collator the class path of your own"
            )
        self.prompter, self.processor = prompter, prompter.processor

    def __call__(self, items: Sequence[TrainingItem]) -> dict[str, Any]:
        """Return a batch of one row per image.

        - ``input_ids``, ``position_ids`` [batch, seq],
        - ``attention_mask`` bool [batch, 1, seq, seq], True = may attend; a padded position attends to itself only,
        - ``labels`` [batch, seq]: the input id at answer and end tokens, -100 elsewhere (the model shifts),
        - ``images``, ``image_masks``, ``image_input_idx`` as the processor gives them,
        - where all items have cell labels: ``token_cells`` [batch, crops * tokens], the cell behind each image token,
          see `cells_of_tokens`, ``cell_shapes`` and ``cell_colors`` [batch, cells], padded with -100, and ``grids``
          [batch, 2], rows and columns.
        """
        texts = [
            [self.prompter.text(Sample("", "", None, question, ())) for question in item.questions] for item in items
        ]
        rows = self.processor(
            images=[item.image for item in items], text=[of_item[0] for of_item in texts], padding_side="right"
        )
        prompts = iter(self._prompt_tokens([text for of_item in texts for text in of_item]))
        packed = []
        for input_ids, mask, item in zip(rows["input_ids"], rows["attention_mask"], items):
            if len(item.questions) != len(item.answers):
                raise ValueError(
                    f"expected one answer per question, got {len(item.answers)} for {len(item.questions)} questions"
                )
            answers = (row[row != IGNORE].tolist() for row in self.prompter.answer_ids(item.answers))
            pairs = [(next(prompts), answer) for answer in answers]
            prefix = input_ids[mask.bool()].tolist()
            # the processor framed the first question too; it joins the others behind the image
            packed.append(pack_row(prefix[: -len(pairs[0][0])], pairs))
        input_ids, position_ids, labels, segments = (
            pad_sequence(list(column), batch_first=True, padding_value=padding)
            for column, padding in zip(zip(*packed), (self.processor.pad_token_id, 0, IGNORE, -1))
        )
        batch = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": segment_mask(segments),
            "labels": labels,
            **{key: rows[key] for key in self.prompter.image_inputs if key in rows},
        }
        if all(item.cell_shapes for item in items):
            batch |= _cell_labels(items, rows["image_input_idx"])
        return batch

    def _prompt_tokens(self, prompts: list[str]) -> list[list[int]]:
        # A text-only row is BOS and the framed prompt: the frame stays the processor's business.
        rows = self.processor(images=[None] * len(prompts), text=prompts, padding_side="right")
        return [ids[mask.bool()].tolist()[1:] for ids, mask in zip(rows["input_ids"], rows["attention_mask"])]


def pack_row(prefix: list[int], pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Append (prompt, answer) token pairs to a shared prefix.

    >>> [column.tolist() for column in pack_row([7], [([1, 2], [3]), ([4], [5])])]
    [[7, 1, 2, 3, 4, 5], [0, 1, 2, 3, 1, 2], [-100, -100, -100, 3, -100, 5], [0, 1, 1, 1, 2, 2]]

    Returns:
        input_ids, position_ids, labels and segments, each long [seq]; the prefix is segment 0, pair i is i + 1.
    """
    ids, positions = list(prefix), list(range(len(prefix)))
    labels, segments = [IGNORE] * len(prefix), [0] * len(prefix)
    for number, (prompt, answer) in enumerate(pairs, start=1):
        length = len(prompt) + len(answer)
        ids += [*prompt, *answer]
        positions += range(len(prefix), len(prefix) + length)
        labels += [*[IGNORE] * len(prompt), *answer]
        segments += [number] * length
    return torch.tensor(ids), torch.tensor(positions), torch.tensor(labels), torch.tensor(segments)


def segment_mask(segments: Tensor) -> Tensor:
    """Return who may attend to whom: causal, to segment 0 and to the own segment; padding (-1) to itself only.

    >>> segment_mask(torch.tensor([[0, 1, 2, -1]]))[0, 0].int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]

    Args:
        segments: Long [batch, seq].

    Returns:
        Bool [batch, 1, seq, seq] (query, key).
    """
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    allowed = ((key == query) | (key == 0)) & (query >= 0) & causal
    # Without its own position, the softmax of a padded query would divide zero by zero.
    return (allowed | torch.eye(len(causal), dtype=torch.bool))[:, None]


def cell_token_indices(image_input_idx: Tensor, grid: tuple[int, int]) -> Tensor:
    """Find the image tokens that cover each cell of a grid laid over the image.

    The high-resolution tokens stand in the text row by row over the whole image, whatever crop they come from, with one
    column token after each row; so the order of their positions gives the table, and its gaps give the width.

    Args:
        image_input_idx: Long [crops, tokens] of one image; crop 0 is the overview, negative = unused.
        grid: Rows and columns of cells.

    Returns:
        Long [cells, tokens per cell]: indices into the flattened [crops * tokens] image features, cells row-major.

    Raises:
        ValueError: If the token table cannot be divided into the cells.
    """
    flat = image_input_idx.flatten()
    # the overview shows the whole image a second time
    candidates = torch.arange(image_input_idx.shape[1], flat.numel(), device=flat.device)
    used = candidates[flat[candidates] >= 0]
    order = used[flat[used].argsort()]
    row_ends = (flat[order].diff() > 1).nonzero().flatten() + 1
    columns = int(row_ends[0]) if len(row_ends) else len(order)
    rows = len(row_ends) + 1
    if rows * columns != len(order) or rows % grid[0] or columns % grid[1]:
        raise ValueError(
            f"expected rows of image tokens that divide into {grid[0]} x {grid[1]} cells, "
            f"got {len(order)} tokens in {rows} rows"
        )
    table = order.view(grid[0], rows // grid[0], grid[1], columns // grid[1])
    return table.transpose(1, 2).flatten(0, 1).flatten(1)


def cells_of_tokens(image_input_idx: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tell which cell of a grid lies behind each image token.

    Args:
        image_input_idx: Long [crops, tokens] of one image; crop 0 is the overview, negative = unused.
        grid: Rows and columns of square cells that cover the image.

    Returns:
        Long [crops * tokens]: the row-major number of the cell, -1 where there is none (a border, an unused token).

    Raises:
        ValueError: As `cell_token_indices`.
    """
    cells = torch.full((image_input_idx.numel(),), -1)
    by_cell = cell_token_indices(image_input_idx, grid)
    cells[by_cell] = torch.arange(len(by_cell))[:, None].expand_as(by_cell)
    cells[: image_input_idx.shape[1]] = _cells_of_overview(image_input_idx.shape[1], grid)
    return cells


def _cells_of_overview(num_tokens: int, grid: tuple[int, int]) -> Tensor:
    """The cell behind the centre of each token of a square overview, on whose middle the image was scaled to fit."""
    rows, columns = grid
    side = math.isqrt(num_tokens)
    centres = (torch.arange(side) + 0.5) / side - 0.5
    row, column = ((centres * max(grid) + count / 2).floor().long() for count in grid)
    inside = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))
    return torch.where(inside, row[:, None] * columns + column, -1).flatten()


def _cell_labels(items: Sequence[TrainingItem], image_input_idx: Tensor) -> dict[str, Tensor]:
    shapes = [torch.tensor(item.cell_shapes) for item in items]
    colors = [torch.tensor(item.cell_colors) for item in items]
    return {
        "token_cells": torch.stack([cells_of_tokens(idx, item.grid) for idx, item in zip(image_input_idx, items)]),
        "cell_shapes": pad_sequence(shapes, batch_first=True, padding_value=IGNORE),
        "cell_colors": pad_sequence(colors, batch_first=True, padding_value=IGNORE),
        "grids": torch.tensor([item.grid for item in items]),
    }
