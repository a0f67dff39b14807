"""Samples that lm-eval 0.4 and lmms-eval 0.7 write with ``--log_samples``: a file of JSON lines for each task.

Beside it stands a file of results, which says what was evaluated and how. lm-eval names both by the time behind
(``samples_<task>_<time>.jsonl``, ``results_<time>.json``), lmms-eval by the time in front
(``<time>_samples_<task>.jsonl``, ``<time>_results.json``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from lit_depth.functional.choices import MAX_OPTIONS
from lit_depth.integrations.harness import metric_key
from lit_depth.integrations.sample_logs import (
    LoggedSample,
    SampleLog,
    Values,
    as_list,
    as_mapping,
    as_number,
    cluster_of,
    duplicate,
    json_lines,
)
from lit_depth.results.reading import read_object

LM_EVAL = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT[\d.-]+?)\.jsonl(\.gz)?")
LMMS_EVAL = re.compile(r"(?P<time>\d{8}_\d{6})_samples_(?P<task>.+)\.jsonl(\.gz)?")
# columns that are no metric
_ABOUT = {
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "input", "input_media"),
    *("doc_hash", "prompt_hash", "target_hash", "token_counts"),
}
# entries of a task's settings that make another evaluation of it
_BINDING = (
    *("output_type", "dataset_name", "test_split", "validation_split", "num_fewshot", "generation_kwargs", "repeats"),
    *("doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter", "fewshot_delimiter"),
    *("filter_list", "metric_list", "process_results", "process_docs"),
)
_TOLD = {"engine": "model", "dtype": "model_dtype", "limit": "limit"}
_NOTED = ("lm_eval_version", "lmms_eval_version", "transformers_version")


class _Row(NamedTuple):
    """What is kept of a line."""

    filter: str | None
    asked: tuple[str, str]
    doc_hash: str | None
    cluster: str | None
    answer: str | None
    values: dict[str, Any]


def read_harness_log(path: Path) -> SampleLog:
    """The samples of one file, with what the file of results beside it says of them.

    Of lm-eval a metric is named as in this package, ``exact_match,strict-match`` where its filter has a name.

    Raises:
        ValueError: If the file is damaged or no such file, samples are missing, or one stands there twice.
    """
    rows: dict[str, list[_Row]] = {}
    harness, names = "", list[str]()
    for _, row in json_lines(path):
        harness = harness or ("lm_eval" if "filter" in row or "prompt_hash" in row else "lmms_eval")
        rows.setdefault(str(row["doc_id"]), []).append(_read_row(row))
    named = LM_EVAL.fullmatch(path.name) if harness == "lm_eval" else LMMS_EVAL.fullmatch(path.name)
    results = _results_beside(path, harness, named and named["time"])
    task = named["task"] if named else _only_task(results) or path.name.partition(".")[0]
    about = _About(path, results, task)
    if harness == "lmms_eval":
        names = about.filters
    values = Values()
    for doc, found in rows.items():
        for metric, value in _values(path, doc, found, names):
            values.add(doc, metric, value)
    about.check_number(len(rows))
    return SampleLog(
        path=path,
        harness=harness,
        task=task,
        model=about.model or path.parent.name,
        samples={doc: LoggedSample(*found[0][1:5], values.of(doc)) for doc, found in rows.items()},
        refused=values.refused,
        means=about.means,
        lower_is_better=about.lower_is_better,
        binding=about.binding,
        noted=about.noted,
        split=about.split,
        remarks=about.remarks,
    )


def _read_row(row: Mapping[str, Any]) -> _Row:
    listed = row.get("metrics")
    names = list(map(str, listed)) if isinstance(listed, list) else [name for name in row if name not in _ABOUT]
    media = as_list(row.get("input_media"))
    asked = row.get("prompt_hash") or row.get("input")
    return _Row(
        None if row.get("filter") is None else str(row["filter"]),
        ("" if asked is None else str(asked), str(row.get("target"))),
        str(row["doc_hash"]) if row.get("doc_hash") else None,
        cluster_of(row.get("doc")) or " ".join(map(str, media)) or None,
        _answer(row),
        {name: row[name] for name in names if name in row},
    )


def _values(path: Path, doc: str, rows: Sequence[_Row], filters: Sequence[str]) -> Iterable[tuple[str, Any]]:
    """Metrics of a document, of each filter of its answers.

    lmms-eval does not name filters: it writes all documents of one, then all of the next.
    """
    names = [row.filter for row in rows]
    if None in names:
        names = list(filters or ["none"])
        if len(rows) < len(names):
            raise ValueError(
                f"{path}: expected sample {doc} once for each filter ({', '.join(filters)}), got it {len(rows)} times: "
                "the file is cut off; copy it again"
            )
        if len(rows) > len(names):
            raise duplicate(path, doc, f"{len(rows)} times")
    (name, count), *_ = Counter(names).most_common(1)
    if count > 1:
        raise duplicate(path, doc, f"{count} times (filter {name})")
    for row, name in zip(rows, names):
        for metric, value in row.values.items():
            # what lmms-eval notes of a document for a metric of all documents
            is_noted = as_number(as_mapping(value).get("score")) is not None
            yield metric_key(metric, str(name)), value["score"] if is_noted else value


def _answer(row: Mapping[str, Any]) -> str | None:
    """Letter of the most probable option, or the generated text; None of other requests."""
    found = row.get("resps", row.get("filtered_resps"))
    while isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, str):
        return found
    options = row.get("filtered_resps")
    # of acc_mutual_info the second half of the requests is without the question
    if not isinstance(options, list) or not 2 <= len(options) <= MAX_OPTIONS or "acc_mutual_info" in row:
        return None
    try:
        logprobs = [float(option[0]) for option in options]
        return ascii_uppercase[logprobs.index(max(logprobs))]
    except (ValueError, TypeError, IndexError, KeyError):
        return None


class _About:
    """What a file of results says of one task; nothing where there is none."""

    def __init__(self, path: Path, results: Mapping[str, Any], task: str) -> None:
        self.path, self.results, self.task = path, results, task
        self.settings = as_mapping(self._of("configs"))
        self.config = as_mapping(results.get("config"))

    def _of(self, part: str) -> Any:
        return as_mapping(self.results.get(part)).get(self.task)

    @property
    def model(self) -> str | None:
        name = self.results.get("model_name")
        given = self.config.get("model_args")
        if isinstance(given, str):
            given = dict(pair.partition("=")[::2] for pair in given.split(","))
        given = as_mapping(given)
        # of the models of this package one checkpoint is as many models as it has masks
        masked = [f"{key}={given[key]}" for key in ("mask", "skip") if given.get(key) is not None]
        return " ".join([str(name), *masked]) if name else None

    @property
    def filters(self) -> list[str]:
        return [str(as_mapping(each).get("name")) for each in as_list(self.settings.get("filter_list"))]

    @property
    def means(self) -> dict[str, float]:
        found = as_mapping(self._of("results"))
        named = ((key.partition(","), as_number(value)) for key, value in found.items())
        return {metric_key(metric, name): value for (metric, _, name), value in named if name and value is not None}

    @property
    def lower_is_better(self) -> frozenset[str]:
        return frozenset(name for name, better in as_mapping(self._of("higher_is_better")).items() if better is False)

    @property
    def split(self) -> str | None:
        named = self.settings.get("test_split") or self.settings.get("validation_split")
        return named if isinstance(named, str) else None

    @property
    def binding(self) -> dict[str, Any]:
        if not self.results:
            return {}
        found = {name: _stable(self.settings.get(name)) for name in _BINDING}
        return found | {
            "version of the task": self._of("versions"),
            "number of examples": self._of("n-shot"),
            "chat template": self.results.get("chat_template_sha"),
            "system instruction": self.results.get("system_instruction_sha"),
            "examples as turns": bool(self.results.get("fewshot_as_multiturn")),
            "gen_kwargs": self.config.get("gen_kwargs") or None,
        }

    @property
    def noted(self) -> dict[str, Any]:
        found = {name: self.results[name] for name in _NOTED if self.results.get(name)}
        told = {name: self.config.get(key) for name, key in _TOLD.items()}
        told |= {"dataset": _stable(self.settings.get("dataset_path"))}
        return found | {name: value for name, value in told.items() if value is not None}

    @property
    def remarks(self) -> tuple[str, ...]:
        if self.results:
            return ()
        return (
            f"{self.path.name}: no file of results lies beside it, so versions, few-shot numbers and the harness's own "
            "means could not be compared.",
        )

    def check_number(self, number: int) -> None:
        """Raise ValueError if documents are missing."""
        effective = as_mapping(self._of("n-samples")).get("effective")
        if isinstance(effective, int) and number < effective:
            raise ValueError(
                f"{self.path}: expected {effective} documents, as the file of results says, got {number}: the file is "
                "cut off; copy it again"
            )


def _stable(value: Any) -> Any:
    """A setting without the addresses that functions are written with."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value)) if value is not None else None


def _only_task(results: Mapping[str, Any]) -> str | None:
    tasks = list(as_mapping(results.get("configs")))
    return str(tasks[0]) if len(tasks) == 1 else None


def _results_beside(path: Path, harness: str, time: str | None) -> dict[str, Any]:
    """The file of results of the same evaluation, where it lies beside a file of samples."""
    if time is not None:
        pattern = f"*_{time}.json" if harness == "lm_eval" else f"{time}_results.json"
        found = sorted(path.parent.glob(pattern))
    else:  # renamed: one file of results alone can be meant
        found = [file for file in sorted(path.parent.glob("*.json")) if "results" in file.name]
    if len(found) != 1:
        return {}
    try:
        return read_object(found[0])
    except ValueError as error:
        raise ValueError(f"{found[0]}, beside {path.name}: {error}") from error
