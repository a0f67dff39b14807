"""easy-VQA: one drawn shape per image, read from the package ``easy-vqa`` (MIT licence, made by others)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import ImageOps
from torch.utils.data import Dataset

from lit_depth.data.images import load_image
from lit_depth.data.task import Sample, Task, TrainingItem, check_split
from lit_depth.data.tasks.shapes_vqa import Draws

if TYPE_CHECKING:
    import datasets

QUESTIONS_PER_ITEM = 6
_SHAPE_ANSWERS = ("circle", "rectangle", "triangle")


class Question(NamedTuple):
    """A row of the package's ``questions.json``."""

    text: str
    answer: str
    image: int


class EasyVQA(Task):
    """easy-VQA: 5,000 images of 64 x 64 pixels with one shape each, 48,248 questions, 13 answers.

    The role "validation" is the package's own test split (1,000 images, 9,673 questions). A hash of the image's number
    deals the images of its train split out: a tenth to "calibration", the others to "train".

    Published baseline: 0.995 accuracy, by a convolutional network over image and bag of words, trained on twice as many
    images from the same generator (https://github.com/vzhou842/easy-VQA-keras, README).
    """

    name = "easy_vqa"
    metric = "ExactMatch"
    max_new_tokens = 4
    needs_image = True

    def load(self, split: str, path: str | None = None) -> datasets.Dataset:
        """Return the questions of a split, in the package's order.

        Columns: image, image_id, question_id, question, answer, question_type (color, shape or existence).

        Args:
            split: The role of the data.
            path: A folder laid out as the package's ``easy_vqa/data``, instead of the installed package's.

        Raises:
            ValueError: If neither is there.
        """
        import datasets

        folder, questions = _questions(check_split(split), path)
        counts: dict[int, int] = {}
        rows: list[dict[str, Any]] = []
        for question in questions:
            number = counts[question.image] = counts.get(question.image, -1) + 1
            image_id = f"{folder.name}-{question.image:05d}"
            rows.append(
                {
                    "image": str(_image_path(folder, question.image)),
                    "image_id": image_id,
                    "question_id": f"{image_id}-{number:02d}",
                    "question": question.text,
                    "answer": question.answer,
                    "question_type": _question_type(question.answer),
                }
            )
        text = datasets.Value("string")
        names = ("image_id", "question_id", "question", "answer", "question_type")
        features = datasets.Features({"image": datasets.Image(), **dict.fromkeys(names, text)})
        return datasets.Dataset.from_list(rows, features=features)

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        return Sample(
            id=row["question_id"],
            image_id=row["image_id"],
            image=row["image"],
            question=row["question"],
            references=(row["answer"],),
            meta={"question_type": row["question_type"]},
        )

    def training_set(self, num_images: int, seed: int) -> EasyVQATrainingSet:
        return EasyVQATrainingSet(num_images, seed)


class EasyVQATrainingSet(Dataset[TrainingItem]):
    """Images of the role "train" with up to six of their questions, drawn on access; half the images are mirrored.

    No question asks for a side, so mirroring keeps every answer.

    Args:
        num_images: Length; an image comes again after all others have come equally often.
        seed: Chooses the order of the images, their questions, and which are mirrored.
        path: As in `EasyVQA.load`.
    """

    def __init__(self, num_images: int = 50_000, seed: int = 0, path: str | None = None) -> None:
        self.num_images = num_images
        self.seed = seed
        self.folder, questions = _questions("train", path)
        self._by_image: dict[int, list[Question]] = {}
        for question in questions:
            self._by_image.setdefault(question.image, []).append(question)

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> TrainingItem:
        if not 0 <= index < self.num_images:
            raise IndexError(f"index {index} is outside of 0..{self.num_images - 1}")
        images = list(self._by_image)
        image = images[index % len(images)]
        draws = Draws("easy_vqa", self.seed, index)
        picture = load_image(str(_image_path(self.folder, image)))
        about = self._by_image[image]
        chosen = [about[number] for number in draws.subset(min(QUESTIONS_PER_ITEM, len(about)), len(about))]
        return TrainingItem(
            image=ImageOps.mirror(picture) if draws.below(2) else picture,
            questions=tuple(question.text for question in chosen),
            answers=tuple(question.answer for question in chosen),
        )


def _questions(split: str, path: str | None) -> tuple[Path, list[Question]]:
    """Folder of the package's split that serves a role, and the role's questions."""
    folder = _data_folder(path) / ("test" if split == "validation" else "train")
    source = folder / "questions.json"
    if not source.is_file():
        raise ValueError(f"easy_vqa: expected a folder with train/ and test/ as in the package's data, got no {source}")
    questions = [Question(*row) for row in json.loads(source.read_text(encoding="utf-8"))]
    if split != "validation":
        questions = [question for question in questions if _is_calibration(question.image) == (split == "calibration")]
    return folder, questions


def _data_folder(path: str | None) -> Path:
    if path is not None:
        return Path(path)
    package = importlib.util.find_spec("easy_vqa")
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            "easy_vqa is read from the package easy-vqa, which is not installed; "
            "do: pip install --no-deps easy-vqa==1.0"
        )
    return Path(next(iter(package.submodule_search_locations)), "data")


def _is_calibration(image: int) -> bool:
    digest = hashlib.sha256(f"easy_vqa/{image}".encode()).digest()
    return int.from_bytes(digest, "big") % 10 == 0


def _image_path(folder: Path, image: int) -> Path:
    return folder / "images" / f"{image}.png"


def _question_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "existence"
    return "shape" if answer in _SHAPE_ANSWERS else "color"
