"""Any picture that a dataset row may hold, as an upright RGB image."""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Pillow can open many more formats, some by starting other programs: what a dataset holds is not to be trusted.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO")

# An image of more pixels is reduced by a whole number as it is read: one of 169 million, which may come in 50 kB, took
# 3.5 GB by the time that it was crops. The largest canvas of a model has some 1 million, and page scans have 10.
MAX_PIXELS = 2**25
_STRIP_PIXELS = 2**22
# formats that people have pictures in and that are not read, by what stands near the beginning
_UNREAD = {"HEIC": b"ftyphei", "HEIF": b"ftypmif1", "SVG": b"<svg", "PDF": b"%PDF"}
_BEGINNING = 1024  # bytes


class ImageFolder(NamedTuple):
    """Where images may be read from that a row names by path, instead of holding them.

    Args:
        start: Folder that relative paths count from.
        tops: Folders of which one has to hold the file. Links inside them are followed.
    """

    start: str
    tops: tuple[str, ...]

    def name(self, path: str) -> str:
        """One name for a file, however its path is written, whatever folder it counts from, wherever all of them lie.

        >>> ImageFolder("/data/test", ("/data",)).name("./a/../b.png")
        'test/b.png'
        """
        if "://" in path:
            return path
        place = os.path.join(os.path.abspath(self.start), path)
        return os.path.relpath(os.path.normpath(place), os.path.abspath(self.tops[0]))

    def find(self, path: str | os.PathLike[str]) -> str:
        """The file's path; raise ValueError if it lies in none of the folders, or on the web."""
        if "://" in os.fspath(path):
            raise ValueError(f"expected a file, got the address {os.fspath(path)!r}; download it first")
        found = os.path.normpath(os.path.join(self.start, path))
        for top in self.tops:
            for place, folder in ((os.path.abspath(found), os.path.abspath(top)), map(os.path.realpath, (found, top))):
                if os.path.commonpath([place, folder]) == folder:
                    return found
        raise ValueError(f"the image file {os.fspath(path)!r} lies outside of {self.tops[0]}")


def load_image(value: Any, folder: ImageFolder | None = None) -> Image.Image:
    """Decode a picture as `datasets.Image` gives it, turn it upright and convert it to RGB.

    >>> load_image(Image.new("LA", (2, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)

    EXIF orientation is applied, transparent pixels show white, 16-bit grey is scaled to 8 bits, of an animation the
    first frame is taken. An image of more than 2^25 (34 million) pixels is reduced by the smallest whole number that
    brings it below, each new pixel the mean of a square of old ones.

    Raises:
        ValueError: If there is no image, it cannot be decoded, or it has more pixels than Pillow's limit against
            decompression bombs (twice ``PIL.Image.MAX_IMAGE_PIXELS``, 179 million); the message says which.
    """
    try:
        # Pillow warns of damaged EXIF data, and of images between once and twice its limit; large scans are there.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _open(value, folder)
            if 0 in image.size:
                raise ValueError(f"the image has no pixels: {image.width} x {image.height}")
            image.load()
            if image.width * image.height <= MAX_PIXELS:
                return _rgb(_upright(image))
            reduced = _reduced(image)
            reduced.getexif()[ExifTags.Base.Orientation] = _orientation(image)
            return _upright(reduced)
    except ValueError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image is refused: {error}") from error
    except UnidentifiedImageError as error:
        # Pillow's own message holds a memory address: the same file would give another reason each time.
        raise ValueError(f"the image{_quoted_path(value)} cannot be decoded: {_format_of(value, folder)}") from error
    # Damaged files make decoders raise nearly anything.
    except Exception as error:
        raise ValueError(
            f"the image{_quoted_path(value)} cannot be decoded: {type(error).__name__}: {error}"
        ) from error


def stored_path(value: Any) -> str | None:
    """The path of a picture that is stored as a file; None = it is stored otherwise.

    >>> stored_path({"bytes": None, "path": "a.png"}), stored_path({"bytes": b"", "path": "a.png"}), stored_path("b")
    ('a.png', None, 'b')
    """
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else None
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else None


def _quoted_path(value: Any) -> str:
    path = stored_path(value)
    return "" if path is None else f" {path!r}"


def _format_of(value: Any, folder: ImageFolder | None) -> str:
    """What a picture is that Pillow does not know, by how it begins."""
    source = _source(value, folder)
    if isinstance(source, str):
        with open(source, "rb") as file:
            source = file.read(_BEGINNING)
    start = b"" if isinstance(source, Image.Image) else bytes(source[:_BEGINNING])
    found = next((name for name, mark in _UNREAD.items() if mark in start), None)
    known = "unknown or unsupported format" if found is None else f"{found} is not read"
    return f"{known}; save it as JPEG, PNG or WebP"


