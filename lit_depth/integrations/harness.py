"""What tasks of evaluation harnesses share: their documents as rows, and their own scores as a metric.

A harness reads its definition, makes the prompts, filters the answers and scores each document; a module beside this
one says how for each of them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lit_depth.data.hub import half
from lit_depth.data.task import AnswerBy, AnswerKind, Nouns, Sample, Task, check_split
from lit_depth.functional.choices import option_letters
from lit_depth.metrics.base import SampleMetric
from lit_depth.metrics.likelihood import Likelihood

# by task, split and folder of data: a sample holds no more than the number of its document
_LOADED: dict[str, Documents] = {}
# by name: a class path leads to each
_METRICS: dict[str, type[HarnessMetric]] = {}


class Documents(ABC):
    """The documents of one split of one of a harness's tasks."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, index: int, name: str) -> Sample:
        """A document as a sample of that id."""

    @abstractmethod
    def scores(self, index: int, answers: Sequence[Any]) -> dict[str, float]:
        """The harness's scores of one document, by metric, and behind a comma the filter where that has a name.

        Args:
            answers: One for each request: a text, or (log-probability, whether it is what greedy decoding gives).
        """

    @abstractmethod
    def cut(self, index: int, text: str) -> str:
        """A generated text up to the first of the texts that end it."""


class HarnessTask(Task):
    """A task that a harness defines.

    The role "validation" has the documents that the harness evaluates on, "calibration" those of another of the task's
    splits; of a task with one split each has half of it.

    Args:
        harness: Name of its integration.
        task: The harness's name of the task.
        version: Of the harness: prompts and scores are its own.
        definition: The task's, with its ``output_type`` and the names of its splits.
        metric: What scores, as `Documents.scores` names it.
        suffix: Of the task's name here.
        max_new_tokens: Longest answer.
    """

    answer_kind: AnswerKind = "free"
    nouns = Nouns("document", "document")

    def __init__(
        self,
        harness: str,
        task: str,
        version: str,
        definition: Mapping[str, Any],
        metric: str,
        suffix: str,
        max_new_tokens: int,
    ) -> None:
        self.task = task
        self.version = f"{harness} {version}"
        self.definition = definition
        self.max_new_tokens = max_new_tokens
        self.name = re.sub(r"[^\w,.-]+", "_", f"{harness}_{task}{suffix}")
        _METRICS.setdefault(metric, type(metric, (HarnessMetric,), {"chosen": metric, "__module__": __name__}))
        self.metric = f"{__name__}.{metric}"

    def documents(self, source: str, path: str | None) -> Documents:
        """The documents of one of the dataset's splits, of the task's own data or of a folder's."""
        raise NotImplementedError

    @property
    def answer_by(self) -> AnswerBy:
        """How the definition has its choices chosen."""
        return "generation" if self.definition["output_type"] == "generate_until" else "likelihood"

    @answer_by.setter
    def answer_by(self, wanted: str) -> None:
        if wanted != self.answer_by:
            raise ValueError(f"{self.name}: its definition says --data.answer_by {self.answer_by}, got {wanted}")

    def load(self, split: str, path: str | None = None) -> Any:
        """Return the numbers of a role's documents, see `Task.load`; ``path`` stands for the task's own data.

        Args:
            split: The role.
            path: A folder that `datasets.load_dataset` reads or that ``save_to_disk`` wrote, with the columns and
                splits of the task's own data; or a folder that has such a folder, called as the task.
        """
        import datasets

        source, part = self._source(check_split(split))
        key = f"{self.name}, {source}, {path}"
        if key not in _LOADED:
            datasets.disable_progress_bars()  # they stand in the way of the command's own
            _LOADED[key] = self._read(source, path)
        places = [place for place in range(len(_LOADED[key])) if part is None or half(f"{source}/{place}") == part]
        rows = {"doc": places, "of": [key] * len(places), "split": [source] * len(places)}
        return datasets.Dataset.from_dict(rows)

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        sample = _LOADED[row["of"]].sample(row["doc"], f"{row['split']}/{row['doc']}")
        return replace(sample, meta={"of": row["of"], "doc": row["doc"]})

    def _source(self, role: str) -> tuple[str, int | None]:
        """The dataset's split that serves a role, and which half of it; None = all of it."""
        splits = [self.definition.get(f"{name}_split") for name in ("test", "validation", "training")]
        there = list(dict.fromkeys(filter(None, splits)))
        if role == "train" or not there or there == splits[2:]:
            raise ValueError(f"{self.name}: the task is for evaluation only, got the role {role}")
        if len(there) == 1:
            return there[0], int(role == "validation")
        return there[0 if role == "validation" else 1], None

    def _read(self, source: str, path: str | None) -> Documents:
        folder = data_folder(path, self.task)
        try:
            return self.documents(source, folder)
        # whatever the harness, `datasets` and the task's own functions raise
        except Exception as error:
            where = folder or self.definition.get("dataset_path")
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                f"{self.name}: cannot read {where} ({type(error).__name__}: {reason}). Connect to the hub, or read a "
                "folder with the same splits and columns: --data.path FOLDER"
            ) from error


