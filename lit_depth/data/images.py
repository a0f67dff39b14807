"""Any picture that a dataset row may hold, as an upright RGB image."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Pillow can open many more formats, some by starting other programs: what a dataset holds is not to be trusted.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO")


def load_image(value: Any) -> Image.Image:
    """Decode a picture, turn it upright and convert it to RGB.

    >>> load_image(Image.new("LA", (2, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)

    EXIF orientation is applied, transparent pixels show white, 16-bit grey is scaled to 8 bits, of an animation the
    first frame is taken.

    Args:
        value: What `datasets.Image` gives: a PIL image, ``{"bytes": ..., "path": ...}``, or the bytes of a file.

    Returns:
        A decoded image of mode RGB that carries no orientation.

    Raises:
        ValueError: If there is no image, it cannot be decoded, or it has more pixels than Pillow's limit against
            decompression bombs (twice ``PIL.Image.MAX_IMAGE_PIXELS``, 179 million); the message says which.
    """
    try:
        # Pillow warns of damaged EXIF data, and of images between once and twice its limit; large scans are there.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _open(value)
            if 0 in image.size:
                raise ValueError(f"the image has no pixels: {image.width} x {image.height}")
            image.load()
            return _rgb(_upright(image))
    except ValueError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image is refused: {error}") from error
    except UnidentifiedImageError as error:
        # Pillow's own message holds a memory address: the same file would give another reason each time.
        raise ValueError("the image cannot be decoded: unknown or unsupported format") from error
    # Damaged files make decoders raise nearly anything.
    except Exception as error:
        raise ValueError(f"the image cannot be decoded: {type(error).__name__}: {error}") from error


def _open(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = content if content is not None else value.get("path")
    if value is None:
        raise ValueError("the row has no image")
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not len(value):
            raise ValueError("the image is empty: 0 bytes")
        source: Any = io.BytesIO(value)
    elif isinstance(value, (str, os.PathLike)):
        # a device or a pipe could be read for ever
        if not os.path.isfile(value):
            raise ValueError(f"the image file {os.fspath(value)!r} does not exist")
        source = value
    else:
        raise ValueError(f"expected an image as PIL image, bytes or {{bytes, path}}, got {type(value).__name__}")
    return Image.open(source, formats=_known_formats())


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    orientation = 1
    # Damaged EXIF data raises many types in Pillow; it says nothing about the pixels, so they are kept as they are.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation not in (None, 1):
            image = ImageOps.exif_transpose(image)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bits(image)
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values wider than a byte, scaled; a conversion by Pillow would cut them off at 255."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # NaN is refused too
        raise ValueError(f"the image has grey values from {low:g} to {high:g}, expected 0 to 65535")
    if image.mode.startswith("I;16"):
        top = 65535
    elif image.mode == "F" and high <= 1:
        top = 1
    else:
        top = 255 if high <= 255 else 65535
    return Image.fromarray(np.rint(values.astype(np.float32) * (255 / top)).astype(np.uint8))
