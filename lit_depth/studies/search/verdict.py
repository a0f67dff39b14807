"""Was the search worth it? Its ablations against those of greedy search, of importance's order, and of spans."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_depth.results.report import Section
from lit_depth.results.table import format_interval, format_p_value
from lit_depth.results.unit_names import list_counts
from lit_depth.results.verdicts import SIMULTANEOUS, differs, refusal
from lit_depth.studies.shared.scores import Scores

SEARCH = "search"
OTHERS = ("greedy", "importance order", "span")


def compare_finders(ablations: Sequence[Mapping[str, Any]], scores: Scores, confidence: float) -> list[dict[str, Any]]:
    """Quality of the search's choice minus another finder's, averaged over the sizes where they chose differently.

    One paired test per finder on the samples of ``scores``, clustered by image; Holm's correction is over the finders.
    ``verdict`` is ``search``, the finder, ``tie``, or ``too few``: so few images have different scores that no outcome
    of a sign-flip test could be told apart after the correction (its smallest p-value is ``2 ** (1 - images)``).
    A finder without sizes chose the same everywhere, and is ``same``.
    """
    chosen = {(name, len(each["removed"])): each["mask_id"] for each in ablations for name in each["found_by"]}
    entries: list[dict[str, Any]] = []
    rows: list[np.ndarray] = []
    for other in OTHERS:
        both = sorted(size for name, size in chosen if name == other and (SEARCH, size) in chosen)
        sizes = [size for size in both if chosen[SEARCH, size] != chosen[other, size]]
        if not both:
            continue
        entries.append({"against": other, "sizes": sizes, "same_at": [size for size in both if size not in sizes]})
        if sizes:
            found = [scores.rows([chosen[name, size] for size in sizes]).mean(axis=0) for name in (SEARCH, other)]
            rows.append(found[0] - found[1])
    tested = iter(zip(rows, scores.compare(np.stack(rows), confidence) if rows else ()))
    for entry in entries:
        if not entry["sizes"]:
            entry["verdict"] = "same"
            continue
        row, family = next(tested)
        entry |= {
            "difference": family.interval.estimate,
            "simultaneous_ci": [family.simultaneous.low, family.simultaneous.high],
            "p_holm": family.p_holm,
            "num_differing": _differing(row, scores.images),
        }
        entry["verdict"] = _verdict(entry, len(rows), confidence)
    return entries


def _differing(row: np.ndarray, images: Sequence[str]) -> int:
    """Images whose scores differ in sum."""
    _, index = np.unique(images, return_inverse=True)
    return int((np.abs(np.bincount(index, weights=row)) > 1e-12).sum())


def _verdict(entry: Mapping[str, Any], num_tests: int, confidence: float) -> str:
    if differs(entry["p_holm"], confidence):
        return SEARCH if entry["difference"] > 0 else entry["against"]
    too_few = entry["num_differing"] < 1 or num_tests * 0.5 ** (entry["num_differing"] - 1) >= 1 - confidence
    return "too few" if too_few else "tie"


def verdict_section(result: Mapping[str, Any]) -> list[Section]:
    """What the tests say, one line per finder; nothing in results of earlier versions or without baselines."""
    found = result.get("verdicts")
    if not found:
        return []
    if refusal(result["report"]) is not None:
        return [Section("Was the search worth it?", "WITHHELD.")]
    tail = f"Tested on the validation split; {result['confidence']:.0%} {SIMULTANEOUS}, over the other finders."
    return [Section("Was the search worth it?", "\n".join([*map(describe_verdict, found), tail]))]


def describe_verdict(entry: Mapping[str, Any]) -> str:
    """One finder in one line.

    >>> describe_verdict({"against": "greedy", "sizes": [], "same_at": [1, 2], "verdict": "same"})
    'Against greedy: the same ablations at 1 and 2 removed.'
    """
    against = f"Against {entry['against']}"
    same = f"the same ablations at {list_counts(entry['same_at'])} removed" if entry["same_at"] else ""
    if entry["verdict"] == "same":
        return f"{against}: {same}."
    answers = {SEARCH: "BETTER", "tie": "NOT SHOWN", "too few": "TOO FEW SAMPLES"}
    numbers = (
        f"quality {entry['difference']:+.3f} {format_interval(entry['simultaneous_ci'])}, p = "
        f"{format_p_value(entry['p_holm'])} (Holm), at {list_counts(entry['sizes'])} removed"
    )
    few = f" Scores differ on {entry['num_differing']} images alone." if entry["verdict"] == "too few" else ""
    return f"{against}: {answers.get(entry['verdict'], 'WORSE')}: {numbers}{f'; {same}' if same else ''}.{few}"
