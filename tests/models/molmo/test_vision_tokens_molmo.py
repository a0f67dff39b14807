"""The boxes of vision tokens against brute force: which pixels of an image change which patches of the crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_depth.models.molmo import MolmoImageProcessor, VisionToken, vision_tokens

TINY = {
    "base_image_input_size": 56,
    "image_patch_size": 7,
    "overlap_margins": (2, 2),
    "max_crops": 4,
    "image_token_length_h": 4,
    "image_token_length_w": 4,
}
# an odd number of patches per crop: the last pooled window is half empty
ODD = {**TINY, "base_image_input_size": 49, "overlap_margins": (2, 1), "image_token_length_h": 4}
SMALL = {**TINY, "base_image_input_size": 28, "overlap_margins": (0, 0), "max_crops": 6}
SMALL |= {"image_token_length_h": 2, "image_token_length_w": 2}
# (height, width): square, wide, tall, tiny, thin, as large as a crop, with and without letterbox
SIZES = [(56, 56), (40, 90), (120, 33), (1, 1), (3, 200), (97, 131), (75, 61)]


def windows(processor: MolmoImageProcessor, pixels: np.ndarray) -> torch.Tensor:
    """What each pooled feature sees, `[T, M, window pixels]`, cut out by plain slicing of the processor's patches."""
    images, side, patch = processor(pixels)["images"][0], processor.crop_patches, processor.image_patch_size
    found = []
    for crop in images:
        grid = crop.view(side, side, patch, patch, 3)
        found.append([grid[y : y + 2, x : x + 2].flatten() for y in range(0, side, 2) for x in range(0, side, 2)])
    length = 4 * patch * patch * 3
    padded = [[torch.nn.functional.pad(window, (0, length - len(window))) for window in crop] for crop in found]
    return torch.stack([torch.stack(crop) for crop in padded])


def by_position(processor: MolmoImageProcessor, pixels: np.ndarray) -> dict[int, tuple[int, int]]:
    """Position in a sequence that starts with BOS -> (crop, feature), from the processor's own output."""
    index = processor(pixels)["image_input_idx"][0]
    return {int(index[crop, m]) + 1: (crop, m) for crop, m in (index >= 0).nonzero().tolist()}


def dilated(token: VisionToken, reach_x: float, reach_y: float) -> tuple[float, float, float, float]:
    assert token.box is not None
    left, top, right, bottom = token.box
    return left - reach_x, top - reach_y, right + reach_x, bottom + reach_y


def inside(x: float, y: float, box: tuple[float, float, float, float]) -> bool:
    return box[0] < x < box[2] and box[1] < y < box[3]


