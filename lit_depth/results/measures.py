"""What a result tells of its measure beside the mean score: other normalisations, and the perplexity of texts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lit_depth.results.report import Section, Table

_SHOWN = 20  # documents of the largest number of tokens
_LARGEST = 700  # nats, of which exp is a number
Limits = Sequence[float]


def describe_measure(entry: Mapping[str, Any]) -> str:
    """What the full model's score is by another measure of the same kind; empty where there is none.

    The text begins with a space.

    >>> describe_measure({"acc": {"10": 0.25, "11": 0.5}, "acc_norm": {"10": 0.25, "11": 0.75}})
    ' Options chosen by the sum of log-probabilities: acc 0.500; divided by their characters: acc_norm 0.750.'
    """
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


def perplexity(logprob: float, limits: Limits) -> str:
    """The perplexity of a mean log-probability per token in nats, and its interval.

    >>> perplexity(-2.0, (-2.5, -1.5))
    '7.39 [4.48, 12.2]'
    """
    middle, high, low = (math.exp(min(-each, _LARGEST)) for each in (logprob, *limits))
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def cluster_noun(entry: Mapping[str, Any]) -> str:
    """What intervals are clustered by."""
    return "document" if "texts" in entry else "image"


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
