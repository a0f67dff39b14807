"""How Molmo tiles an image: the grid of crops, the scaled size, and where pooled features go among the tokens.

Pure arithmetic on sizes, without pixels. T counts the crops of one image (the overview comes first), M the pooled
vision features per crop. Margins, windows and crops are counted in patches unless a name ends in `_px`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>")
_START, _END, _PATCH, _COLUMN = range(len(IMAGE_TOKENS))

DISCARDED_FEATURE = -100
"""`image_input_idx` of features in an overlap margin: the neighbouring crop supplies them."""


class ImageLayout(NamedTuple):
    """Where the features of one image go among its tokens; shared and cached, so never modify the tensors."""

    token_kinds: Tensor
    """Indices into `IMAGE_TOKENS`, long `[num_tokens]`."""
    image_input_idx: Tensor
    """Position of each pooled feature among these tokens, or `DISCARDED_FEATURE`, long `[T, M]`."""


@lru_cache(maxsize=8)
def _candidate_tilings(max_crops: int) -> np.ndarray:
    """All (rows, columns) with at most `max_crops` tiles, int32 `[n, 2]`, smallest first: ties go to fewer tiles."""
    pairs = [(i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops // i + 1)]
    return np.array(sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[0])), dtype=np.int32)


def select_tiling(height: int, width: int, window_px: int, max_crops: int) -> tuple[int, int]:
    """Choose the grid of crop windows that fits an image with the least upscaling, else the least downscaling.

    Args:
        height: Image height in pixels, less the overlap margins; may be zero or negative for tiny images.
        width: Image width in pixels, less the overlap margins; may be zero or negative for tiny images.
        window_px: Side of the square area that each crop adds, in pixels.
        max_crops: Largest number of windows.

    Returns:
        (rows, columns); (1, 1) where the image is smaller than the margins.

    Example:
        >>> select_tiling(830 - 112, 1100 - 112, window_px=224, max_crops=12)
        (3, 4)
    """
    if min(height, width) < 0:
        return 1, 1
    candidates = _candidate_tilings(max_crops)
    # float32 and the infinite scale of a zero side are the released behaviour: both decide ties.
    with np.errstate(divide="ignore"):
        sides = (candidates * window_px).astype(np.float32) / np.array([height, width], dtype=np.float32)
    scale = sides.min(axis=-1)
    large_enough = scale >= 1
    best = np.where(large_enough, scale, np.inf).argmin() if large_enough.any() else scale.argmax()
    rows, cols = candidates[best]
    return int(rows), int(cols)


def fit_within(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Largest size inside the target with the image's aspect ratio, at least one pixel a side.

    Computed in float32 as in training, which differs by a pixel from exact arithmetic for some sizes.

    Example:
        >>> fit_within(140, 524, 336, 560)
        (149, 560)
        >>> fit_within(5, 700, 56, 56)
        (1, 56)
    """
    h, w = np.float32(height), np.float32(width)
    scale = min(np.float32(target_height) / h, np.float32(target_width) / w)
    return max(int(h * scale), 1), max(int(w * scale), 1)


def _token_grid(height: int, width: int) -> Tensor:
    """Token kinds of one image view: start, `height` rows of `width` patches closed by a column token, end."""
    grid = torch.full((height, width + 1), _PATCH)
    grid[:, -1] = _COLUMN
    return torch.cat([torch.tensor([_START]), grid.flatten(), torch.tensor([_END])])


@lru_cache(maxsize=256)
def image_layout(rows: int, cols: int, crop: int, margins: tuple[int, int]) -> ImageLayout:
    """Tokens of an image cut into `rows x cols` crops and the positions its pooled features are added at.

    Features are pooled 2x2. The crops' features are laid out as one grid, left to right across crops, and every grid
    cell is fed by exactly one crop.

    Args:
        rows: Rows of crops.
        cols: Columns of crops.
        crop: Patches per crop side.
        margins: Patches discarded at the (left and top, right and bottom) of inner crop borders.

    Returns:
        The layout, with T = 1 + rows * cols.
    """
    left, right = margins
    window, side = crop - left - right, (crop + 1) // 2
    height, width = ((n * window + left + right + 1) // 2 for n in (rows, cols))
    overview = _token_grid(side, side)

    def cells(tiles: int) -> tuple[Tensor, Tensor]:
        """Grid index of each tile's pooled positions along one axis and whether the tile owns it, `[tiles, side]`."""
        tile, position = torch.arange(tiles)[:, None], torch.arange(side)[None, :]
        owned = ((tile == 0) | (position >= left // 2)) & ((tile == tiles - 1) | (position < (left + window) // 2))
        return tile * (window // 2) + position, owned

    (row, row_owned), (col, col_owned) = cells(rows), cells(cols)
    # [rows, cols, side, side]; a grid row is one token longer than its patches, for the column token
    index = len(overview) + 1 + row[:, None, :, None] * (width + 1) + col[None, :, None, :]
    index = index.where(row_owned[:, None, :, None] & col_owned[None, :, None, :], torch.tensor(DISCARDED_FEATURE))
    return ImageLayout(
        torch.cat([overview, _token_grid(height, width)]),
        torch.cat([torch.where(overview == _PATCH)[0][None], index.reshape(rows * cols, side * side)]),
    )
