"""What a result tells of its measure beside the mean score: other normalisations, and the perplexity of texts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lit_depth.results.report import Section, Table
from lit_depth.results.table import Cell, format_interval
from lit_depth.results.unit_names import list_counts, unit_names

_SHOWN = 20  # documents of the largest number of tokens
_LARGEST = 700  # nats, of which exp is a number
Limits = Sequence[float]


def describe_measure(entry: Mapping[str, Any]) -> str:
    """What the full model's score is by another measure of the same kind; empty where there is none.

    The text begins with a space.

    >>> describe_measure({"acc": {"10": 0.25, "11": 0.5}, "acc_norm": {"10": 0.25, "11": 0.75}})
    ' Options chosen by the sum of log-probabilities: acc 0.500; divided by their characters: acc_norm 0.750.'
    """
    if "readings" in entry:
        return readings_note(entry["readings"])
    if "texts" in entry:
        full = entry["full"]
        return (
            f" Log-probability of a token in nats, of {entry['texts']['num_tokens']:,} tokens in all: perplexity "
            f"{perplexity(full['quality'], full['quality_ci'])}."
        )
    if "acc" not in entry or "acc_norm" not in entry:
        return ""
    whole = max(entry["acc"], key=lambda mask: mask.count("1"))
    return (
        f" Options chosen by the sum of log-probabilities: acc {entry['acc'][whole]:.3f}; divided by their characters: "
        f"acc_norm {entry['acc_norm'][whole]:.3f}."
    )


def readings_note(readings: Mapping[str, Mapping[str, Any]]) -> str:
    """What the full model's answers are in another reading than the first, and how many a reading cannot parse.

    The text begins with a space.

    >>> official = {"10": {"quality": 0.25, "parse_failed": 0.5}, "11": {"quality": 0.5, "parse_failed": 0.25}}
    >>> chat = {"10": {"quality": 0.5, "parse_failed": 0.125}, "11": {"quality": 0.625, "parse_failed": 0.0}}
    >>> chat = {mask: {**each, "quality_ci": [0.25, 0.75]} for mask, each in chat.items()}
    >>> note = readings_note({"multiple_choice": official, "chat_choice": chat})
    >>> note.partition(". ")[0]
    ' multiple_choice cannot parse 25.0% of the answers (50.0% under some mask)'
    >>> note.partition(". ")[2]
    'The same answers read by chat_choice: 0.625 [0.250, 0.750], 0.0% not parsed (12.5% under some mask).'
    """
    sentences = []
    for place, (name, masks) in enumerate(readings.items()):
        full, failed = masks[max(masks, key=lambda mask: mask.count("1"))], _not_parsed(masks)
        if "quality" not in full or not place:
            sentences += [f"{name} cannot parse {failed[0]} of the answers{failed[1]}."] if failed else []
            continue
        low, high = full["quality_ci"]
        unread = f", {failed[0]} not parsed{failed[1]}" if failed else ""
        sentences.append(f"The same answers read by {name}: {full['quality']:.3f} [{low:.3f}, {high:.3f}]{unread}.")
    return "".join(f" {sentence}" for sentence in sentences)


def _not_parsed(masks: Mapping[str, Any]) -> tuple[str, str] | None:
    """Share of the full model's answers without an option, and the largest under a mask; None: none is looked for."""
    shares = {mask: each["parse_failed"] for mask, each in masks.items() if each["parse_failed"] is not None}
    if not shares:
        return None
    full, most = shares[max(shares, key=lambda mask: mask.count("1"))], max(shares.values())
    return f"{full:.1%}", f" ({most:.1%} under some mask)" if most > full else ""


def readings_sections(entry: Mapping[str, Any], result: Mapping[str, Any]) -> list[Section]:
    """Every mask in every reading of a task's entry of a result, for the page; nothing of a single reading."""
    if "readings" not in entry:
        return []
    names = list(entry["readings"])
    is_scored = "quality_ci" in next(iter(entry["readings"][names[0]].values()))
    columns = ("", " interval", " not parsed") if is_scored else (" not parsed",)
    headers = ["skipped", *(f"{name}{column}" for name in names for column in columns)]
    rows: list[list[Cell]] = []
    for mask in sorted(entry["readings"][names[0]], key=lambda mask: (-mask.count("1"), mask)):
        skipped = [unit for unit, bit in enumerate(mask) if bit == "0"]
        is_whole = len(mask) == result["num_blocks"]
        halves = ", ".join(unit_names(skipped, "sublayer")) or "none"
        row: list[Cell] = [list_counts(skipped) if is_whole else halves]
        for name in names:
            each = entry["readings"][name][mask]
            failed = each["parse_failed"]
            row += [each["quality"], format_interval(each["quality_ci"], "")] if is_scored else []
            row.append(None if failed is None else f"{failed:.1%}")
        rows.append(row)
    text = "Every reading sees the very same generated answers."
    text += " One in which it finds no option scores 0." if is_scored else ""
    return [Section(f"{entry['task']}: answers in {len(names)} readings", text, Table(headers, rows), printed=False)]


