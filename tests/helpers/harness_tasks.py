"""Local rows for task definitions that lm-evaluation-harness ships, and the harness's own run on them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from lit_depth.functional import masked
from tests.helpers.families import sizes, tokenizer
from tests.helpers.tiny_models import tiny_model

NUM_BLOCKS, CONTEXT, NUM_ROWS = 4, 1024, 6
MASKS = ("1111", "0111", "1101", "1010")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "red circle")
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "black")


def _arc(n: int) -> dict[str, Any]:
    texts = [SHAPES[(n + k) % 7] for k in range(3 + n % 2)]  # some questions of ARC have three choices
    choices = {"text": texts, "label": list("ABCD"[: len(texts)])}
    return {"id": str(n), "question": f"What is {COLORS[n]}?", "choices": choices, "answerKey": "ABC"[n % 3]}


def _hellaswag(n: int) -> dict[str, Any]:
    endings = [f"is a {SHAPES[(n + k) % 7]}. [step] It is {COLORS[k]}" for k in range(4)]
    context = {"ctx_a": f"There is a {COLORS[n]} image.", "ctx_b": "the shape"}
    return {"activity_label": "Drawing", **context, "endings": endings, "label": str(n % 4)}


def _sciq(n: int) -> dict[str, Any]:
    wrong = {f"distractor{k}": SHAPES[(n + k) % 7] for k in (1, 2, 3)}
    support = "" if n % 2 else f" The {SHAPES[n]} is {COLORS[n]}. "
    return {"question": f"What is {COLORS[n]}?", **wrong, "correct_answer": SHAPES[n], "support": support}


def _winogrande(n: int) -> dict[str, Any]:
    sentence = f"The {SHAPES[n]} is not the {COLORS[n]} one because the _ is {COLORS[n - 1]}."
    return {"sentence": sentence, "option1": SHAPES[n], "option2": "dark red image", "answer": str(1 + n % 2)}


def _gsm8k(n: int) -> dict[str, Any]:
    return {"question": f"How many {SHAPES[n]}s are {n} and {n}?", "answer": f"{n} and {n} is {2 * n}\n#### {2 * n}"}


def _triviaqa(n: int) -> dict[str, Any]:
    return {"question": f"What is {COLORS[n]}", "answer": {"aliases": [SHAPES[n], SHAPES[n - 1]]}}


# rows of the columns that a definition reads, and their splits: the one that the harness evaluates on is the first
SHIPPED: dict[str, tuple[Callable[[int], dict[str, Any]], tuple[str, ...]]] = {
    "arc_easy": (_arc, ("test", "validation", "train")),
    "hellaswag": (_hellaswag, ("validation", "train")),
    "piqa": (
        lambda n: {"goal": f"Draw a {SHAPES[n]}", "sol1": COLORS[n], "sol2": f"{COLORS[n - 1]} one", "label": n % 2},
        ("validation", "train"),
    ),
    "boolq": (
        lambda n: {"passage": f"A {SHAPES[n]} is {COLORS[n]}.", "question": f"is it {COLORS[n // 2]}", "label": n % 2},
        ("validation", "train"),
    ),
    "winogrande": (_winogrande, ("validation", "train")),
    "sciq": (_sciq, ("test", "validation", "train")),
    "lambada_openai": (lambda n: {"text": f"It is a {SHAPES[n]} and the color is {COLORS[n]}"}, ("test",)),
    "gsm8k": (_gsm8k, ("test", "train")),
    "triviaqa": (_triviaqa, ("validation", "train")),
}


def write_rows(folder: Path, name: str, change: Callable[[int, dict[str, Any]], None] | None = None) -> Path:
    """A folder of JSON lines that `datasets` reads in place of a task's own data; ``change`` edits the first split."""
    make, splits = SHIPPED[name]
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        rows = [make(n) for n in range(NUM_ROWS)]
        for n, row in enumerate(rows):
            if change is not None and split == splits[0]:
                change(n, row)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_model(folder: Path) -> Path:
    """A random Llama whose tokenizer begins every text with a token of its own, as Llama's does."""
    words: PreTrainedTokenizerFast = tokenizer("</s>", bos="<s>", pad="<pad>")
    known = sizes(words) | {"max_position_embeddings": CONTEXT}
    model = tiny_model("llama", **{"num_blocks": NUM_BLOCKS, **_without(known, "num_hidden_layers")})
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _without(known: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in known.items() if key != name}


class Harness:
    """The harness's own evaluation of a checkpoint, block masks around it."""

    def __init__(self, checkpoint: Path) -> None:
        import lm_eval.tasks
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        home = Path(lm_eval.tasks.__file__).parent
        rooms = ("arc", "hellaswag", "piqa", "super_glue/boolq", "winogrande", "sciq", "lambada", "gsm8k", "triviaqa")
        self.tasks = lm_eval.tasks.TaskManager(include_defaults=False, include_path=[home / room for room in rooms])
        self.lm = HFLM(pretrained=str(checkpoint), device="cpu", batch_size=3, dtype="float32")

    def samples(self, name: str, folder: Path, mask: str, **changes: Any) -> list[dict[str, Any]]:
        """What ``lm_eval.simple_evaluate`` logs of each document and filter."""
        return self.evaluate(name, folder, mask, **changes)["samples"][name]

    def evaluate(self, name: str, folder: Path, mask: str, **changes: Any) -> dict[str, Any]:
        import lm_eval

        changed = {"task": name, "dataset_path": str(folder), "dataset_name": None, "dataset_kwargs": None, **changes}
        tasks = [{"group": "local", "task": [changed]}]
        with masked(self.lm.model, torch.tensor([bit == "1" for bit in mask])):
            return lm_eval.simple_evaluate(self.lm, tasks=tasks, task_manager=self.tasks, bootstrap_iters=0)
