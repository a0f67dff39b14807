"""Tasks as a user writes them, given by class path: questions without images, and about several."""

from __future__ import annotations

import io
from typing import Any

import datasets
from PIL import Image

from lit_depth.data import Sample, Task

COLORS = ("red", "green", "blue", "orange")


class ColorWords(Task):
    """Forty questions about words."""

    name, metric, max_new_tokens = "color_words", "ExactMatch", 3

    def load(self, split: str, path: str | None = None) -> datasets.Dataset:
        numbers = range(20) if split == "calibration" else range(20, 40)
        return datasets.Dataset.from_dict({"number": list(numbers)})

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        number = row["number"]
        answer = COLORS[number % 4]
        return Sample(f"{number}", f"{number}", None, f"What is color {number}?", (answer,))


class NoneToTwoImages(Task):
    """Questions about no picture, one and two by turns, of unequal sizes; six of each split."""

    name, metric, max_new_tokens, needs_image = "none_to_two_images", "ExactMatch", 4, False

    def load(self, split: str, path: str | None = None) -> datasets.Dataset:
        numbers = range(6) if split == "calibration" else range(6, 12)
        return datasets.Dataset.from_dict({"number": list(numbers)})

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        number = row["number"]
        first, second = (
            Image.effect_mandelbrot((24 + 4 * number, height), (-2, -1.5, 1, 1.5), 20 + number).convert("RGB")
            for height in (30, 52)
        )
        answer = COLORS[number % 4]
        return Sample(
            f"{number}",
            f"{number}",
            first if number % 3 else None,
            f"What is color {number}{' of these pictures' * (number % 3)}?",
            (answer,),
            more_images=(second,) if number % 3 == 2 else (),
        )


class RepeatedTask(Task):
    """Every split has the same rows; some cannot be read."""

    name, metric, max_new_tokens = "repeated", "ExactMatch", 4

    def __init__(self, id_format: str = "{}", image_format: str = "image-{}") -> None:
        self.id_format, self.image_format = id_format, image_format

    def load(self, split: str, path: str | None = None) -> datasets.Dataset:
        buffer = io.BytesIO()
        Image.new("RGB", (56, 56)).save(buffer, format="png")
        contents = [buffer.getvalue(), b"not an image", buffer.getvalue()]
        rows = {
            "image": [{"bytes": content, "path": None} for content in contents],
            "answers": [["yes"], ["no"], []],
        }
        features = datasets.Features(image=datasets.Image(), answers=datasets.List(datasets.Value("string")))
        return datasets.Dataset.from_dict(rows, features=features)

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        image_id = self.image_format.format(index, split=split)
        sample_id = self.id_format.format(index, split=split)
        return Sample(sample_id, image_id, row["image"], "Is it?", tuple(row["answers"]))


class Pairs(RepeatedTask):
    """Questions about two pictures; the second one of the second question cannot be read."""

    second = ("red", "blue", "green")

    def load(self, split: str, path: str | None = None) -> datasets.Dataset:
        return super().load(split).map(lambda row, index: {"answers": ["yes"], "index": index}, with_indices=True)

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        second = b"no image" if index == 1 else Image.new("RGBA", (8, 4), self.second[index])
        return Sample(f"{index}", f"{index}", row["image"], "Same?", ("yes",), more_images=(second,))
