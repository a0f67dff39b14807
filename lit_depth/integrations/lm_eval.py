"""Tasks of lm-evaluation-harness 0.4, answered under all masks in one pass: ``--data.task lm_eval:arc_easy``.

The harness reads its own definition, writes prompts and requests, filters the answers and scores each document
(Gao et al., "The Language Model Evaluation Harness", https://doi.org/10.5281/zenodo.10256836). Here stands the way from
its requests to samples, and from what a model answers back to its metrics.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from lit_depth.data.task import Sample
from lit_depth.functional.choices import MAX_OPTIONS, option_letters
from lit_depth.integrations.harness import (
    Documents,
    HarnessTask,
    definition_folders,
    is_saved,
    metric_key,
    split_files,
    split_name,
)

INSTALL = "pip install 'lit_depth[lm-eval]'"
_SEED = 1234  # of the harness, for the choice of few-shot examples


class LmEvalDocuments(Documents):
    """The documents of one split of one of the harness's tasks, its requests about them, and their scores.

    Args:
        task: A ``ConfigurableTask`` of the harness; its documents are those that the harness evaluates on.
    """

    def __init__(self, task: Any) -> None:
        from lm_eval.filters import build_filter_ensemble

        task.set_fewshot_seed(_SEED)
        self.task = task
        self.docs = task.eval_docs
        self.num_shots = task.config.num_fewshot or 0
        self._requests: dict[int, list[Any]] = {}
        self.filters = [
            build_filter_ensemble(name, [[step["function"], _without(step, "function")] for step in steps])
            for name, steps in _filters(task.config.filter_list).items()
        ]

    def __len__(self) -> int:
        return len(self.docs)

    def requests(self, index: int) -> list[Any]:
        """What the harness asks about a document, as its ``Instance`` s, in order."""
        # few-shot examples are drawn from one stream, for one document after another
        first = len(self._requests) if self.num_shots else index
        for place in range(first, index + 1):
            if place not in self._requests:
                self._requests[place] = self._ask(self.docs[place], place)
        return self._requests[index]

    def _ask(self, doc: Any, place: int) -> list[Any]:
        task = self.task
        context = task.fewshot_context(doc, num_fewshot=self.num_shots, gen_prefix=task.doc_to_prefix(doc))
        about = (task.task_name, place, task.config.repeats)
        found = task.construct_requests(doc=doc, ctx=context, metadata=about)
        return found if isinstance(found, list) else [found]

    def scores(self, index: int, answers: Sequence[Any]) -> dict[str, float]:
        from lm_eval.api.instance import Instance

        doc, found = self.docs[index], {}
        instances = []
        for asked, answer in zip(self.requests(index), answers, strict=True):
            names = ("request_type", "arguments", "idx", "metadata")
            about = {name: getattr(asked, name) for name in names}
            instances.append(Instance(doc=doc, **about, resps=[answer] * (asked.repeats or 1)))
        for each in self.filters:
            each.apply(instances)
            metrics = self.task.process_results(doc, [instance.filtered_resps[each.name] for instance in instances])
            for name, value in metrics.items():
                if hasattr(value, "__float__"):  # what only a corpus has is a tuple
                    found[metric_key(name, each.name)] = float(value)
        return found

    def cut(self, index: int, text: str) -> str:
        from lm_eval.models.utils import postprocess_generated_text

        (request,) = self.requests(index)
        return postprocess_generated_text(text, request.args[1]["until"], think_end_token=None)

    def sample(self, index: int, name: str) -> Sample:
        """A document as a sample of that id.

        Raises:
            ValueError: If its right answer is none of its choices, or it asks for what cannot be answered here.
        """
        requests, doc = self.requests(index), self.docs[index]
        prompts = tuple(request.args[0] for request in requests)
        common: dict[str, Any] = {
            "id": name,
            "image_id": name,
            "image": None,
            "question": prompts[0],
            "prompt": prompts[0],
        }
        if self.task.OUTPUT_TYPE == "generate_until":
            target = self.task.doc_to_target(doc)
            several = target if isinstance(target, (list, tuple)) else [target]
            ends = requests[0].args[1].get("until") or ()
            until = (ends,) if isinstance(ends, str) else tuple(ends)
            return Sample(**common, references=tuple(map(str, several)), until=until)
        continuations = tuple(request.args[1] for request in requests)
        common |= {"continuations": continuations, "prompts": prompts if len(set(prompts)) > 1 else ()}
        if self.task.OUTPUT_TYPE == "loglikelihood":
            return Sample(**common, references=(continuations[0].strip() or continuations[0],))
        choices = [str(choice) for choice in self.task.doc_to_choice(doc)]
        right = self._right(doc, choices)
        if len(choices) > MAX_OPTIONS or not any(choice.strip() for choice in choices):
            return Sample(**common, references=tuple(choices[place] for place in right), target=right[0])
        letters = option_letters(choices)
        return Sample(
            **common, references=tuple(letters[place] for place in right), options=tuple(choices), target=right[0]
        )

    def _right(self, doc: Any, choices: list[str]) -> list[int]:
        """Places of the right choices."""
        task = self.task
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        places = [
            choices.index(each) if isinstance(each, str) and each in choices else each
            for each in (gold if isinstance(gold, list) else [gold])
        ]
        known = [place for place in places if isinstance(place, int) and 0 <= place < len(choices)]
        if not known:
            raise ValueError(f"expected one of {len(choices)} choices as the right one, got {gold!r}")
        return known


class LmEvalTask(HarnessTask):
    """A task that lm-evaluation-harness defines: its documents, prompts, filters and metric.

    Prompts are plain text, without a chat template. For roles see `HarnessTask`.

    Args:
        name: The harness's name of the task, or the path of a definition of your own (``my_task.yaml``).
        metric: One of the task's, ``acc_norm``, or with the filter of the answers ``exact_match,flexible-extract``;
            null = the first that is a mean over documents. The others are recorded beside it.
        num_fewshot: Examples in the prompt; null = as many as the definition says.

    Raises:
        ValueError: If the harness is not installed, has no such task, or the task cannot be answered here.
    """

    def __init__(self, name: str, metric: str | None = None, num_fewshot: int | None = None) -> None:
        self.definition_of = name
        self.num_fewshot = num_fewshot
        _, entry = _find(name)
        definition = {"output_type": "generate_until", **entry.cfg}
        _check_answerable(entry.name, definition)
        chosen = _choose_metric(entry.name, definition, metric)
        shots = "" if num_fewshot is None else f"_{num_fewshot}_shot"
        suffix = shots + ("" if metric is None else f"_{chosen}")
        generates = definition["output_type"] == "generate_until"
        longest = _generation(definition)["max_gen_toks"] if generates else 1
        super().__init__("lm_eval", entry.name, version("lm_eval"), definition, chosen, suffix, longest)

    def documents(self, source: str, path: str | None) -> LmEvalDocuments:
        changed: dict[str, Any] = {} if self.num_fewshot is None else {"num_fewshot": self.num_fewshot}
        if source != (self.definition.get("test_split") or self.definition.get("validation_split")):
            changed["test_split"] = source
            if source == (self.definition.get("fewshot_split") or self.definition.get("training_split")):
                changed["fewshot_split"] = source  # said, it keeps a document out of its own examples
        changed |= _local(path, self.definition)
        # the harness merges what is changed with a definition of its index only within a group
        group = {"group": "lit_depth", "task": [{"task": self.task, **changed}]}
        return LmEvalDocuments(_find(self.definition_of)[0].load(group)["tasks"][self.task])


def make_task(text: str) -> LmEvalTask:
    """The task that ``NAME`` or ``NAME:METRIC`` names, see `LmEvalTask`.

    Raises:
        ValueError: As `LmEvalTask`.
    """
    return LmEvalTask(*split_name(text, "lm_eval"))


# ---- what a definition says


@cache  # of as many tasks as a run has
def _find(name: str) -> tuple[Any, Any]:
    """The harness's ``TaskManager`` and its entry of a task.

    Raises:
        ValueError: If the harness is not installed, or has no task of that name.
    """
    try:
        import lm_eval.tasks
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise ValueError(f"lm_eval:{name} needs lm-evaluation-harness, which is not installed: {INSTALL}") from error
    # what it warns of is meant for the authors of definitions
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = Path(name).expanduser()
    if own.suffix == ".yaml" and own.is_file():
        manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(own.parent))
        entries = [each for each in manager.task_index.values() if each.yaml_path and each.yaml_path.samefile(own)]
        return manager, _one_task(name, entries[0] if entries else None, manager)
    # reading all 14,000 definitions takes ten seconds
    homes = definition_folders(Path(lm_eval.tasks.__file__).parent).get(name, [])
    manager = _tasks_of(homes[0]) if len(homes) == 1 else None
    if manager is None or name not in manager.task_index:
        manager = _every_task()
    return manager, _one_task(name, manager.task_index.get(name), manager)


@cache
def _tasks_of(folder: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False, include_path=folder)


@lru_cache
def _every_task() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _one_task(name: str, entry: Any, manager: Any) -> Any:
    if entry is None:
        nearest = difflib.get_close_matches(name, manager.all_subtasks) or ["arc_easy", "hellaswag"]
        raise ValueError(
            f"expected a task of lm-evaluation-harness, got {name!r}; did you mean {' or '.join(nearest)}?"
        )
    kind = entry.kind.name
    if kind in ("GROUP", "TAG"):
        listed = entry.cfg.get("task", []) if kind == "GROUP" else sorted(entry.tags)
        names = [each if isinstance(each, str) else each.get("task", each.get("group")) for each in listed]
        raise ValueError(
            f"expected one task, got lm_eval:{name}, a group of {len(names)}: name those you mean, --data.tasks "
            + " ".join(f"lm_eval:{each}" for each in names[:3])
            + (" ..." if len(names) > 3 else "")
        )
    if kind != "TASK":
        raise ValueError(f"expected a task that a YAML file defines, got lm_eval:{name}, which is a class of its own")
    return entry


def _check_answerable(name: str, definition: Mapping[str, Any]) -> None:
    """Raise ValueError, saying what is asked for, if a task needs what is not done here."""
    kind, reason = definition["output_type"], None
    if definition.get("unsafe_code"):
        reason = "runs code that the model wrote"
    elif definition.get("doc_to_image") or definition.get("doc_to_audio"):
        reason = "shows images or plays sounds: take the same task of lmms-eval, or --data.path with your own files"
    elif kind == "loglikelihood_rolling":
        reason = "asks for the perplexity of a whole corpus, which is no mean over documents"
    elif any(each.get("hf_evaluate") for each in definition.get("metric_list") or []):
        reason = "has a metric that is loaded over the network"
    elif kind == "generate_until" and _generation(definition)["do_sample"]:
        reason = "draws its answers at random, and answers are greedy here"
    elif kind == "generate_until" and (definition.get("generation_kwargs") or {}).get("num_beams", 1) != 1:
        reason = "searches its answers by beams, and answers are greedy here"
    if reason:
        raise ValueError(f"lm_eval:{name} cannot be answered: it {reason}")


def _generation(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's settings of a generation, among them ``max_gen_toks`` and ``do_sample``."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return dict(normalize_gen_kwargs(definition.get("generation_kwargs") or {}))


def _choose_metric(name: str, definition: Mapping[str, Any], wanted: str | None) -> str:
    """The metric that scores, as `Documents.scores` names it.

    Raises:
        ValueError: If it is none of the task's, or none of these is a mean over documents.
    """
    means, others = _metrics(definition)
    filters = list(_filters(definition.get("filter_list")))
    usable = [metric_key(*pair) for pair in product(means, filters)]
    chosen = usable[:1] if wanted is None else [key for key in usable if key == wanted.removesuffix(",none")]
    if chosen:
        return chosen[0]
    refused = f"; {', '.join(others)} cannot score a single document" if others else ""
    got = "none" if wanted is None else repr(wanted)
    raise ValueError(
        f"lm_eval:{name}: expected a metric that is a mean over documents ({', '.join(usable) or 'it has none'}), got "
        f"{got}{refused}"
    )


def _metrics(definition: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the metrics that are means over documents, the higher the better, and of the others."""
    from lm_eval.api.metrics import mean
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, get_metric_aggregation, is_higher_better

    usual = [{"metric": name} for name in DEFAULT_METRIC_REGISTRY[definition["output_type"]]]
    means: list[str] = []
    others: list[str] = []
    for entry in definition.get("metric_list") or usual:
        name = str(entry["metric"]).rpartition(".")[2]  # of a function, the path of its file stands before
        way = entry.get("aggregation")
        is_mean = way == "mean" if way is not None else get_metric_aggregation(name) is mean
        better = entry.get("higher_is_better")
        is_better = is_higher_better(name) if better is None else better
        (means if is_mean and is_better is not False else others).append(name)
    return means, others


def _filters(listed: Any) -> dict[str, list[dict[str, Any]]]:
    """Steps of the filters of the answers, by name, as a definition has them."""
    if listed is None:
        return {"none": [{"function": "take_first"}]}
    return {each["name"]: each["filter"] for each in listed}


def _without(step: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key != name}


def _local(folder: str | None, definition: Mapping[str, Any]) -> dict[str, Any]:
    """What a definition says of its data, replaced by a folder."""
    if folder is None:
        return {}
    if is_saved(folder):
        import datasets

        return {"custom_dataset": lambda **_: datasets.load_from_disk(folder), "dataset_kwargs": None}
    files = split_files(folder, definition)
    return {"dataset_path": folder, "dataset_name": None, "dataset_kwargs": files and {"data_files": files}}