class HarnessMetric(SampleMetric):
    """A metric of a harness: the mean of what it gives to each document. `chosen` names it."""

    chosen = ""

    @staticmethod
    def score(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Whether the answer is a right choice."""
        return float(prediction in references)

    def judge(self, sample: Any, found: Sequence[Likelihood]) -> dict[str, Any]:
        """What is recorded of a sample with continuations: its choice, or what it wrote greedily, and all scores."""
        scores = self._documents(sample).scores(sample.meta["doc"], [(each.logprob, each.is_greedy) for each in found])
        if sample.options:
            best = max(range(len(sample.options)), key=lambda place: found[place].logprob)
            return self._recorded(option_letters(sample.options)[best], scores)
        best = max(range(len(found)), key=lambda place: found[place].logprob)
        certain = len(found) > 1 or found[0].is_greedy
        return self._recorded(sample.continuations[best].strip() if certain else "", scores)

    def rate(self, sample: Any, text: str) -> dict[str, Any]:
        """What is recorded of a generated text, or of one that stands for it."""
        if sample.continuations:
            return {"prediction": text, "score": self.score(text, sample.references)}
        documents = self._documents(sample)
        answer = documents.cut(sample.meta["doc"], text)
        return self._recorded(answer, documents.scores(sample.meta["doc"], [answer]))

    def _documents(self, sample: Any) -> Documents:
        return _LOADED[sample.meta["of"]]

    def _recorded(self, prediction: str, scores: Mapping[str, float]) -> dict[str, Any]:
        score = scores.get(self.chosen)
        if score is None or not 0 <= score <= 1:
            raise ValueError(
                f"expected the harness's metric {self.chosen!r} between 0 and 1, got {score}; its metrics here: "
                f"{', '.join(scores) or 'none of single documents'}"
            )
        return {**scores, "prediction": prediction, "score": score}


def __getattr__(name: str) -> type[HarnessMetric]:
    """The metric of that name, ``lit_depth.integrations.harness.acc_norm``, of the tasks that were made."""
    if name not in _METRICS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _METRICS[name]


def data_folder(path: str | None, task: str) -> str | None:
    """The folder of a task's data in the one that was given: that, or one in it that is called as the task.

    Raises:
        ValueError: If it is no folder.
    """
    if path is None:
        return None
    folder = Path(path).expanduser()
    folder = folder / task if (folder / task).is_dir() else folder
    if not folder.is_dir():
        raise ValueError(f"--data.path: expected a folder with the splits and columns of {task}'s own data, got {path}")
    return str(folder)


def split_files(folder: str, definition: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """Files of a folder by the split that they are called after (``dev.jsonl``, ``dev-00000-of-00001.parquet``).

    None where `datasets` finds the splits by itself: it calls a file of ``dev`` a part of ``validation``.
    """
    named = (definition.get(f"{name}_split") for name in ("test", "validation", "training", "fewshot"))
    files = sorted(file.name for file in Path(folder).iterdir() if file.is_file())
    found = {
        split: [name for name in files if re.split(r"[.-]", name)[0] == split]
        for split in sorted(each for each in named if each is not None)
    }
    return found if found and all(found.values()) else None


def is_saved(folder: str) -> bool:
    """Whether `datasets` saved its splits in a folder."""
    return (Path(folder) / "dataset_dict.json").is_file()


def metric_key(metric: str, filter_name: str) -> str:
    """
    >>> metric_key("acc", "none"), metric_key("exact_match", "strict-match")
    ('acc', 'exact_match,strict-match')
    """
    return metric if filter_name == "none" else f"{metric},{filter_name}"


@lru_cache
def definition_folders(root: Path) -> Mapping[str, list[Path]]:
    """Folders of the YAML files below a harness's own that define a task, by its name.

    Their lines are looked at: to read what they mean takes ten times as long.
    """
    line = re.compile(r"^[\"']?task[\"']?: *[\"']?([^\"'\s]+)[\"']? *$", re.MULTILINE)
    found: dict[str, list[Path]] = {}
    for file in root.rglob("*.yaml"):
        for name in dict.fromkeys(line.findall(file.read_text(encoding="utf-8"))):
            found.setdefault(name, []).append(file.parent)
    return found


def split_name(text: str, harness: str) -> tuple[str, str | None]:
    """The task and the metric of ``NAME`` or ``NAME:METRIC``.

    >>> split_name("gsm8k:exact_match,strict-match", "lm_eval")
    ('gsm8k', 'exact_match,strict-match')

    Raises:
        ValueError: If there is no name.
    """
    name, _, metric = text.partition(":")
    if not name:
        raise ValueError(f"expected {harness}:NAME or {harness}:NAME:METRIC, got '{harness}:{text}'")
    return name, metric or None
