"""Molmo's multi-crop image preprocessing: an overview of the whole image, then overlapping high-resolution crops.

Shape legend: T crops of one image (the overview comes first), N patches per crop, P pixels per patch side, M pooled
vision features per crop. Margins, windows and crops are counted in patches unless a name ends in `_px`.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, load_image
from transformers.processing_utils import ImagesKwargs

from lit_depth.functional.arguments import checked
from lit_depth.models.molmo.tiling_molmo import ImageLayout, fit_within, image_layout, select_tiling

# what a call can change for itself: the arguments of `MolmoImageProcessor`, and what is no setting
_SETTINGS = (
    "base_image_input_size", "image_patch_size", "overlap_margins", "max_crops", "image_token_length_h",
    "image_token_length_w", "image_padding_mask", "do_normalize", "image_mean", "image_std",
)  # fmt: skip
_OF_A_CALL = ("apply_exif", "return_tensors")
MISSING_CROP = -1
"""Fills `images`, `image_masks` and `image_input_idx` of crops that a row does not have."""


def rgb_pixels(image: Any, apply_exif: bool = True) -> Tensor:
    """Pixels of an image as uint8 `[3, height, width]`; an alpha channel is dropped, not composited.

    Args:
        image: PIL image of any mode, numpy uint8 `[height, width, channels]` or torch uint8
            `[channels, height, width]` with 1, 3 or 4 channels; or a file's path or an address, which transformers
            reads, upright.
        apply_exif: Rotate and flip a PIL image as its EXIF orientation says.

    Raises:
        ValueError: For any other type, data type or shape, and for an image without pixels.
    """
    if isinstance(image, str):
        try:
            image = load_image(image)
        except (ValueError, OSError) as error:
            raise ValueError(f"expected a picture's path or address, got {image[:200]!r}: {error}") from error
    if isinstance(image, Image.Image):
        upright = image.convert("RGB")
        if apply_exif:
            # Damaged EXIF data raises many types in Pillow; it says nothing about the pixels, so they are kept as is.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(upright, in_place=True)
        pixels = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    elif isinstance(image, np.ndarray) and image.ndim == 3 and image.dtype == np.uint8:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    elif isinstance(image, Tensor) and image.ndim == 3 and image.dtype == torch.uint8:
        pixels = image
    else:
        given = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
        raise ValueError(
            "expected a PIL image, a numpy uint8 array [height, width, channels] or a torch uint8 tensor "
            f"[channels, height, width], got {given}"
        )
    if pixels.shape[0] not in (1, 3, 4) or pixels.numel() == 0:
        raise ValueError(
            f"expected an image with 1, 3 or 4 channels and at least one pixel, got {pixels.shape[0]} channels, "
            f"height {pixels.shape[1]} and width {pixels.shape[2]}"
        )
    return pixels[:3].expand(3, -1, -1)


def images_of_row(entry: Any) -> list[Any]:
    """The images of one row, given as an image, a list of images, or None for none.

    >>> images_of_row(None), images_of_row("image"), images_of_row(("image", "image"))
    ([], ['image'], ['image', 'image'])
    """
    return [] if entry is None else list(entry) if isinstance(entry, (list, tuple)) else [entry]


class MolmoImagesKwargs(ImagesKwargs, total=False):
    """Fields of a released `preprocessor_config.json`; `from_pretrained` and a call take each as an override, a call
    also whether to turn PIL images upright."""

    apply_exif: bool

    base_image_input_size: int | list[int]
    image_patch_size: int
    overlap_margins: list[int]
    max_crops: int
    image_token_length_h: int
    image_token_length_w: int
    image_padding_mask: bool


class MolmoImageProcessor(BaseImageProcessor):
    """Turn images into overlapping, letterboxed, normalised crops, as the released Molmo checkpoints expect.

    Each image gives an overview crop followed by `rows x cols` crops of its upscaled version, which overlap by
    `overlap_margins`. Images are resized to fit with antialiased bilinear interpolation in float32, padded with 0 and
    then normalised. Images smaller than the margins and strips thinner than a pixel after scaling give one crop.

    Args:
        base_image_input_size: Crop size in pixels, (height, width) or one number; square.
        image_patch_size: Patch side in pixels.
        overlap_margins: Patches cut off at the (left and top, right and bottom) of inner crop borders.
        max_crops: Largest number of crops besides the overview.
        image_token_length_h: Pooled features per crop column; half the patches, rounded up.
        image_token_length_w: Pooled features per crop row; half the patches, rounded up.
        image_padding_mask: Whether to return `image_masks`.
        do_normalize: Whether to subtract the mean and divide by the standard deviation.
        image_mean: Mean of each channel in [0, 1]; OpenAI CLIP's by default.
        image_std: Standard deviation of each channel in [0, 1]; OpenAI CLIP's by default.
        kwargs: Further fields of the file. `auto_map` names remote code; it is dropped and never followed.

    Raises:
        ValueError: If the sizes do not fit together.

    Example:
        >>> processor = MolmoImageProcessor()
        >>> processor.tiling(height=830, width=1100), processor.num_image_tokens(height=830, width=1100)
        ((3, 4), 1196)
        >>> processor([Image.new("RGB", (640, 480))])["images"].shape
        torch.Size([1, 7, 576, 588])
    """

    model_input_names = ["images", "image_masks", "image_input_idx"]
    valid_kwargs = MolmoImagesKwargs
    settings = _SETTINGS

    @checked
    def __init__(
        self,
        base_image_input_size: int | Sequence[int] = (336, 336),
        image_patch_size: int = 14,
        overlap_margins: Sequence[int] = (4, 4),
        max_crops: int = 12,
        image_token_length_h: int = 12,
        image_token_length_w: int = 12,
        image_padding_mask: bool = True,
        do_normalize: bool = True,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{k: v for k, v in kwargs.items() if k not in ("auto_map", "image_processor_type")})
        if isinstance(base_image_input_size, int):
            base_image_input_size = [base_image_input_size] * 2
        # Lists, not tuples: a saved and reloaded configuration compares equal.
        self.base_image_input_size: list[int] = list(base_image_input_size)
        self.image_patch_size = image_patch_size
        self.overlap_margins = list(overlap_margins)
        self.max_crops = max_crops
        self.image_token_length_h = image_token_length_h
        self.image_token_length_w = image_token_length_w
        self.image_padding_mask = image_padding_mask
        self.do_normalize = do_normalize
        self.image_mean = list(OPENAI_CLIP_MEAN if image_mean is None else image_mean)
        self.image_std = list(OPENAI_CLIP_STD if image_std is None else image_std)
        misfit = self._misfit()
        if misfit is not None:
            raise ValueError(f"expected sizes that fit together: {misfit}")

    def _misfit(self) -> str | None:
        """Why crop, patch, margin and pooled sizes cannot be tiled without gaps; None if they can."""
        base, patch = self.base_image_input_size, self.image_patch_size
        if len(base) != 2 or base[0] != base[1] or patch < 1 or base[0] < patch or base[0] % patch:
            return f"base_image_input_size must be square and a multiple of image_patch_size, got {base} and {patch}"
        if len(self.overlap_margins) != 2 or min(self.overlap_margins) < 0 or self.overlap_margins[0] % 2:
            return (
                "overlap_margins must be two non-negative numbers of patches, the first even because features are "
                f"pooled 2x2, got {self.overlap_margins}"
            )
        if self.max_crops < 1:
            return f"max_crops must be at least 1, got {self.max_crops}"
        window = self.crop_patches - sum(self.overlap_margins)
        if window < 1 or (self.max_crops > 1 and window % 2):
            return (
                "overlap_margins must leave a positive, even number of the crop's patches per side, got "
                f"{self.overlap_margins} of {self.crop_patches}"
            )
        pooled, given = (self.crop_patches + 1) // 2, (self.image_token_length_h, self.image_token_length_w)
        if given != (pooled, pooled):
            return (
                f"image_token_length_h and image_token_length_w must be {pooled}, half of {self.crop_patches} patches "
                f"per crop side, got {given[0]} and {given[1]}"
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            return (
                "image_mean and image_std must have 3 values, the latter positive, got "
                f"{self.image_mean} and {self.image_std}"
            )
        return None

    @property
    def crop_patches(self) -> int:
        """Patches per crop side."""
        return self.base_image_input_size[0] // self.image_patch_size

    @property
    def _margin_px(self) -> int:
        return sum(self.overlap_margins) * self.image_patch_size

    @property
    def _window_px(self) -> int:
        return self.base_image_input_size[0] - self._margin_px

    def tiling(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of crops for an image of this size in pixels."""
        return select_tiling(height - self._margin_px, width - self._margin_px, self._window_px, self.max_crops)

    def layout(self, height: int, width: int) -> ImageLayout:
        """Tokens and feature positions for an image of this size in pixels."""
        left, right = self.overlap_margins
        return image_layout(*self.tiling(height, width), self.crop_patches, (left, right))

    def num_image_tokens(self, height: int, width: int) -> int:
        """Tokens that an image of this size in pixels adds to the prompt, column and border tokens included."""
        return len(self.layout(height, width).token_kinds)

    def with_settings(self, changes: Mapping[str, Any]) -> Self:
        """This processor, or where settings are to differ a copy with those; what a call says besides is left out.

        Args:
            changes: Arguments of the constructor and of `preprocess`; None = as it is.

        Raises:
            ValueError: If one is neither, or sizes do not fit together.
        """
        changes = {name: value for name, value in changes.items() if value is not None and name not in _OF_A_CALL}
        current = {name: getattr(self, name) for name in _SETTINGS}
        if unknown := sorted(changes.keys() - current.keys()):
            raise ValueError(f"expected image settings among {', '.join(current)}, got {', '.join(unknown)}")
        return self if changes.items() <= current.items() else type(self)(**{**current, **changes})

    def preprocess(
        self, images: Any, apply_exif: bool = True, return_tensors: str | None = "pt", **settings: Any
    ) -> BatchFeature:
        """Crop a batch of images.

        Args:
            images: One image or a list with one entry for each row: an image (see `rgb_pixels`), a list of images, or
                None for a row without.
            apply_exif: Rotate and flip PIL images as their EXIF orientation says.
            return_tensors: "pt"; "np" or None give numpy arrays.
            settings: Arguments of the constructor, for this call alone.

        Returns:
            `images` float32 `[batch, T, N, P * P * 3]`, patches row by row and pixels in (height, width, channel)
            order; `image_masks` float32 `[batch, T, N]`, the share of each patch that is image, not letterbox;
            `image_input_idx` long `[batch, T, M]`, positions counted from the first image token of the row. Crops that
            a row lacks hold -1, features in the overlap -100. Several images of a row follow one another, and so do
            their tokens.

            `image_masks` keeps a quirk of the release, because its weights were trained with it: the masks of an
            image's crops come first and a row of -1 (for its overview, which is crop 0) comes last.

        Raises:
            ValueError: If there is no image at all or one cannot be read as RGB.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"expected return_tensors 'pt', 'np' or None, got {return_tensors!r}")
        processor = self.with_settings(settings)
        rows = images if isinstance(images, (list, tuple)) else [images]
        pixels = [[rgb_pixels(image, apply_exif) for image in images_of_row(row)] for row in rows]
        if not any(pixels):
            raise ValueError(f"expected at least one image, got {len(pixels)} rows without any")
        data = processor._crops(pixels)
        return BatchFeature(data if return_tensors == "pt" else {name: each.numpy() for name, each in data.items()})

    def _crops(self, pixels: list[list[Tensor]]) -> dict[str, Tensor]:
        """What `preprocess` returns, of rows of images given as uint8 `[3, H, W]`."""
        layouts = [[self.layout(*image.shape[1:]) for image in row] for row in pixels]
        num_crops = max(sum(len(layout.image_input_idx) for layout in row) for row in layouts)
        num_patches, num_features = self.crop_patches**2, self.image_token_length_h * self.image_token_length_w
        data = {
            "images": torch.empty(len(pixels), num_crops, num_patches, self.image_patch_size**2 * 3),
            "image_masks": torch.full((len(pixels), num_crops, num_patches), float(MISSING_CROP)),
            "image_input_idx": torch.full((len(pixels), num_crops, num_features), MISSING_CROP),
        }
        for row, images in enumerate(pixels):
            crop = token = 0
            for image, layout in zip(images, layouts[row]):
                index = layout.image_input_idx
                stop = crop + len(index)
                data["image_input_idx"][row, crop:stop] = torch.where(index >= 0, index + token, index)
                self._write_crops(image, data["images"][row, crop:stop], data["image_masks"][row, crop : stop - 1])
                crop, token = stop, token + len(layout.token_kinds)
            data["images"][row, crop:] = MISSING_CROP
        if not self.image_padding_mask:
            del data["image_masks"]
        return data

    def _write_crops(self, pixels: Tensor, images: Tensor, masks: Tensor) -> None:
        """Fill `images` `[T, N, P * P * 3]` and `masks` `[T - 1, N]` of one image given as uint8 `[3, H, W]`."""
        rows, cols = self.tiling(*pixels.shape[1:])
        patch, base, window = self.image_patch_size, self.base_image_input_size[0], self._window_px
        grid = (self.crop_patches, patch)
        # Planar memory halves the time of the resize; the crops are cheaper to copy from interleaved memory.
        unit = pixels.contiguous().float().div_(255)

        overview, _ = self._letterbox(unit, base, base)
        # [g, P, g, P, 3] -> [g, g, P, P, 3]
        overview = overview.unflatten(1, grid).unflatten(0, grid).transpose(1, 2)
        images[0].view(overview.shape).copy_(overview)

        canvas, is_image = self._letterbox(unit, rows * window + self._margin_px, cols * window + self._margin_px)
        # [rows, cols, 3, base, base] -> [rows, cols, g, g, P, P, 3]
        crops = canvas.unfold(0, base, window).unfold(1, base, window)
        crops = crops.unflatten(4, grid).unflatten(3, grid).permute(0, 1, 3, 5, 4, 6, 2)
        images[1:].view(crops.shape).copy_(crops)

        # Image pixels per patch row and per patch column; a patch holds their product.
        in_rows, in_cols = (axis.unfold(0, base, window).unflatten(1, grid).sum(-1) for axis in is_image)
        shares = in_rows[:, None, :, None] * in_cols[None, :, None, :] / patch**2
        masks.copy_(shares.reshape(masks.shape))

    def _letterbox(self, unit: Tensor, height: int, width: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Resize `[3, H, W]` in [0, 1] to fit, centre it on 0 and normalise.

        Returns:
            The canvas `[height, width, 3]`, and where it shows the image along each axis, float `[height]`, `[width]`.
        """
        scaled = fit_within(unit.shape[1], unit.shape[2], height, width)
        top, left = (height - scaled[0]) // 2, (width - scaled[1]) // 2
        bottom, right = top + scaled[0], left + scaled[1]
        resized = F.interpolate(unit[None], size=scaled, mode="bilinear", antialias=True, align_corners=False)[0]
        resized, border = resized.clamp_(0, 1), torch.zeros(3, 1, 1)
        if self.do_normalize:
            mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
            resized, border = resized.sub_(mean).div_(std), (border - mean) / std
        canvas = torch.empty(height, width, 3)
        canvas[top:bottom, left:right] = resized.permute(1, 2, 0)
        for edge in (canvas[:top], canvas[bottom:], canvas[top:bottom, :left], canvas[top:bottom, right:]):
            edge.copy_(border.flatten())
        is_image = torch.zeros(height), torch.zeros(width)
        is_image[0][top:bottom] = is_image[1][left:right] = 1
        return canvas, is_image
