"""Tasks of lm-evaluation-harness 0.4, answered under all masks in one pass: ``--data.task lm_eval:arc_easy``.

The harness reads its own definition, writes prompts and requests, filters the answers and scores each document
(Gao et al., "The Language Model Evaluation Harness", https://doi.org/10.5281/zenodo.10256836). Here stands the way from
its requests to samples, and from what a model answers back to its metrics.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from lit_depth.data.hub import half
from lit_depth.data.task import AnswerBy, AnswerKind, Sample, Task, check_split
from lit_depth.functional.choices import MAX_OPTIONS, option_letters
from lit_depth.metrics.base import SampleMetric
from lit_depth.metrics.likelihood import Likelihood

INSTALL = "pip install 'lit_depth[lm-eval]'"
_SEED = 1234  # of the harness, for the choice of few-shot examples
_WHOLE_NAME = re.compile(r"(?P<name>[^:]+)(:(?P<metric>.+))?")
# by task, split and folder of data: a sample holds no more than the number of its document
_LOADED: dict[str, Documents] = {}
# by name: a class path leads to each
_METRICS: dict[str, type[LmEvalMetric]] = {}


class Documents:
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
        """The harness's scores of one document, by metric, and behind a comma the filter where that has a name.

        Args:
            answers: One for each request: a text, or (log-probability, whether it is what greedy decoding gives).
        """
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
                    found[_key(name, each.name)] = float(value)
        return found

    def cut(self, index: int, text: str) -> str:
        """A generated text up to the first of the texts that end it, as the harness cuts it."""
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
            return Sample(**common, references=tuple(map(str, several)))
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


class LmEvalTask(Task):
    """A task that lm-evaluation-harness defines: its documents, prompts, filters and metric.

    The role "validation" has the documents that the harness evaluates on, "calibration" those of another of the task's
    splits; of a task with one split each has half of it. Prompts are plain text, without a chat template.

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
        _, entry = _find(name)
        self.definition: dict[str, Any] = {"output_type": "generate_until", **entry.cfg}
        self.task = entry.name
        self.num_fewshot = num_fewshot
        self.version = f"lm_eval {version('lm_eval')}"  # that of prompts and scores
        _check_answerable(self.task, self.definition)
        chosen = _choose_metric(self.task, self.definition, metric)
        _METRICS.setdefault(chosen, type(chosen, (LmEvalMetric,), {"chosen": chosen, "__module__": __name__}))
        self.metric = f"{__name__}.{chosen}"
        shots = "" if num_fewshot is None else f"_{num_fewshot}_shot"
        self.name = re.sub(r"[^\w,.-]+", "_", f"lm_eval_{self.task}{shots}") + ("" if metric is None else f"_{chosen}")
        self.answer_kind: AnswerKind = "free"
        self.max_new_tokens = 1
        if self.definition["output_type"] == "generate_until":
            self.max_new_tokens = _generation(self.definition)["max_gen_toks"]

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
            _LOADED[key] = Documents(self._build(source, path))
        places = [place for place in range(len(_LOADED[key])) if part is None or half(f"{source}/{place}") == part]
        rows = {"doc": places, "of": [key] * len(places), "split": [source] * len(places)}
        return datasets.Dataset.from_dict(rows)

    def sample(self, row: dict[str, Any], split: str, index: int) -> Sample:
        from dataclasses import replace

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

    def _build(self, source: str, path: str | None) -> Any:
        """The harness's task with the documents of a split."""
        import datasets

        changed: dict[str, Any] = {} if self.num_fewshot is None else {"num_fewshot": self.num_fewshot}
        if source != (self.definition.get("test_split") or self.definition.get("validation_split")):
            changed["test_split"] = source
            if source == (self.definition.get("fewshot_split") or self.definition.get("training_split")):
                changed["fewshot_split"] = source  # said, it keeps a document out of its own examples
        changed |= _local(path, self.task)
        datasets.disable_progress_bars()  # they stand in the way of the command's own
        # the harness merges what is changed with a definition of its index only within a group
        group = {"group": "lit_depth", "task": [{"task": self.task, **changed}]}
        try:
            return _find(self.definition_of)[0].load(group)["tasks"][self.task]
        # whatever the harness, `datasets` and the task's own functions raise
        except Exception as error:
            where = path or self.definition.get("dataset_path")
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                f"{self.name}: cannot read {where} ({type(error).__name__}: {reason}). Connect to the hub, or read a "
                f"folder with the same splits and columns: --data.path FOLDER"
            ) from error


class LmEvalMetric(SampleMetric):
    """A metric of the harness: the mean of what it gives to each document. `chosen` names it, see `LmEvalTask`."""

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


def __getattr__(name: str) -> type[LmEvalMetric]:
    """The metric of that name, ``lit_depth.integrations.lm_eval.acc_norm``, of the tasks that were made."""
    if name not in _METRICS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _METRICS[name]


def make_task(text: str) -> LmEvalTask:
    """The task that ``NAME`` or ``NAME:METRIC`` names, see `LmEvalTask`.

    Raises:
        ValueError: As `LmEvalTask`.
    """
    match = _WHOLE_NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"expected lm_eval:NAME or lm_eval:NAME:METRIC, got 'lm_eval:{text}'")
    return LmEvalTask(match["name"], match["metric"])


# ---- what a definition says


@lru_cache
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
    line = re.compile(rf"^task: *[\"']?{re.escape(name)}[\"']? *$", re.MULTILINE)
    files = Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")
    homes = [file.parent for file in files if line.search(file.read_text(encoding="utf-8"))]
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=homes[0]) if len(homes) == 1 else None
    if manager is None or name not in manager.task_index:
        manager = _every_task()
    return manager, _one_task(name, manager.task_index.get(name), manager)


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
    usable = [_key(*pair) for pair in product(means, filters)]
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


def _key(metric: str, filter_name: str) -> str:
    """
    >>> _key("acc", "none"), _key("exact_match", "strict-match")
    ('acc', 'exact_match,strict-match')
    """
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _without(step: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key != name}


def _local(path: str | None, task: str) -> dict[str, Any]:
    """What a definition says of its data, replaced by a folder."""
    if path is None:
        return {}
    folder = Path(path).expanduser()
    folder = folder / task if (folder / task).is_dir() else folder
    if not folder.is_dir():
        raise ValueError(f"--data.path: expected a folder with the splits and columns of {task}'s own data, got {path}")
    if (folder / "dataset_dict.json").is_file():
        import datasets

        return {"custom_dataset": lambda **_: datasets.load_from_disk(str(folder)), "dataset_kwargs": None}
    return {"dataset_path": str(folder), "dataset_name": None, "dataset_kwargs": None}