@pytest.mark.parametrize("geometry", [TINY, ODD, SMALL], ids=["tiny", "odd", "no margins"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_painted_pixel_changes_the_tokens_whose_boxes_hold_it(geometry: dict, size: tuple[int, int]) -> None:
    processor = MolmoImageProcessor(**geometry)
    height, width = size
    blank = np.zeros((height, width, 3), np.uint8)
    before, features = windows(processor, blank), by_position(processor, blank)
    tokens = vision_tokens(processor, height, width)
    assert [(token.position, token.crop) for token in tokens] == [(p, features[p][0]) for p in sorted(features)]

    generator = np.random.default_rng(0)
    corners = {(y, x) for y in (0, height // 2, height - 1) for x in (0, width // 2, width - 1)}
    others = zip(generator.integers(0, height, 25).tolist(), generator.integers(0, width, 25).tolist())
    for y, x in sorted({*corners, *others}):
        painted = blank.copy()
        painted[y, x] = 255
        changed = (windows(processor, painted) != before).any(-1)
        for token in tokens:
            hit = bool(changed[features[token.position]])
            if token.box is None:
                assert not hit, (token, y, x)
                continue
            # the resize filter reaches `reach` pixels beyond the pixel centres that it averages
            here = reach(processor, token.crop, height, width)
            if inside(x + 0.5, y + 0.5, token.box):
                assert hit, (token, y, x)
            if hit:
                assert inside(x + 0.5, y + 0.5, dilated(token, here, here)), (token, y, x)


def reach(processor: MolmoImageProcessor, crop: int, height: int, width: int) -> float:
    """Half width of the antialiasing triangle in pixels of the image: at least one, more when the image shrinks."""
    base, window, margin = processor.base_image_input_size[0], processor._window_px, processor._margin_px
    rows, cols = (1, 1) if crop == 0 else processor.tiling(height, width)
    target = (base, base) if crop == 0 else (rows * window + margin, cols * window + margin)
    scale = min(target[0] / height, target[1] / width)
    scaled = [max(1, int(size * scale) - 1) for size in (height, width)]  # a pixel less: sizes are cut in float32
    return max(1.0, height / scaled[0], width / scaled[1])


@pytest.mark.parametrize(
    ("geometry", "size", "crops"),
    [
        ({}, (240, 255), {0, 1}),
        ({}, (70, 200), {0, 1}),
        ({**TINY, "max_crops": 12}, (97, 131), set(range(1, 13))),
        ({**TINY, "max_crops": 12}, (50, 250), set(range(1, 9))),
        ({**SMALL, "max_crops": 20}, (100, 131), set(range(1, 21))),
    ],
)
def test_a_ramp_shows_where_a_token_looks(geometry: dict, size: tuple[int, int], crops: set[int]) -> None:
    """Where the image is enlarged, a ramp stays one: a window's mean is the middle of what it shows."""
    processor = MolmoImageProcessor(**geometry, do_normalize=False)
    height, width = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(width)[None, :], np.arange(height)[:, None]
    seen, features = windows(processor, ramp) * 255, by_position(processor, ramp)
    patch, checked = processor.image_patch_size, set()
    inner = (0.5, 0.5, width - 0.5, height - 0.5)  # beyond the outermost pixel centres the ramp is flat
    for token in vision_tokens(processor, height, width):
        box = token.box
        if token.crop not in crops or box is None or not (inside(*box[:2], inner) and inside(*box[2:], inner)):
            continue
        # [2, 2, P, P, 3] -> [window rows, window columns, 3]
        window = seen[features[token.position]].view(2, 2, patch, patch, 3).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        for values, start, stop in (
            (window[..., 0].double().mean(0), box[0], box[2]),
            (window[..., 1].double().mean(1), box[1], box[3]),
        ):
            assert values.mean().item() + 0.5 == pytest.approx((start + stop) / 2, abs=2e-3)
            per_pixel = (values[-1] - values[0]).item() / (2 * patch - 1)
            assert per_pixel * 2 * patch == pytest.approx(stop - start, abs=4e-3)
        checked.add(token.crop)
    assert checked == crops


@pytest.mark.parametrize("geometry", [TINY, ODD, SMALL, {}], ids=["tiny", "odd", "no margins", "released"])
@pytest.mark.parametrize("size", [*SIZES, (480, 640), (1000, 300)], ids=str)
def test_boxes_tile_the_image_twice(geometry: dict, size: tuple[int, int]) -> None:
    """The overview's boxes cover the image once without overlap, and so do those of all crops together."""
    processor, (height, width) = MolmoImageProcessor(**geometry), size
    tokens = vision_tokens(processor, height, width)
    for group in (lambda crop: crop == 0, lambda crop: crop > 0):
        boxes = [token.box for token in tokens if group(token.crop) and token.box is not None]
        assert all(0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height for box in boxes)
        areas = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
        assert areas == pytest.approx(width * height, rel=1e-9)
        for x, y in np.random.default_rng(0).uniform((0, 0), (width, height), (50, 2)):
            assert sum(inside(x, y, box) for box in boxes) == 1


def test_first_position_shifts_all() -> None:
    processor = MolmoImageProcessor(**TINY)
    tokens = vision_tokens(processor, 90, 130)
    moved = vision_tokens(processor, 90, 130, first_position=8)
    assert moved == [token._replace(position=token.position + 7) for token in tokens]