def perplexity(logprob: float, limits: Limits) -> str:
    """The perplexity of a mean log-probability per token in nats, and its interval.

    >>> perplexity(-2.0, (-2.5, -1.5))
    '7.39 [4.48, 12.2]'
    """
    middle, high, low = (math.exp(min(-each, _LARGEST)) for each in (logprob, *limits))
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def quality_limits(full: float, drop: Limits, max_score: float | None) -> list[float]:
    """Quality at either end of the interval of its drop from the full model's, of which no score is cut off.

    Args:
        full: Quality of the full model; below 0 it is a log-probability, which has no smallest value.
        max_score: Largest possible score; None if there is none, or if a result of an earlier version does not say.

    >>> quality_limits(0.875, (-0.25, 1.0), 1.0), quality_limits(0.875, (-0.25, 1.0), None)
    ([0.0, 1.0], [0.0, 1.125])
    >>> quality_limits(-2.0, (-0.25, 1.0), None)
    [-3.0, -1.75]
    """
    low, high = full - drop[1], full - drop[0]
    return [low if full < 0 else max(0.0, low), high if max_score is None else min(high, max_score)]


def cluster_noun(entry: Mapping[str, Any]) -> str:
    """What intervals are clustered by, in an entry of a result."""
    return entry.get("nouns", {}).get("cluster", "document" if "texts" in entry else "image")


def sample_noun(entry: Mapping[str, Any]) -> str:
    """What the samples of an entry of a result are called."""
    return entry.get("nouns", {}).get("sample", "question")


def count_samples(entry: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    """How many samples of how many clusters there are; ``counts`` has the numbers, ``entry`` knows what they are of.

    >>> counts = {"num_samples": 9, "num_images": 4}
    >>> count_samples({}, counts), count_samples({"nouns": {"sample": "window", "cluster": "document"}}, counts)
    ('9 samples of 4 images', '9 windows of 4 documents')
    >>> count_samples({"nouns": {"sample": "document", "cluster": "document"}}, counts)
    '9 documents'
    """
    named = f"{sample_noun(entry) if 'nouns' in entry else 'sample'}s"
    cluster = f"{cluster_noun(entry)}s"
    return f"{counts['num_samples']} {named}" + ("" if named == cluster else f" of {counts['num_images']} {cluster}")


def shared_nouns(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ``nouns`` of several tasks together, as a result holds them; nothing of questions about images alone."""
    if not any("nouns" in each for each in entries):
        return {}
    named = {"sample": map(sample_noun, entries), "cluster": map(cluster_noun, entries)}
    return {"nouns": {key: " or ".join(dict.fromkeys(each)) for key, each in named.items()}}


def metric_label(metric: str) -> str:
    """A metric, or several between slashes, without the modules of a class path.

    >>> metric_label("lit_depth.integrations.harness.exact_match,strict-match / acc")
    'exact_match,strict-match / acc'
    """
    return " / ".join(each.rpartition(".")[2] for each in metric.split(" / "))


def document_sections(entry: Mapping[str, Any]) -> list[Section]:
    """The full model's perplexity of every document; nothing for other tasks."""
    if "texts" not in entry:
        return []
    documents = sorted(entry["texts"]["documents"].items(), key=lambda item: -item[1]["num_tokens"])
    rows = [
        [name, each["num_tokens"], f"{each['logprob']:.3f}", f"{each['perplexity']:.4g}"]
        for name, each in documents[:_SHOWN]
    ]
    left = len(documents) - len(rows)
    text = "Full model." + (f" {left} smaller ones are left out here." if left > 0 else "")
    return [Section("Documents", text, Table(["document", "tokens", "nats per token", "perplexity"], rows))]
