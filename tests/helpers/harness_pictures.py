"""Local rows, with pictures, for task definitions that lmms-eval ships, and its own run on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

NUM_ROWS = 6
COLORS = ("red", "green", "blue", "yellow", "orange", "black")


def _picture(n: int) -> Image.Image:
    return Image.new("RGB", (24, 16), COLORS[n])


def _yes_no(n: int, **more: Any) -> dict[str, Any]:
    return {"question_id": str(n), "question": f"Is it {COLORS[n]}? ", "answer": ("yes", "no")[n % 2], **more}


# what a definition reads of a row, beside its picture; the split that it is evaluated on; where the answer stands
SHIPPED: dict[str, tuple[Callable[[int], dict[str, Any]], str, str | None]] = {
    # which rates two questions about each picture together
    "mme": (
        lambda n: _yes_no(n) | {"question_id": str(n // 2), "category": ("color", "code_reasoning")[n // 2 % 2]},
        "test",
        None,
    ),
    "pope": (lambda n: _yes_no(n, category="random"), "test", None),
    "docvqa_val": (
        lambda n: {"questionId": str(n), "question": "What is it?", "answers": ["a"]},
        "validation",
        "answers",
    ),
    "chartqa": (
        lambda n: {"type": ("human_test", "augmented_test")[n % 2], "question": "What is it?", "answer": "a"},
        "test",
        "answer",
    ),
    "ok_vqa_val2014": (
        lambda n: {"question_id": str(n), "question": f"Is it {COLORS[n]}?", "answers": ["a"] * 10},
        "val2014",
        "answers",
    ),
    "realworldqa": (lambda n: {"question": f"What is {COLORS[n]}?", "answer": "A"}, "test", "answer"),
    "ai2d": (
        lambda n: {"question": "Which one?", "options": ["red", "green", "blue", "black"], "answer": str(n % 4)},
        "test",
        None,
    ),
}


def write_rows(folder: Path, name: str, answers: dict[int, str] | None = None) -> Path:
    """A folder of one parquet file; some answers are given, in a form that the column has."""
    make, split, column = SHIPPED[name]
    rows = [make(n) for n in range(NUM_ROWS)]
    for n, text in (answers or {}).items():
        assert column is not None
        rows[n][column] = [text] * len(rows[n][column]) if isinstance(rows[n][column], list) else text
    columns = {key: [row[key] for row in rows] for key in rows[0]} | {"image": list(map(_picture, range(NUM_ROWS)))}
    features = datasets.Dataset.from_list(rows).features | {"image": datasets.Image()}
    (folder / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")  # as the hub names splits of any name
    return folder


def own_run(name: str, folder: Path, checkpoint: Path, mask: str) -> dict[str, Any]:
    """What `lmms_eval.evaluator.evaluate` gives, with its plugin for models of this package."""
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.evaluator import evaluate
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import load_yaml_config

    home = TaskManager("ERROR", include_path=_room(name), include_defaults=False).task_index[name]["yaml_path"]
    config = load_yaml_config(home, mode="full") | {"dataset_path": str(folder), "dataset_name": None}
    task = ConfigurableTask(config=config | {"dataset_kwargs": None}, model_name="lit_depth")
    model = get_model("lit_depth")(pretrained=str(checkpoint), mask=mask)
    model.task_dict[name] = task.dataset
    return evaluate(model, {name: task}, bootstrap_iters=0, process_docs_parallel=1)


def _room(name: str) -> str:
    import lmms_eval.tasks

    room = {"docvqa_val": "docvqa", "ok_vqa_val2014": "ok_vqa"}.get(name, name)
    return f"{Path(lmms_eval.tasks.__file__).parent / room}/"
