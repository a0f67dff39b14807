"""Which part of the original image each of Molmo's vision tokens shows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_depth.functional.arguments import check_least, checked
from lit_depth.models.molmo.image_processing_molmo import MolmoImageProcessor
from lit_depth.models.molmo.tiling_molmo import fit_within
from lit_depth.models.prompting import VisionToken


def count_vision_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """Image features of each row that reach its text, long ``[batch]``.

    >>> index = torch.tensor([[[1, 2], [-1, 3]], [[4, -1], [-1, -1]]])
    >>> count_vision_tokens({"image_input_idx": index}), count_vision_tokens({"input_ids": torch.zeros(1, 5)})
    (tensor([3, 1]), tensor([0]))

    Args:
        inputs: Inputs of the model; ``image_input_idx [batch, crops, tokens]`` is negative where a feature is unused.
    """
    index = inputs.get("image_input_idx")
    if index is None:
        return torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
    return (index >= 0).flatten(1).sum(1)


def image_token_mask(inputs: Mapping[str, Tensor], num_cached: int = 0) -> Tensor:
    """Which tokens get an image feature, bool ``[batch, seq]``; see `count_vision_tokens`.

    Args:
        inputs: Inputs of the model; places of features count from the beginning of the sequence.
        num_cached: Tokens of the sequence before ``input_ids``.

    >>> index = torch.tensor([[[1, 2], [-1, 3]], [[4, -1], [-1, -1]]])
    >>> image_token_mask({"input_ids": torch.zeros(2, 5), "image_input_idx": index}).int().tolist()
    [[0, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    """
    ids, index = inputs["input_ids"], inputs.get("image_input_idx")
    found = torch.zeros(ids.shape[0], ids.shape[1] + 1, dtype=torch.bool, device=ids.device)
    if index is not None:
        index = index.to(ids.device).flatten(1).long() - num_cached * (index.to(ids.device).flatten(1) >= 0)
        # features that have no place among these tokens go to a column that is cut off
        found.scatter_(1, torch.where((index >= 0) & (index < ids.shape[1]), index, ids.shape[1]), True)
    return found[:, :-1]


@checked
def vision_tokens(
    image_processor: MolmoImageProcessor, height: int, width: int, first_position: int = 1
) -> list[VisionToken]:
    """Places of all vision tokens of an image: the area that their 2x2 pooled patches cover, letterbox undone.

    Areas are exact up to the resize filter, which lets a pixel bleed into its neighbours. Column and border tokens
    show nothing and are left out, as are features in an overlap, which reach the model from the neighbouring crop.

    Args:
        image_processor: The processor that prepares the image; its geometry decides.
        height: Height of the upright image in pixels (after EXIF rotation, where that is applied).
        width: Width of the upright image in pixels.
        first_position: Position of the image's first token in the sequence; 1 after BOS, without left padding.

    Returns:
        The tokens by position.

    Example:
        >>> small = MolmoImageProcessor(56, 7, (2, 2), max_crops=4, image_token_length_h=4, image_token_length_w=4)
        >>> tokens = vision_tokens(small, height=56, width=112)
        >>> len(tokens), tokens[0], tokens[4]  # the picture fills the middle half of the square overview
        (48, VisionToken(position=2, crop=0, box=None), VisionToken(position=7, crop=0, box=(0.0, 0.0, 28.0, 28.0)))
    """
    check_least(1, height=height, width=width)
    rows, cols = image_processor.tiling(height, width)
    base, window = image_processor.base_image_input_size[0], image_processor._window_px
    margin, pooled = image_processor._margin_px, 2 * image_processor.image_patch_size
    tokens = []
    for crop, positions in enumerate(image_processor.layout(height, width).image_input_idx.tolist()):
        canvas = (base, base) if crop == 0 else (rows * window + margin, cols * window + margin)
        crop_top, crop_left = (0, 0) if crop == 0 else (window * n for n in divmod(crop - 1, cols))
        scaled_height, scaled_width = fit_within(height, width, *canvas)
        for feature, position in enumerate(positions):
            if position < 0:
                continue
            row, col = divmod(feature, image_processor.image_token_length_w)
            # the last window of an odd number of patches is half empty
            down = (crop_top + row * pooled, crop_top + min((row + 1) * pooled, base))
            across = (crop_left + col * pooled, crop_left + min((col + 1) * pooled, base))
            top, bottom = _undo_letterbox(down, canvas[0], scaled_height, height)
            left, right = _undo_letterbox(across, canvas[1], scaled_width, width)
            box = (left, top, right, bottom) if left < right and top < bottom else None
            tokens.append(VisionToken(first_position + position, crop, box))
    return sorted(tokens, key=lambda token: token.position)


def _undo_letterbox(span: tuple[int, int], canvas: int, scaled: int, size: int) -> tuple[float, float]:
    """From pixels along one axis of a canvas, on which the image is centred, to pixels of the image, clipped."""
    border = (canvas - scaled) // 2
    start, stop = ((min(max(edge - border, 0), scaled)) * size / scaled for edge in span)
    return start, stop
