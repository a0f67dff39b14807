"""What importance and consistency tell alike: what was measured, and how closely two measurements agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_depth.results.report import Section, Table
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.verdicts import SIMULTANEOUS, describe_constant, refusal

AGREEMENT = (
    "Rank correlation (Spearman) between two orders of the blocks as measured; the interval of the correlation that "
    "measurements without noise would show; the p-value of no correlation. 'samples' would put the interval above "
    "{threshold:g}, if the two agree as closely as these samples allow."
)
AGREEMENT_HEADERS = ("a", "b", "drop in", "spearman", "noise-free", "p", "agreement", "samples")


def headline(task: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What was measured and how well the full model did, in a sentence or two."""
    full = task["full"]
    split = task.get("split") or result["split"]
    ranks = " Rank 1 costs most; 'may be' are the ranks that the samples leave open." if not refusal(task) else ""
    trained = " Released checkpoints were trained on these very questions." if task["in_training_mixture"] else ""
    return (
        f"{task['metric']} on {task['task']} ({split} split), {task['num_samples']} samples of "
        f"{task['num_images']} images ({task['num_bad_samples']} bad), {result['confidence']:.0%} {SIMULTANEOUS} by "
        f"image. Full model {full['quality']:.3f} {format_interval(full['quality_ci'], '')}.{describe_constant(task)}"
        f"{ranks}{trained}"
    )


def agreement_section(
    heading: str, pairs: Sequence[Mapping[str, Any]], threshold: float, figures: Sequence[str] = (), text: str = ""
) -> Section:
    """How closely two measurements agree, one row per pair and measure; ``text`` stands below the explanation."""
    explained = "\n\n".join(filter(None, [AGREEMENT.format(threshold=threshold), text]))
    return Section(heading, explained, Table(AGREEMENT_HEADERS, _agreement_rows(pairs)), figures)


def _agreement_rows(pairs: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for pair in pairs:
        for measure, label in (("quality", "quality"), ("reference_logprob", "log-prob")):
            entry = pair[measure]
            needed = entry["samples_needed"]
            rows.append(
                [
                    pair["a"],
                    pair["b"],
                    label,
                    entry["spearman"],
                    format_interval(entry["ci"]) or "not estimable",
                    None if entry["p_value"] is None else format_p_value(entry["p_value"]),
                    entry["verdict"],
                    " / ".join(map(str, needed)) if needed else None,
                ]
            )
    return rows
