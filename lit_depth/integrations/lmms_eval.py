"""Tasks of lmms-eval 0.7, answered under all masks in one pass: ``--data.task lmms_eval:pope``.

lmms-eval reads its own definition, writes the question, gives the pictures, filters the answer and scores each document
(Zhang et al., "LMMs-Eval", https://arxiv.org/abs/2407.12772). The question is put through the template of the model's
family, as every model of lmms-eval does it for itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

from lit_depth.data.task import Sample
from lit_depth.integrations.harness import (
    Documents,
    HarnessTask,
    definition_folders,
    is_saved,
    metric_key,
    split_files,
    split_name,
)

INSTALL = "pip install --no-deps lmms-eval==0.7.3 loguru tenacity, beside 'lit_depth[lm-eval]'"
MODEL_NAME = "lit_depth"
DOCUMENT_SCORE = "score"
"""What scores where a task has no mean of numbers: the ``score`` that it notes for each document."""
DEFAULT_NEW_TOKENS = 128  # where a definition says nothing; models of lmms-eval differ here


class LmmsEvalDocuments(Documents):
    """The documents of one split of a task of lmms-eval.

    Args:
        task: Its ``ConfigurableTask``.
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        self.docs = task.eval_docs
        self.texts = task.eval_docs_no_media
        self.split = task.config.test_split or task.config.validation_split

    def __len__(self) -> int:
        return len(self.texts)

    def request(self, index: int) -> Any:
        """The one request about a document, an ``Instance``."""
        context = self.task.fewshot_context(self.texts[index], 0)
        about = {"task": self.task.config.task, "doc_id": index, "repeats": 1, "split": self.split}
        return self.task.construct_requests(doc_id=index, ctx=context, metadata=about)

    def sample(self, index: int, name: str) -> Sample:
        """A document as a sample of that id, with its pictures.

        Raises:
            ValueError: If it shows anything but pictures.
        """
        from PIL.Image import Image

        shown = self.task.doc_to_visual(self.docs[index]) or []
        if not all(isinstance(each, Image) for each in shown):
            raise ValueError(f"expected pictures, got {', '.join(sorted({type(each).__name__ for each in shown}))}")
        target = self.task.doc_to_target(self.texts[index])
        several = target if isinstance(target, (list, tuple)) and len(target) else [target]
        question = self.request(index).args[0]
        first, more = (shown[0], tuple(shown[1:])) if shown else (None, ())
        until = _ends(self.task.config.generation_kwargs.get("until"))
        return Sample(name, name, first, question, tuple(map(str, several)), more_images=more, until=until)

    def scores(self, index: int, answers: Sequence[Any]) -> dict[str, float]:
        from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

        doc, asked = self.docs[index], self.request(index)
        asked.resps = list(answers)
        tags = parse_reasoning_tags_config(task_value=getattr(self.task.config, "reasoning_tags", None))
        found: dict[str, float] = {}
        for each in self._filters():
            each.apply([asked], [doc])
            answer = asked.filtered_resps[each.name]
            if tags is not None and isinstance(answer, str):
                answer = strip_reasoning_tags(answer, tags)
            for metric, value in self.task.process_results(self.docs[index], [answer]).items():
                if isinstance(value, Mapping) and isinstance(value.get("score"), Real):
                    found.setdefault(metric_key(DOCUMENT_SCORE, each.name), float(value["score"]))
                elif isinstance(value, Real):
                    found[metric_key(metric, each.name)] = float(value)
        return found

    def _filters(self) -> list[Any]:
        from lmms_eval.filters import build_filter_ensemble

        return [
            build_filter_ensemble(
                name, [[step["function"], {k: v for k, v in step.items() if k != "function"}] for step in steps]
            )
            for name, steps in _filters(self.task.config.filter_list).items()
        ]

    def cut(self, index: int, text: str) -> str:
        return cut(text, self.task.config.generation_kwargs.get("until"))


class LmmsEvalTask(HarnessTask):
    """A task that lmms-eval defines: its documents, pictures, questions, filters and metric.

    Args:
        name: Its name there.
        metric: One of the task's, with the filter of the answers behind a comma where that has a name, or ``score``,
            which tasks of other than means note for each document; null = the first mean, else ``score``.

    Raises:
        ValueError: If lmms-eval is not installed, has no such task, or the task cannot be answered here.
    """

    def __init__(self, name: str, metric: str | None = None) -> None:
        self.home = _find(name)
        definition = {"output_type": "generate_until", **_definition(self.home, "simple")}
        _check_answerable(name, definition)
        chosen = _choose_metric(name, definition, metric)
        suffix = "" if metric is None else f"_{chosen}"
        longest = (definition.get("generation_kwargs") or {}).get("max_new_tokens", DEFAULT_NEW_TOKENS)
        super().__init__("lmms_eval", name, version("lmms_eval"), definition, chosen, suffix, int(longest))

    def documents(self, source: str, path: str | None) -> LmmsEvalDocuments:
        from lmms_eval.api.task import ConfigurableTask

        config = _definition(self.home, "full")
        if source != (config.get("test_split") or config.get("validation_split")):
            config["test_split"] = source
        if path is not None:
            files = split_files(path, self.definition)
            found: Any = {"load_from_disk": True} if is_saved(path) else files and {"data_files": files}
            config |= {"dataset_path": path, "dataset_name": None, "dataset_kwargs": found}
        return LmmsEvalDocuments(ConfigurableTask(config=config, model_name=MODEL_NAME))