def image_digest(value: Any, folder: ImageFolder | None = None) -> str:
    """Digest of a picture before it is decoded: of the stored bytes, of a file's content, or of a PIL image's pixels.

    It has 16 hexadecimal digits; what is no image gives why not.
    """
    try:
        source = _source(value, folder)
    except ValueError as error:
        return str(error)
    digest = hashlib.sha256()
    if isinstance(source, Image.Image):
        digest.update(f"{source.mode} {source.size}".encode() + source.tobytes())
    elif isinstance(source, str):
        with open(source, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    else:
        digest.update(source)
    return digest.hexdigest()[:16]


def _open(value: Any, folder: ImageFolder | None) -> Image.Image:
    source = _source(value, folder)
    if isinstance(source, Image.Image):
        return source
    image = Image.open(source if isinstance(source, str) else io.BytesIO(source), formats=_known_formats())
    if image.width * image.height > MAX_PIXELS:
        factor = _reduction(image.width, image.height)
        image.draft(None, (image.width // factor, image.height // factor))  # JPEG alone can be decoded at 1/2, 1/4, 1/8
    return image


def _source(value: Any, folder: ImageFolder | None) -> Image.Image | bytes | bytearray | memoryview | str:
    """A picture as it is stored: a PIL image, the bytes of a file, or the path of a file that is there."""
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
        return value
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"expected an image as PIL image, bytes or {{bytes, path}}, got {type(value).__name__}")
    path = os.fspath(value) if folder is None else folder.find(value)
    # a device or a pipe could be read for ever
    if not os.path.isfile(path):
        meant = _by_plain_name(os.path.dirname(path) or ".").get(os.path.basename(path).casefold())
        hint = "" if meant is None else f"; did you mean {meant!r}?"
        raise ValueError(f"the image file {os.fspath(value)!r} does not exist{hint}")
    return path


@lru_cache(maxsize=16)
def _by_plain_name(folder: str) -> dict[str, str]:
    """Names of a folder's files by what people type for them: in small letters, with their ending or without."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    without_ending = {os.path.splitext(name)[0].casefold(): name for name in names}
    return {**without_ending, **{name.casefold(): name for name in names if os.path.isfile(os.path.join(folder, name))}}


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reduction(width: int, height: int) -> int:
    """Smallest whole number by which an image is reduced to at most `MAX_PIXELS`.

    >>> _reduction(13_000, 13_000), _reduction(10, 10)
    (3, 1)
    """
    factor = 1
    while -(-width // factor) * -(-height // factor) > MAX_PIXELS:
        factor += 1
    return factor


def _reduced(image: Image.Image) -> Image.Image:
    """The image in RGB with at most `MAX_PIXELS`, strip by strip: only one is converted at a time."""
    factor, white = _reduction(image.width, image.height), _white(image)
    canvas = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = max(1, _STRIP_PIXELS // (image.width * factor)) * factor
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        canvas.paste(_rgb(strip, white).reduce(factor), (0, top // factor))
    return canvas


def _orientation(image: Image.Image) -> int:
    # Damaged EXIF data raises many types in Pillow; it says nothing about the pixels, so they are kept as they are.
    with contextlib.suppress(Exception):
        return image.getexif().get(ExifTags.Base.Orientation) or 1
    return 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:
        return image
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _rgb(image: Image.Image, white: int | None = None) -> Image.Image:
    """The image in RGB; ``white``: see `_white`, of the whole of which this is a part."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bits(image, _white(image) if white is None else white)
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # Pillow converts premultiplied grey to nothing else
        if image.mode == "La":
            image = image.convert("LA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _white(image: Image.Image) -> int:
    """The grey value that stands for white; only in modes wider than a byte does it depend on the image."""
    if image.mode not in ("I", "F"):
        return 65535
    high: Any = image.getextrema()[1]
    if image.mode == "F" and high <= 1:
        return 1
    return 255 if high <= 255 else 65535


def _eight_bits(image: Image.Image, white: int) -> Image.Image:
    """Grey values wider than a byte, scaled; a conversion by Pillow would cut them off at 255."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # NaN is refused too
        raise ValueError(f"the image has grey values from {low:g} to {high:g}, expected 0 to 65535")
    return Image.fromarray(np.rint(values.astype(np.float32) * (255 / white)).astype(np.uint8))
