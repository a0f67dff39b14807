"""Which metric of a log is compared, and which task, scores and samples of our run are the log's."""

from __future__ import annotations

import re
from collections import Counter

from lit_depth.integrations.lmms_eval import DOCUMENT_SCORE
from lit_depth.integrations.sample_logs import SampleLog
from lit_depth.results.run_records import RunRecords, TaskRecords

_SHOTS = re.compile(r"_(\d+)_shot")


def choose_metric(
    log: SampleLog, wanted: str | None, filter_name: str | None, ours: TaskRecords | None
) -> tuple[str, str]:
    """The metric of a task, and a sentence that says why.

    Without a wish it is that of our run, else the first whose mean is the harness's own figure.

    Raises:
        ValueError: If there is no such metric, or it is no number of each sample where more is better.
    """
    known = [name for name in log.metrics if filter_name in (None, _filter(name))]
    if not known:
        of_filter = f" of the filter {filter_name}" if filter_name else ""
        raise ValueError(
            f"{log.path}: expected a metric{of_filter} that is a number, got "
            f"{', '.join(log.metrics) or 'none'}{_refused(log)}"
        )
    good = [name for name in known if log.means_over_samples(name) and not _less_is_more(log, name)]
    if wanted is not None:
        chosen, why = _named(log, wanted, known), "as --metric says"
    elif ours is not None and ours.metric in known:
        chosen, why = ours.metric, "as in our run"
    else:
        chosen = (good or known)[0]
        others = ", ".join(name for name in known if name != chosen)
        why = f"the first; --metric chooses, also {others}" if others else "the only one"
    if _less_is_more(log, chosen):
        raise ValueError(
            f"{log.path}: of {chosen} less is better: give a --metric of which more is ({', '.join(good) or 'none is'})"
        )
    return chosen, f"{log.task}: metric {chosen} ({why})."


def _named(log: SampleLog, wanted: str, known: list[str]) -> str:
    """The one of the known metrics that is called so, with or without its filter."""
    named = [name for name in known if wanted.removesuffix(",none") in (name, name.partition(",")[0])]
    if wanted in named or len(named) == 1:
        return wanted if wanted in named else named[0]
    if named:
        filters = " or ".join(map(_filter, named))
        raise ValueError(f"{log.path}: {wanted} is there for several filters: give --filter {filters}")
    raise ValueError(f"{log.path}: expected --metric of {', '.join(known)}, got {wanted}{_refused(log)}")


def _filter(metric: str) -> str:
    return metric.partition(",")[2] or "none"


def _refused(log: SampleLog) -> str:
    return "".join(f"; {name} is no number ({why})" for name, why in log.refused.items())


def _less_is_more(log: SampleLog, metric: str) -> bool:
    return metric.partition(",")[0] in log.lower_is_better


def find_ours(log: SampleLog, run: RunRecords | None, task: str | None) -> TaskRecords | None:
    """The task of our run that is a log's; None without a run, or if it has none.

    Raises:
        ValueError: If ``task`` names none, or ours was asked with another number of examples.
    """
    if run is None:
        return None
    if task is not None:
        if task not in run.tasks:
            raise ValueError(f"--task: expected one of {', '.join(run.tasks)}, got {task}")
        return run.tasks[task]
    if log.harness == "inspect":
        chosen = [log.task] if log.task in run.tasks else list(run.tasks)
        if len(chosen) > 1:
            raise ValueError(f"{log.path}: give the task of {run.folder} that it is, --task {' or '.join(chosen)}")
        return run.tasks[chosen[0]]
    return next((records for records in run.tasks.values() if _is_task(log, records)), None)


def _is_task(log: SampleLog, records: TaskRecords) -> bool:
    """Whether a task of ours, ``lm_eval_arc_easy_2_shot_acc_norm``, is a log's."""
    name = re.sub(r"[^\w,.-]+", "_", f"{log.harness}_{log.task}")
    if not records.task.startswith(name):
        return False
    rest = records.task.removeprefix(name)
    shots = _SHOTS.match(rest)
    if rest[shots.end() if shots else 0 :] not in ("", f"_{records.metric}"):
        return False
    theirs = log.binding.get("number of examples")
    if shots and theirs is not None and int(shots[1]) != theirs:
        raise ValueError(
            f"{log.path}: was asked with {theirs} examples, {records.task} of our run with {shots[1]}: evaluate one of "
            "the two again"
        )
    return True


def our_scores(log: SampleLog, metric: str, ours: TaskRecords) -> tuple[str, dict[str, str]]:
    """The column of our records that holds a metric, and our samples by the log's ids.

    A document of lm-eval and lmms-eval has its number behind the split, ``test/17``.

    Raises:
        ValueError: If our run did not record that metric.
    """
    is_noted = log.harness == "lmms_eval" and ours.metric == DOCUMENT_SCORE and metric == log.metrics[0]
    column = metric if metric in ours.frame else "score"
    if column != metric and not is_noted and log.harness != "inspect":
        known = [name for name in log.metrics if name in ours.frame]
        raise ValueError(
            f"{ours.task}: our run has not recorded {metric}: give --metric {' or '.join(known) or ours.metric}"
        )
    samples = ours.frame["sample"].unique().tolist()
    if log.harness == "inspect":
        return column, _by_own_id(log, samples)
    parts = [sample.rpartition("/") for sample in samples]
    return column, {number: "/".join((split, number)) for split, _, number in parts if log.split in (None, split)}


def _by_own_id(log: SampleLog, samples: list[str]) -> dict[str, str]:
    """Our samples by the ids that they have elsewhere: the same, or what a table's column ``id`` says of the row.

    >>> from pathlib import Path
    >>> from lit_depth.integrations.sample_logs import LoggedSample
    >>> log = SampleLog(Path("a.eval"), "inspect", "t", "m", {"q1": LoggedSample(("", ""), None, None, None, {})})
    >>> _by_own_id(log, ["test/0/q0", "test/1/q1", "test/2"])
    {'q0': 'test/0/q0', 'q1': 'test/1/q1'}
    """
    if not log.samples.keys().isdisjoint(samples):
        return {sample: sample for sample in samples}
    ids = {sample: sample.split("/", 2)[2] for sample in samples if sample.count("/") > 1}
    counts = Counter(ids.values())
    return {own: sample for sample, own in ids.items() if counts[own] == 1}
