"""The same samples of an exported and the whole model, and of our run: matched by id, compared in what was asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_depth.integrations.lmms_eval import DOCUMENT_SCORE
from lit_depth.integrations.sample_logs import SampleLog
from lit_depth.results.run_records import RunRecords, TaskRecords

_SHOWN = 3
_SHOTS = re.compile(r"_(\d+)_shot")
_EQUAL = 1e-6
Floats = NDArray[np.float64]


class Ours(NamedTuple):
    """Our records of some of the samples, of the full model and the mask ``[num_samples]``."""

    samples: list[str]  # ids of the log
    full: Floats
    masked: Floats
    role: str
    answers: list[str | None]  # of the mask
    images: list[str]


class Pair(NamedTuple):
    """An exported model against the whole one, on one task.

    Attributes:
        samples: Ids of the log, N of them.
        whole: ``[N]`` scores of the whole model; where no log of it was given, ours.
        exported: ``[N]`` scores of the exported model.
        unmatched: Samples of one side alone, by a description of the side.
        matched_by: What identifies a sample: ``id`` or ``doc_hash``.
    """

    log: SampleLog
    metric: str
    mask: str | None
    samples: list[str]
    clusters: list[str]
    whole: Floats
    exported: Floats
    ours: Ours | None
    unmatched: dict[str, list[str]]
    matched_by: str
    whole_is_ours: bool
    remarks: tuple[str, ...] = ()

    @property
    def is_bounded(self) -> bool:
        """Whether all scores lie in 0 to 1, as shares do."""
        known = [self.whole, self.exported, *([] if self.ours is None else [self.ours.full, self.ours.masked])]
        return all(bool(((scores >= 0) & (scores <= 1)).all()) for scores in known)

    @property
    def drop(self) -> Floats:
        """``[N]`` whole less exported."""
        return self.whole - self.exported

    def drops_on_ours(self) -> tuple[Floats, Floats, list[str]]:
        """Their drop and ours on the samples of our run, and their clusters."""
        assert self.ours is not None
        places = {sample: place for place, sample in enumerate(self.samples)}
        chosen = [places[sample] for sample in self.ours.samples]
        return self.drop[chosen], self.ours.full - self.ours.masked, self.ours.images

    def equal_scores(self) -> Floats:
        """Of the samples of our run: whether the exported model scored there as the mask did here."""
        assert self.ours is not None
        places = dict(zip(self.samples, self.exported))
        return np.isclose([places[sample] for sample in self.ours.samples], self.ours.masked, rtol=0, atol=_EQUAL)

    def equal_answers(self) -> list[bool]:
        """Of those of them where both answers are known: whether they are the same, apart from white space."""
        assert self.ours is not None
        theirs = (self.log.samples[sample].answer for sample in self.ours.samples)
        both = [pair for pair in zip(theirs, self.ours.answers) if None not in pair]
        return [str(one).strip() == str(other).strip() for one, other in both]


def choose_metric(
    log: SampleLog, wanted: str | None, filter_name: str | None, ours: TaskRecords | None
) -> tuple[str, str]:
    """The metric of a task, and a sentence that says why.

    Without a wish it is that of our run, else the first whose mean is the harness's own figure.

    Raises:
        ValueError: If there is no such metric, or it is no number of each sample where more is better.
    """
    known = [name for name in log.metrics if filter_name in (None, name.partition(",")[2] or "none")]
    refused = "".join(f"; {name} is no number ({why})" for name, why in log.refused.items())
    if not known:
        of_filter = f" of the filter {filter_name}" if filter_name else ""
        raise ValueError(
            f"{log.path}: expected a metric{of_filter} that is a number, got "
            f"{', '.join(log.metrics) or 'none'}{refused}"
        )
    if wanted is not None:
        named = [name for name in known if wanted.removesuffix(",none") in (name, name.partition(",")[0])]
        if not named:
            why = f", which is {log.refused[wanted]}" if wanted in log.refused else ""
            raise ValueError(
                f"{log.path}: expected --metric of {', '.join(known)}, got {wanted}{why}{refused if not why else ''}"
            )
        if len(named) > 1 and wanted not in named:
            filters = " or ".join(name.partition(",")[2] or "none" for name in named)
            raise ValueError(f"{log.path}: {wanted} is there for several filters: give --filter {filters}")
        chosen, why = (wanted if wanted in named else named[0]), "as --metric says"
    elif ours is not None and ours.metric in known:
        chosen, why = ours.metric, "as in our run"
    else:
        good = [name for name in known if log.means_over_samples(name) and not _less_is_more(log, name)]
        chosen = (good or known)[0]
        others = [name for name in known if name != chosen]
        why = f"the first; --metric chooses, also {', '.join(others)}" if others else "the only one"
    if _less_is_more(log, chosen):
        raise ValueError(
            f"{log.path}: of {chosen} less is better: give a --metric of which more is ({', '.join(known)})"
        )
    return chosen, f"{log.task}: metric {chosen} ({why})."


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
        named = [name for name in run.tasks if name == log.task]
        chosen = named or list(run.tasks)
        if len(chosen) > 1:
            raise ValueError(f"{log.path}: give the task of {run.folder} that it is, --task {' or '.join(chosen)}")
        return run.tasks[chosen[0]]
    name = re.sub(r"[^\w,.-]+", "_", f"{log.harness}_{log.task}")
    for known, records in run.tasks.items():
        rest = known.removeprefix(name) if known.startswith(name) else None
        shots = _SHOTS.match(rest or "")
        end = rest[shots.end() :] if rest and shots else rest
        if end is None or (end and end != f"_{records.metric}"):
            continue
        theirs = log.binding.get("number of examples")
        if shots and theirs is not None and int(shots[1]) != theirs:
            raise ValueError(
                f"{log.path}: was asked with {theirs} examples, {known} of our run with {shots[1]}: evaluate one of "
                "the two again"
            )
        return records
    return None


def our_scores(log: SampleLog, metric: str, ours: TaskRecords) -> tuple[str, dict[str, str]]:
    """The column of our records that holds a metric, and our samples by the log's ids.

    A document of a harness has its number behind the split, ``test/17``.

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
    named = {}
    for sample in ours.frame["sample"].unique():
        split, _, number = sample.rpartition("/")
        if log.harness == "inspect":
            named[sample] = sample
        elif log.split in (None, split):
            named[number] = sample
    return column, named


