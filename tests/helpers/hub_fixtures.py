"""What small copies of datasets are made of: drawn images, parquet files, types of columns."""

from __future__ import annotations

import colorsys
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw

from lit_depth.data import DepthDataModule, Sample
from lit_depth.data.sources import canonical_split

TEXT, INT64, INT32, INT8 = Value("string"), Value("int64"), Value("int32"), Value("int8")
SOFT = ("red", "Red", "dark red", "red", "blue", "red", "red", "red", "maroon", "red")
TEN = ["red", "Red", "dark red", "red", "blue", "red", "red", "red", "maroon", "red"]


def encode(image: Image.Image, format: str = "png", **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **kwargs)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """The start of a PNG that claims to have this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def draw(index: int, size: tuple[int, int] = (48, 32)) -> dict[str, Any]:
    """A stored image; another index gives another picture."""
    color = tuple(int(255 * channel) for channel in colorsys.hsv_to_rgb(index * 0.618 % 1, 0.7, 0.9))
    image = PILImage.new("RGB", size, color)
    ImageDraw.Draw(image).text((4, 4), str(index), fill="black")
    return {"bytes": encode(image), "path": f"{index}.png"}


def cauldron(question: str, answer: str) -> Callable:
    """Rows of conversations as a collection for training has them, two questions about each image."""

    def build(split: str, start: int, count: int) -> tuple[list[dict], Features]:
        rows = [
            {
                "images": [draw(index)],
                "texts": [
                    {"user": f"{question} {index}.{n}?\nGive a very brief answer.", "assistant": answer, "source": "x"}
                    for n in range(2)
                ],
            }
            for index in range(start, start + count)
        ]
        texts = {"user": TEXT, "assistant": TEXT, "source": TEXT}
        return rows, Features({"images": List(Image()), "texts": List(texts)})

    return build


def write_rows(path: Path, rows: list[dict], features: Features | None = None) -> None:
    """Write a parquet file, as `datasets` does or, without features, as any other program would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if features is None:
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        Dataset.from_list(rows, features=features).to_parquet(path)


def data(name, path, **kwargs) -> DepthDataModule:
    defaults = {"num_samples": None, "calibration_samples": None, "batch_size": 4}
    return DepthDataModule(task=name, path=str(path), **{**defaults, **kwargs})


def index_of(splits: Sequence[str], sample: Sample) -> int:
    """Number that the fixture gave the sample's row: the splits of a dataset start at 0, 1000, 2000."""
    names = [canonical_split(split) for split in splits]
    split, row = sample.id.split("/")[:2]
    return 1000 * names.index(split) + int(row)
