"""Small parquet copies of the fourteen datasets, in exactly their documented columns, with drawn images."""

from __future__ import annotations

import colorsys
import io
import struct
import zlib
from collections.abc import Callable
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


def _coco_2014_vqa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "question_type": "what color is",
            "multiple_choice_answer": "red",
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(TEN)
            ],
            "image_id": 1000 + index // 2,  # two questions about each image
            "answer_type": "other",
            "question_id": 10 * index,
            "question": f"What color is shape {index}?",
            "image": draw(index // 2),
        }
        for index in range(start, start + count)
    ]
    answer = {"answer": TEXT, "answer_confidence": TEXT, "answer_id": INT64}
    features = {"question_type": TEXT, "multiple_choice_answer": TEXT, "answers": List(answer), "image_id": INT64}
    features |= {"answer_type": TEXT, "question_id": INT64, "question": TEXT, "image": Image()}
    return rows, Features(features)


def _text_vqa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "image_id": f"a{index:04x}",
            "question_id": 34000 + index,
            "question": f"what is written on sign {index}?",
            "question_tokens": ["what", "is"],
            "image": draw(index),
            "image_width": 48,
            "image_height": 32,
            "flickr_original_url": "",
            "answers": TEN,
            "image_classes": ["Sign"],
            "set_name": split,
            "ocr_tokens": ["stop"],
        }
        for index in range(start, start + count)
    ]
    features = {"image_id": TEXT, "question_id": INT32, "question": TEXT, "question_tokens": List(TEXT)}
    features |= {"image": Image(), "image_width": INT32, "image_height": INT32, "flickr_original_url": TEXT}
    features |= {"answers": List(TEXT), "image_classes": List(TEXT), "set_name": TEXT, "ocr_tokens": List(TEXT)}
    return rows, Features(features)


def _okvqa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "question_id": str(index),
            "image": draw(index // 2),
            "question": f"What sport is {index}?",
            "answers": TEN,
            "question_type": "four",
            "answer_type": "other",
        }
        for index in range(start, start + count)
    ]
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answers": List(TEXT)}
    return rows, Features(features | {"question_type": TEXT, "answer_type": TEXT})


def _science_qa_img(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "image": draw(index),
            "question": f"Which is larger in {index}?",
            "choices": ["a cat", "a cow", "a mouse"],
            "answer": index % 3,
            "hint": "Look at the scale." if index % 2 else "",
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "topic": "biology",
            "category": "Animals",
            "skill": "Compare",
            "lecture": "",
            "solution": "",
        }
        for index in range(start, start + count)
    ]
    names = ("task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    features = {"image": Image(), "question": TEXT, "choices": List(TEXT), "answer": INT8, "hint": TEXT}
    return rows, Features(features | dict.fromkeys(names, TEXT))


def _doc_qa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "questionId": str(49000 + index),
            "question": f"What is the date on page {index}?",
            "question_types": ["handwritten"],
            "image": draw(index // 2),
            "docId": 14000 + index // 2,
            "ucsf_document_id": "xyz",
            "ucsf_document_page_no": "1",
            "answers": ["May 3", "3 May"],
            "data_split": split,
        }
        for index in range(start, start + count)
    ]
    features = {"questionId": TEXT, "question": TEXT, "question_types": List(TEXT), "image": Image(), "docId": INT64}
    names = ("ucsf_document_id", "ucsf_document_page_no", "data_split")
    return rows, Features(features | {"answers": List(TEXT)} | dict.fromkeys(names, TEXT))


def _info_qa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "questionId": str(index),
            "question": f"How many in {index}?",
            "answers": ["10%"],
            "answer_type": ["single span"],
            "image": draw(index // 2),
            "operation/reasoning": ["none"],
            "ocr": "{}",
        }
        for index in range(start, start + count)
    ]
    features = {"questionId": TEXT, "question": TEXT, "answers": List(TEXT), "answer_type": List(TEXT)}
    return rows, Features(features | {"image": Image(), "operation/reasoning": List(TEXT), "ocr": TEXT})