def pair(
    log: SampleLog,
    whole: SampleLog | None,
    metric: str,
    mask: str | None,
    ours: TaskRecords | None,
    confirms: bool = True,
) -> Pair:
    """The samples that all sides have.

    Args:
        log: Of the exported model.
        whole: Of the whole model; None = our records of it are taken.
        metric: Of both.
        mask: Which blocks the export has; None = not known, so our records of it cannot be compared.
        ours: Records of our run.
        confirms: Compare with our records of the mask, too; not if the export is no longer that masked model.

    Raises:
        ValueError: If no sample is shared, both logs asked the same documents otherwise, or there are fewer than two.
    """
    mine = {sample: each.values[metric] for sample, each in log.samples.items() if metric in each.values}
    unmatched: dict[str, list[str]] = {}
    remarks = _unscored(log, metric, len(mine))
    matched_by, other_id = "id", {sample: sample for sample in mine}
    theirs: Mapping[str, float] = {}
    if whole is not None:
        check_same_evaluation(log, whole)
        matched_by, other_id = _match(log, whole, list(mine))
        theirs = {sample: each.values[metric] for sample, each in whole.samples.items() if metric in each.values}
        remarks += _unscored(whole, metric, len(theirs))
    records = None
    if ours is not None and mask is not None and matched_by == "id" and (confirms or whole is None):
        _check_length(mask, ours)
        records = _our_records(log, metric, mask if confirms else ours.full_id, ours, mine)
    if whole is None:
        theirs = {} if records is None else dict(zip(records.samples, records.full))
    samples = [sample for sample in mine if other_id.get(sample) in theirs]
    unmatched["of the exported model alone"] = [sample for sample in mine if other_id.get(sample) not in theirs]
    used = {other_id[sample] for sample in samples}
    unmatched["of the whole model alone"] = [sample for sample in theirs if sample not in used]
    if not samples:
        raise ValueError(_no_overlap(log, whole, ours, mine, theirs))
    if records is not None:
        kept = [place for place, sample in enumerate(records.samples) if sample in set(samples)]
        unmatched["without a record of our run"] = sorted(set(samples) - set(records.samples), key=_by_number)
        records = _subset(records, kept)
    images = {} if records is None else dict(zip(records.samples, records.images))
    # by our names of images where we know all of them, else by the log's: the two are not mixed
    known = set(samples) <= set(images)
    clusters = [images[sample] if known else log.samples[sample].cluster or sample for sample in samples]
    if len(set(clusters)) < 2:
        raise ValueError(
            f"{log.path}: expected at least 2 samples (of 2 images) that are shared, got {len(set(clusters))}"
        )
    return Pair(
        log=log,
        metric=metric,
        mask=mask,
        samples=samples,
        clusters=clusters,
        whole=np.array([theirs[other_id[sample]] for sample in samples]),
        exported=np.array([mine[sample] for sample in samples]),
        ours=records if records is not None and records.samples and confirms else None,
        unmatched={side: found for side, found in unmatched.items() if found},
        matched_by=matched_by,
        whole_is_ours=whole is None,
        remarks=tuple(remarks),
    )


def _unscored(log: SampleLog, metric: str, number: int) -> list[str]:
    missing = [sample for sample, each in log.samples.items() if metric not in each.values]
    if not missing:
        return []
    return [
        f"{log.path.name}: {len(missing)} of {number + len(missing)} samples have no {metric} ({name_some(missing)})."
    ]


def _check_length(mask: str, ours: TaskRecords) -> None:
    if len(mask) != len(ours.full_id):
        raise ValueError(
            f"{ours.task}: our run has masks of {len(ours.full_id)} entries, the export one of {len(mask)}: it is "
            "a run of another model, or of halves of blocks"
        )