def make_task(text: str) -> LmmsEvalTask:
    """The task that ``NAME`` or ``NAME:METRIC`` names, see `LmmsEvalTask`.

    Raises:
        ValueError: As `LmmsEvalTask`.
    """
    return LmmsEvalTask(*split_name(text, "lmms_eval"))


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """A text up to the first of those that end it.

    >>> cut("a dog. It barks.", [".", "!"]), cut("a dog", None)
    ('a dog', 'a dog')
    """
    for end in _ends(until):
        text = text.split(end)[0] if end else text
    return text


def _ends(until: str | Sequence[str] | None) -> tuple[str, ...]:
    return (until,) if isinstance(until, str) else tuple(until or ())


# ---- what a definition says


@cache  # of as many tasks as a run has
def _find(name: str) -> str:
    """The file that defines a task.

    Raises:
        ValueError: If lmms-eval is not installed, or has no task of that name.
    """
    try:
        import lmms_eval.tasks
        from loguru import logger
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("lmms_eval", "loguru", "tenacity"):
            raise
        raise ValueError(
            f"lmms_eval:{name} needs lmms-eval, which is not installed ({error.name}): {INSTALL}"
        ) from error
    logger.disable("lmms_eval")  # what it tells is meant for its own command
    homes = definition_folders(Path(lmms_eval.tasks.__file__).parent).get(name, [])
    index: Mapping[str, Any] = {}
    if len(homes) == 1:
        index = _index_of(homes[0])
    if name not in index:
        index = lmms_eval.tasks.TaskManager("ERROR").task_index
    kind = index.get(name, {}).get("type")
    if kind is None:
        tasks = [each for each, about in index.items() if about["type"] == "task"]
        nearest = difflib.get_close_matches(name, tasks) or ["mme", "pope"]
        raise ValueError(f"expected a task of lmms-eval, got {name!r}; did you mean {' or '.join(nearest)}?")
    if kind != "task":
        raise ValueError(f"expected one task, got lmms_eval:{name}, a {kind.replace('_', ' ')}: name those you mean")
    return str(index[name]["yaml_path"])


@cache
def _index_of(folder: Path) -> Mapping[str, Any]:
    from lmms_eval.tasks import TaskManager

    index: Mapping[str, Any] = TaskManager("ERROR", include_path=f"{folder}/", include_defaults=False).task_index
    return index


def _definition(home: str, mode: str) -> dict[str, Any]:
    from lmms_eval.utils import load_yaml_config

    return dict(load_yaml_config(home, mode=mode))


def _check_answerable(name: str, definition: Mapping[str, Any]) -> None:
    """Raise ValueError, saying what is asked for, if a task needs what is not done here."""
    how = definition.get("generation_kwargs") or {}
    reason = None
    if definition["output_type"] != "generate_until":
        reason = f"asks for {definition['output_type']}, and only answers of one round are generated here"
    elif any((definition.get("dataset_kwargs") or {}).get(key) for key in ("video", "From_YouTube")):
        reason = "shows videos"
    elif definition.get("num_fewshot"):
        reason = "has examples in its prompts"
    elif how.get("do_sample") or float(how.get("temperature") or 0) > 0:
        reason = "draws its answers at random, and answers are greedy here"
    elif how.get("num_beams", 1) != 1:
        reason = "searches its answers by beams, and answers are greedy here"
    if reason:
        raise ValueError(f"lmms_eval:{name} cannot be answered: it {reason}")


def _choose_metric(name: str, definition: Mapping[str, Any], wanted: str | None) -> str:
    """The metric that scores, as `Documents.scores` names it."""
    entries = definition.get("metric_list") or []
    means = [
        entry["metric"]
        for entry in entries
        if isinstance(entry["metric"], str) and entry.get("aggregation", "mean") == "mean"
        if entry.get("higher_is_better") is not False
    ]
    filters = list(_filters(definition.get("filter_list")))
    usable = [metric_key(metric, each) for metric in (*means, DOCUMENT_SCORE) for each in filters]
    chosen = usable[:1] if wanted is None else [key for key in usable if key == wanted.removesuffix(",none")]
    if not chosen:
        raise ValueError(f"lmms_eval:{name}: expected a metric among {', '.join(usable)}, got {wanted!r}")
    return chosen[0]


def _filters(listed: Any) -> dict[str, list[dict[str, Any]]]:
    """Steps of the filters of the answers, by name, as a definition has them."""
    if listed is None:
        return {"none": [{"function": "take_first"}]}
    return {each["name"]: each["filter"] for each in listed}