def _chart_qa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {"image": draw(index // 2), "query": f"What is bar {index}?", "label": ["14.5"], "human_or_machine": index % 2}
        for index in range(start, start + count)
    ]
    return rows, Features({"image": Image(), "query": TEXT, "label": List(TEXT), "human_or_machine": INT8})


def _cauldron(question: str, answer: str) -> Callable:
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


def _plot_qa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    if split == "train":
        return _cauldron("What is the value in", "0.5.")(split, start, count)
    rows = [
        {"image": draw(index), "query": f"What is value {index}?", "answer": ["12.4"]}
        for index in range(start, start + count)
    ]
    return rows, Features({"image": Image(), "query": TEXT, "answer": List(TEXT)})


def _figure_qa(split: str, start: int, count: int) -> tuple[list[dict], None]:
    # no features: the images are not declared as such
    qa = [{"question": "Is Red the minimum?", "answer": "Yes."}, {"question": "Is Red the maximum?", "answer": "No."}]
    return [{"image": draw(index), "qa": qa} for index in range(start, start + count)], None


def _dv_qa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    qa = [{"question": "How many bars?", "answer": "5."}, {"question": "Which is largest?", "answer": "Soil."}]
    rows = [{"image": draw(index), "qa": qa} for index in range(start, start + count)]
    return rows, Features({"image": Image(), "qa": List({"question": TEXT, "answer": TEXT})})


def _mmmu(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "id": f"{split}_Art_{index}",
            "question": f"<image 1> What is {index}?",
            "options": "['1/3', \"a cat's tail\", '<image 2>']" if index % 3 else "[]",
            "explanation": "",
            **{f"image_{number}": draw(10 * index + number) if number <= 2 else None for number in range(1, 8)},
            "img_type": "['Plots']",
            "answer": "B" if index % 3 else "['1/3', '0.33']",
            "topic_difficulty": "Easy",
            "question_type": "multiple-choice" if index % 3 else "open",
            "subfield": "Drawing",
        }
        for index in range(start, start + count)
    ]
    features = {name: TEXT for name in rows[0]} | {f"image_{number}": Image() for number in range(1, 8)}
    return rows, Features(features)


def _coco_caption(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    rows = [
        {
            "question_id": f"COCO_val2014_{index:012d}.jpg",
            "image": draw(index),
            "question": "Please carefully observe the image and come up with a caption for the image.",
            "answer": [f"A red square number {index}.", "A square.", "Something red.", "One square.", "A shape."],
            "id": index,
            "license": 1,
            "file_name": f"COCO_val2014_{index:012d}.jpg",
            "coco_url": "",
            "height": 32,
            "width": 48,
            "date_captured": "",
        }
        for index in range(start, start + count)
    ]
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": List(TEXT), "id": INT64}
    features |= {"license": INT8, "file_name": TEXT, "coco_url": TEXT, "height": INT32, "width": INT32}
    return rows, Features(features | {"date_captured": TEXT})


def _tally_qa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    if split == "train":
        return _cauldron("How many cups are in", "3.")(split, start, count)
    qa = [
        {"question": "How many dogs?", "answer": "2", "is_simple": True},
        {"question": "How many brown dogs run?", "answer": "1", "is_simple": False},
    ]
    rows = [{"image": draw(index), "qa": qa} for index in range(start, start + count)]
    element = {"question": TEXT, "answer": TEXT, "is_simple": Value("bool")}
    return rows, Features({"image": Image(), "qa": List(element)})


def _st_qa(split: str, start: int, count: int) -> tuple[list[dict], Features]:
    qas = [{"question": "What does the sign say?", "answers": ["Stop", "stop sign"]}]
    qas.append({"question": "Which street?", "answers": ["Main St"]})
    rows = [{"image": draw(index), "qas": qas} for index in range(start, start + count)]
    return rows, Features({"image": Image(), "qas": List({"question": TEXT, "answers": List(TEXT)})})


# Builder and public splits of each dataset.
DATASETS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "coco_2014_vqa": (_coco_2014_vqa, ("validation",)),
    "text_vqa": (_text_vqa, ("train", "validation")),
    "okvqa": (_okvqa, ("train", "val2014")),
    "science_qa_img": (_science_qa_img, ("train", "validation", "test")),
    "doc_qa": (_doc_qa, ("train", "validation")),
    "info_qa": (_info_qa, ("validation",)),
    "chart_qa": (_chart_qa, ("train", "val", "test")),
    "plot_qa": (_plot_qa, ("train", "test")),
    "figure_qa": (_figure_qa, ("train",)),
    "dv_qa": (_dv_qa, ("train",)),
    "mmmu": (_mmmu, ("dev", "validation")),
    "coco_caption": (_coco_caption, ("val",)),
    "tally_qa": (_tally_qa, ("train", "test")),
    "st_qa": (_st_qa, ("train",)),
}


def write_rows(path: Path, rows: list[dict], features: Features | None = None) -> None:
    """Write a parquet file, as `datasets` does or, without features, as any other program would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if features is None:
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        Dataset.from_list(rows, features=features).to_parquet(path)


def write_dataset(name: str, folder: Path, num_rows: int = 24) -> Path:
    """Write all public splits of a dataset, each of other images, in the files that the hub would have."""
    build, splits = DATASETS[name]
    for number, split in enumerate(splits):
        rows, features = build(split, 1000 * number, num_rows)
        write_rows(folder / f"{split}-00000-of-00001.parquet", rows, features)
    return folder


def data(name, path, **kwargs) -> DepthDataModule:
    defaults = {"num_samples": None, "calibration_samples": None, "batch_size": 4}
    return DepthDataModule(task=name, path=str(path), **{**defaults, **kwargs})


def index_of(name: str, sample: Sample) -> int:
    """Number that the fixture gave the sample's row: the splits of a dataset start at 0, 1000, 2000."""
    names = [canonical_split(split) for split in DATASETS[name][1]]
    split, row = sample.id.split("/")[:2]
    return 1000 * names.index(split) + int(row)