def _our_records(log: SampleLog, metric: str, mask: str, ours: TaskRecords, wanted: Mapping[str, float]) -> Ours | None:
    column, named = our_scores(log, metric, ours)
    by_ours = {sample: theirs for theirs, sample in named.items() if theirs in wanted}
    found = ours.of_masks([ours.full_id, mask], by_ours)
    full, masked = (found[each] for each in (ours.full_id, mask))
    answers = [text if isinstance(text, str) else None for text in masked.get("prediction", [None] * len(masked))]
    images = masked.get("image", masked.index)
    return Ours(
        [by_ours[sample] for sample in masked.index],
        full[column].to_numpy(float),
        masked[column].to_numpy(float),
        str(masked["role"].iloc[0]) if len(masked) else "",
        answers,
        [str(image) for image in images],
    )


def _subset(records: Ours, kept: Sequence[int]) -> Ours:
    pick = lambda values: [values[place] for place in kept]  # noqa: E731
    return Ours(
        pick(records.samples),
        records.full[list(kept)],
        records.masked[list(kept)],
        records.role,
        pick(records.answers),
        pick(records.images),
    )


def check_same_evaluation(log: SampleLog, whole: SampleLog) -> None:
    """Raise ValueError if two logs are of other evaluations, naming the first settings that differ."""
    if not log.binding or not whole.binding:
        return
    differing = [name for name, value in log.binding.items() if value != whole.binding.get(name)]
    if differing:
        told = "; ".join(
            f"{name}: {_short(whole.binding.get(name))} and {_short(log.binding[name])}" for name in differing[:2]
        )
        raise ValueError(
            f"{log.task} was evaluated otherwise on the whole model ({whole.path}) than on the exported one "
            f"({log.path}): {told}. Evaluate both alike"
        )


def noted_differences(log: SampleLog, whole: SampleLog) -> list[str]:
    """Settings in which two logs differ, though they can be paired."""
    names = dict.fromkeys([*log.noted, *whole.noted])
    differing = [name for name in names if log.noted.get(name) != whole.noted.get(name)]
    return [f"{name}: {_short(whole.noted.get(name))} and {_short(log.noted.get(name))}" for name in differing]


def _match(log: SampleLog, whole: SampleLog, wanted: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What identifies a sample in two logs, and the whole model's id of each sample of the exported one's.

    Ids are numbers of documents: where these were counted otherwise, the hash of the document tells.
    """
    shared = [sample for sample in wanted if sample in whole.samples]
    other = [sample for sample in shared if log.samples[sample].asked != whole.samples[sample].asked]
    if not other:
        return "id", {sample: sample for sample in wanted}
    by_hash = _by_hash(log), _by_hash(whole)
    if None not in by_hash:
        mine, theirs = (dict(each or {}) for each in by_hash)
        found = {mine[name]: theirs[name] for name in mine.keys() & theirs.keys()}
        if found and all(log.samples[one].asked == whole.samples[two].asked for one, two in found.items()):
            return "doc_hash", found
    first = other[0]
    parts = ["prompts", "targets"]
    differ = [part for part, one, two in zip(parts, log.samples[first].asked, whole.samples[first].asked) if one != two]
    raise ValueError(
        f"{log.task}: {len(other)} of {len(shared)} shared samples were not asked alike ({name_some(other)}): their "
        f"{' and '.join(differ)} differ between {whole.path} and {log.path}. Evaluate both on the same data, with the "
        "same examples and template"
    )


def _by_hash(log: SampleLog) -> dict[str, str] | None:
    """Sample ids by the document's hash; None if some have none, or share one."""
    found = {each.doc_hash: sample for sample, each in log.samples.items() if each.doc_hash}
    return found if len(found) == len(log.samples) else None


def _no_overlap(
    log: SampleLog,
    whole: SampleLog | None,
    ours: TaskRecords | None,
    mine: Mapping[str, Any],
    theirs: Mapping[str, Any],
) -> str:
    if whole is not None:
        other, ids = str(whole.path), list(theirs)
    else:
        other, ids = "our run", list(ours.frame["sample"].unique()) if ours is not None else []
    split = f" of the split {log.split}" if log.split else ""
    return (
        f"{log.path}: no sample is shared with {other}: its {len(mine)} samples{split} are {name_some(list(mine))}, "
        f"the others {name_some(ids)}"
    )


def name_some(samples: Sequence[str]) -> str:
    """The first few of some samples.

    >>> name_some(["1", "2"]), name_some(list("abcde")), name_some([])
    ('1, 2', 'a, b, c, ... 5 in all', 'none')
    """
    if len(samples) <= _SHOWN:
        return ", ".join(samples) or "none"
    return f"{', '.join(samples[:_SHOWN])}, ... {len(samples)} in all"


def _by_number(sample: str) -> tuple[int, str]:
    return (int(sample), "") if sample.isdecimal() else (0, sample)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
