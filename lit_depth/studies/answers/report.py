"""What ``lit-depth answers`` tells of its result."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_depth.results.charts.quality_charts import Mark, quality_vs_blocks
from lit_depth.results.measures import cluster_noun, describe_measure, readings_sections, sample_noun
from lit_depth.results.report import Chart, Curves, Report, Section, Table
from lit_depth.results.table import Cell, format_interval
from lit_depth.results.verdicts import count_answers

HEADERS = ("policy", "blocks", "agreement", "interval", "flips", "distinct answers")

_STEP = "num_active_blocks"


def report(result: Mapping[str, Any], written: Sequence[str] = ()) -> Report:
    """The report of the content of ``answers.json``; ``written`` names the files to submit."""
    rows: list[list[Cell]] = [
        [
            ", ".join(entry["policies"]),
            entry["num_active_blocks"],
            f"{entry['agreement']:.3f}",
            format_interval(entry["agreement_ci"], ""),
            entry["num_flips"],
            entry["num_distinct_answers"],
        ]
        for entry in result["masks"]
    ]
    headline = (
        f"{result['num_samples']} {sample_noun(result)}s of {result['task']} ({result['num_bad_samples']} bad) without "
        f"their answers: no quality is claimed. Agreement is the share of answers that are the full model's "
        f"({count_answers(result['full']['num_distinct_answers'])}), with {result['confidence']:.0%} intervals by "
        f"{cluster_noun(result)}; a flip is another answer, right or wrong.{describe_measure(result)}"
    )
    return Report(
        title=f"Answers on {result['task']}",
        headline=headline,
        sections=[
            Section("Agreement with the full model", table=Table(HEADERS, rows)),
            *readings_sections(result, result),
        ],
        kind="answers",
        curves=_curves(result),
        charts={"agreement_vs_blocks": _chart(result)},
        written=written,
        masks=_masks(result),
        tables={"answers/masks": Table(HEADERS, rows)},
        scalars={"answers/num_samples": result["num_samples"]},
    )


def _masks(result: Mapping[str, Any]) -> dict[str, list[str]]:
    masks: dict[str, list[str]] = {}
    for each in result["masks"]:
        for policy in each["policies"]:
            masks.setdefault(f"{policy}, {each['num_active_blocks']}", []).append(each["mask_id"])
    return masks


def _curves(result: Mapping[str, Any]) -> Curves:
    """Agreement and the ends of its interval along the number of active blocks, by policy."""
    rows: dict[int, dict[str, float]] = {}
    for each in sorted(result["masks"], key=lambda each: each["num_active_blocks"]):
        row = rows.setdefault(each["num_active_blocks"], {_STEP: each["num_active_blocks"]})
        low, high = each["agreement_ci"]
        found = {"agreement": each["agreement"], "low": low, "high": high}
        row |= {f"{key}/{policy}": value for policy in each["policies"] for key, value in found.items()}
    return Curves(_STEP, list(rows.values()))


def _chart(result: Mapping[str, Any]) -> Chart:
    """Agreement of every policy's masks with the full model, against the number of active blocks."""
    count = max(len(each["mask_id"]) for each in result["masks"])
    marks = [
        Mark(policy, each["num_active_blocks"], each["agreement"], each["agreement_ci"])
        for each in result["masks"]
        for policy in each["policies"]
    ]
    words = {
        "title": f"{result['task']}, {result['num_samples']} {sample_noun(result)}s",
        "subtitle": f"{result['confidence']:.0%} intervals",
        "x": f"active blocks (of {count})",
        "y": "agreement with the full model",
    }
    return quality_vs_blocks(marks, Mark(f"all {count} blocks", count, 1.0), words)
