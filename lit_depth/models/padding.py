"""Rows of different lengths as one batch, padded on the left, through a processor or without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_depth.functional.inputs import TEXT_INPUTS, is_image_input


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Rows of tokens as one batch.

    >>> left_padded([[5], [6, 7]], pad=0)
    {'input_ids': tensor([[0, 5],
            [6, 7]]), 'attention_mask': tensor([[0, 1],
            [1, 1]])}
    """
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    input_ids = pad_sequence(ids, batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left")
    return {"input_ids": input_ids, "attention_mask": mask}


def pad_token(tokenizer: Any) -> int:
    """Token that fills rows: the pad token, else the end token, else 0."""
    return next(each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if each is not None)


def encode_rows(
    processor: Any,
    texts: Sequence[str],
    images: Sequence[Sequence[Any]],
    *,
    add_special_tokens: bool = True,
    without_images: Callable[[list[str]], dict[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Model inputs of some rows, of which each may have any number of images.

    Rows with and without images are encoded apart: some processors look for an image in every row.

    Args:
        processor: A processor of transformers that takes images.
        texts: Complete prompts, with the text that stands for each image.
        images: Of each prompt, in the order of these texts.
        add_special_tokens: Whether the tokenizer writes its start token.
        without_images: What encodes prompts without images; None = the processor.

    Raises:
        ValueError: If there is no token to pad with, the processor refuses the rows, or it makes an input that would
            not reach the model.
    """
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        raise ValueError(f"expected a tokenizer with a pad token, got a {type(tokenizer).__name__} without")

    of_images = getattr(getattr(processor, "image_processor", None), "model_input_names", ())

    def encode(some: list[str], shown: list[list[Any]] | None = None) -> dict[str, Tensor]:
        encoded = processor(
            images=shown,
            text=some,
            add_special_tokens=add_special_tokens,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        tensors = {name: value for name, value in encoded.items() if isinstance(value, Tensor)}
        known = {name: value for name, value in tensors.items() if name in TEXT_INPUTS or is_image_input(name)}
        lost = [name for name in of_images if name in tensors and name not in known]
        if lost:
            raise ValueError(f"it makes {', '.join(lost)}, which is not known by its name to belong to an image")
        return known

    with_images = [row for row, shown in enumerate(images) if shown]
    others = [row for row, shown in enumerate(images) if not shown]
    alone = without_images or encode
    if not others:
        return encode(list(texts), [list(shown) for shown in images])
    if not with_images:
        return alone(list(texts))
    first = encode([texts[row] for row in with_images], [list(images[row]) for row in with_images])
    return _together(first, with_images, alone([texts[row] for row in others]), others, tokenizer.pad_token_id)


def _together(
    first: dict[str, Tensor], rows: list[int], second: dict[str, Tensor], other_rows: list[int], pad: int
) -> dict[str, Tensor]:
    """Two batches as one, their rows at these places; images are the first one's."""
    length = max(part["input_ids"].shape[1] for part in (first, second))
    order = torch.tensor([*rows, *other_rows]).argsort()
    joined = {}
    for name in (name for name in TEXT_INPUTS if name in first or name in second):
        fill = pad if name == "input_ids" else 0
        parts = [part.get(name, torch.zeros_like(part["input_ids"])) for part in (first, second)]
        joined[name] = torch.cat([_widened(part, length, fill) for part in parts])[order]
    return {**first, **joined}


def _widened(part: Tensor, length: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(part, (length - part.shape[1], 0), value=fill)
