"""Crops of images of any kind and size; what is no image, and sizes that do not fit together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lit_depth.models.molmo.image_processing_molmo import MolmoImageProcessor, rgb_pixels

TINY = {
    "base_image_input_size": [56, 56],
    "image_patch_size": 7,
    "overlap_margins": [2, 2],
    "max_crops": 4,
    "image_token_length_h": 4,
    "image_token_length_w": 4,
}


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("margins", [[2, 2], [2, 0]])
@pytest.mark.parametrize("size", [(1, 1), (700, 5), (5, 700), (1, 4000), (28, 28), (28, 300), (300, 28), (27, 29)])
def test_strips_and_dots(size: tuple[int, int], margins: list[int]) -> None:
    processor = MolmoImageProcessor(**{**TINY, "overlap_margins": margins})
    got = processor([Image.new("RGB", size, (255, 0, 0))])
    rows, cols = processor.tiling(size[1], size[0])
    assert got["images"].shape == (1, 1 + rows * cols, 64, 147)
    # Red reaches the overview at full strength: a strip keeps at least one pixel.
    red = (1 - processor.image_mean[0]) / processor.image_std[0]
    assert got["images"][0, 0].unflatten(-1, (49, 3))[..., 0].max().item() == pytest.approx(red, abs=1e-5)


def test_kinds_of_input_agree() -> None:
    image = random_image(90, 130)
    array, processor = np.array(image), MolmoImageProcessor(**TINY)
    channels_first = torch.from_numpy(array).permute(2, 0, 1)
    with_alpha = np.concatenate([array, np.zeros_like(array[..., :1])], axis=-1)
    expected = processor(image)["images"]
    for other in (array, channels_first, with_alpha, Image.fromarray(with_alpha), array[:, ::-1][:, ::-1]):
        assert torch.equal(processor([other])["images"], expected)
    grey = array[..., :1]
    assert torch.equal(processor(grey)["images"], processor(Image.fromarray(grey[..., 0]))["images"])


def test_input_is_left_unchanged() -> None:
    image = random_image(40, 60)
    image.getexif()[0x0112] = 6
    array, tensor = np.array(image), torch.zeros(3, 40, 60, dtype=torch.uint8)
    copies = array.copy(), tensor.clone()
    MolmoImageProcessor(**TINY)([image, array, tensor])
    assert image.size == (40, 60) and np.array_equal(np.array(image), copies[0])
    assert np.array_equal(array, copies[0]) and torch.equal(tensor, copies[1])


def test_damaged_exif_is_no_reason_to_fail() -> None:
    image = random_image(40, 60)
    expected = rgb_pixels(image)
    image.info["exif"] = b"Exif\x00\x00nonsense"
    assert torch.equal(rgb_pixels(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(5, 4, 3, dtype=torch.uint8),
        "picture.png",
    ],
)
def test_unreadable_images(image: object) -> None:
    with pytest.raises(ValueError, match="expected a.* got"):
        MolmoImageProcessor(**TINY)([image])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_image_input_size": [56, 42]}, "square and a multiple of image_patch_size"),
        ({"base_image_input_size": 57}, "square and a multiple of image_patch_size"),
        ({"image_patch_size": 0}, "square and a multiple of image_patch_size"),
        ({"overlap_margins": [1, 2]}, "first even"),
        ({"overlap_margins": [-2, 2]}, "non-negative"),
        ({"overlap_margins": [4, 4]}, "positive, even number of the crop's patches"),
        ({"overlap_margins": [2, 1]}, "positive, even number of the crop's patches"),
        ({"max_crops": 0}, "at least 1"),
        ({"image_token_length_w": 5}, "must be 4, half of 8 patches"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std"),
        ({"image_mean": [0.5]}, "image_mean"),
    ],
)
def test_geometry_is_checked(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MolmoImageProcessor(**{**TINY, **change})


def test_padding_mask_can_be_left_out() -> None:
    got = MolmoImageProcessor(**TINY, image_padding_mask=False)(random_image(40, 60))
    assert set(got) == {"images", "image_input_idx"}
