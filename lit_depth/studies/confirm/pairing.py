"""The same samples of an exported and the whole model, and of our run: matched by id, compared in what was asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_depth.integrations.sample_logs import SampleLog
from lit_depth.results.run_records import REPORTED, TaskRecords
from lit_depth.studies.confirm.choosing import our_scores

_SHOWN = 3
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

    def of(self, samples: Collection[str]) -> Ours:
        """Those of some samples."""
        kept = [place for place, sample in enumerate(self.samples) if sample in samples]
        return Ours(
            [self.samples[place] for place in kept],
            self.full[kept],
            self.masked[kept],
            self.role,
            [self.answers[place] for place in kept],
            [self.images[place] for place in kept],
        )


class Match(NamedTuple):
    """Samples of two logs that are the same document.

    Attributes:
        by: What tells: ``id`` or ``doc_hash``.
        ids: The whole model's id of each sample of the exported one's.
    """

    by: str
    ids: Mapping[str, str]


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

    def equal_scores(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of the samples of our run: whether the whole, and the exported, model scored there as they did here."""
        assert self.ours is not None
        places = {sample: place for place, sample in enumerate(self.samples)}
        chosen = [places[sample] for sample in self.ours.samples]
        both = ((self.whole, self.ours.full), (self.exported, self.ours.masked))
        whole, exported = (np.isclose(theirs[chosen], mine, rtol=0, atol=_EQUAL) for theirs, mine in both)
        return whole, exported

    def equal_answers(self) -> list[bool]:
        """Of those of them where both answers are known: whether they are the same, apart from white space."""
        assert self.ours is not None
        theirs = (self.log.samples[sample].answer for sample in self.ours.samples)
        both = [pair for pair in zip(theirs, self.ours.answers) if None not in pair]
        return [str(one).strip() == str(other).strip() for one, other in both]


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
    mine = _scores(log, metric)
    match = Match("id", {sample: sample for sample in mine})
    remarks = _unscored(log, mine, metric)
    there: Mapping[str, float] = {}
    if whole is not None:
        check_same_evaluation(log, whole)
        match, there = match_samples(log, whole, list(mine)), _scores(whole, metric)
        remarks += _unscored(whole, there, metric)
    if match.by != "id":
        remarks.append(f"{log.task}: documents have other numbers in the two logs, and were matched by their hashes.")
    records = None
    # our records know the numbers of documents alone
    if ours is not None and mask is not None and match.by == "id" and (confirms or whole is None):
        records = _our_records(log, metric, mask if confirms else ours.full_id, ours)
    if whole is None and records is not None:
        there = dict(zip(records.samples, records.full))
    samples = [sample for sample in mine if match.ids.get(sample) in there]
    if not samples:
        raise ValueError(_no_overlap(log, whole, ours, mine, there))
    used = {match.ids[sample] for sample in samples}
    alone = [] if whole is None else [sample for sample in there if sample not in used]
    unmatched = _unmatched(mine, alone, samples, records)
    if records is not None:
        records = records.of(set(samples))
        if records.samples and records.role != REPORTED:
            remarks.append(f"{log.task}: our records are of samples that masks were selected on ({records.role}).")
    return Pair(
        log=log,
        metric=metric,
        mask=mask,
        samples=samples,
        clusters=_clusters(log, samples, records),
        whole=np.array([there[match.ids[sample]] for sample in samples]),
        exported=np.array([mine[sample] for sample in samples]),
        ours=records if records is not None and records.samples and confirms else None,
        unmatched=unmatched,
        matched_by=match.by,
        whole_is_ours=whole is None,
        remarks=tuple(remarks),
    )


def _unmatched(
    mine: Collection[str], of_whole: list[str], samples: Sequence[str], records: Ours | None
) -> dict[str, list[str]]:
    """Samples that are not in all sides, by a description of the side."""
    shared = set(samples)
    found = {
        "of the exported model alone": [sample for sample in mine if sample not in shared],
        "of the whole model alone": of_whole,
    }
    if records is not None:
        own = set(records.samples)
        found["of our run alone"] = [sample for sample in records.samples if sample not in shared]
        found["without a record of our run"] = [sample for sample in samples if sample not in own]
    return {side: some for side, some in found.items() if some}


def _scores(log: SampleLog, metric: str) -> dict[str, float]:
    found = {sample: each.values[metric] for sample, each in log.samples.items() if metric in each.values}
    if not found:
        why = f" ({log.refused[metric]})" if metric in log.refused else ""
        raise ValueError(
            f"{log.path}: expected the metric {metric}{why}, got {', '.join(log.metrics) or 'none that is a number'}"
        )
    return found


def _unscored(log: SampleLog, scores: Mapping[str, float], metric: str) -> list[str]:
    missing = [sample for sample in log.samples if sample not in scores]
    count = f"{len(missing)} of {len(log.samples)} samples have no {metric} ({name_some(missing)})"
    return [f"{log.path.name}: {count}."] if missing else []


def _clusters(log: SampleLog, samples: Sequence[str], records: Ours | None) -> list[str]:
    """Images of some samples: by our names where we know all of them, else by the log's; the two are not mixed."""
    images = {} if records is None else dict(zip(records.samples, records.images))
    known = set(samples) <= set(images)
    clusters = [images[sample] if known else log.samples[sample].cluster or sample for sample in samples]
    if len(set(clusters)) < 2:
        raise ValueError(f"{log.path}: expected at least 2 samples (of 2 images) that are shared, got 1")
    return clusters


def _our_records(log: SampleLog, metric: str, mask: str, ours: TaskRecords) -> Ours:
    if len(mask) != len(ours.full_id):
        raise ValueError(
            f"{ours.task}: our run has masks of {len(ours.full_id)} entries, the export one of {len(mask)}: it is "
            "a run of another model, or of halves of blocks"
        )
    column, named = our_scores(log, metric, ours)
    by_ours = {sample: theirs for theirs, sample in named.items()}
    wanted = [sample for sample, theirs in by_ours.items() if theirs in log.samples]
    # all that it holds of that role, where it holds some of the log's
    found = ours.of_masks([ours.full_id, mask], wanted, column)
    full, masked = (found[each][found[each].index.isin(list(by_ours))] for each in (ours.full_id, mask))
    answers = [text if isinstance(text, str) else None for text in masked.get("prediction", [None] * len(masked))]
    return Ours(
        [by_ours[sample] for sample in masked.index],
        full[column].to_numpy(float),
        masked[column].to_numpy(float),
        str(masked["role"].iloc[0]) if len(masked) else "",
        answers,
        [str(image) for image in masked.get("image", masked.index)],
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


def match_samples(log: SampleLog, whole: SampleLog, wanted: Sequence[str]) -> Match:
    """Which samples of the whole model's log are those of the exported one's.

    Ids are numbers of documents: where these were counted otherwise, the hash of the document tells.

    Raises:
        ValueError: If a document that both have was not asked alike.
    """
    shared = [sample for sample in wanted if sample in whole.samples]
    other = [sample for sample in shared if log.samples[sample].asked != whole.samples[sample].asked]
    by_id = Match("id", {sample: sample for sample in wanted})
    if shared and not other:
        return by_id
    by_hash = _by_hash(log), _by_hash(whole)
    if None not in by_hash:
        mine, theirs = (dict(each or {}) for each in by_hash)
        found = {mine[name]: theirs[name] for name in mine.keys() & theirs.keys()}
        if found and all(log.samples[one].asked == whole.samples[two].asked for one, two in found.items()):
            return Match("doc_hash", found)
    if not other:
        return by_id  # of which none is shared
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


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
