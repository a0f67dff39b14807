"""A task as a user writes it, given by class path: questions without images."""

from __future__ import annotations

from typing import Any

import datasets

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
