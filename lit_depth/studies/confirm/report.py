"""What is told of the results of others' engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_depth.results.report import Report, Section, Table
from lit_depth.results.table import Cell, format_interval, format_p_value
from lit_depth.results.unit_names import list_counts
from lit_depth.results.verdicts import SIMULTANEOUS, WITHHELD
from lit_depth.studies.confirm.analysis import CONFIRMED


def report(result: Mapping[str, Any]) -> Report:
    """Drops, then how they stand to ours, then what could not be matched and what differed."""
    rows = result["rows"]
    sections = [Section("Exported against whole", _what(result), _drops(result))]
    if any(row["ours"] for row in rows):
        sections.append(Section("Against our records", _confirmed_text(result), _confirmations(result)))
    unmatched = [_unmatched(row) for row in rows if row["unmatched"]]
    told = [*dict.fromkeys([*map(_other_whole, rows), *unmatched]), *result["remarks"]]
    told = [each for each in told if each]
    if told:
        sections.append(Section("Samples and settings", "\n\n".join(told)))
    files = [[file["of"], file["task"], file["path"], file["sha256"][:16]] for file in result["files"]]
    sections.append(Section("Files", table=Table(["of", "task", "file", "sha256"], files), printed=False))
    return Report(
        title="Exported models, evaluated elsewhere",
        headline=_headline(result),
        sections=sections,
        kind="ingest",
    )


def _headline(result: Mapping[str, Any]) -> str:
    rows = result["rows"]
    parts = list(dict.fromkeys(row["withheld"] for row in rows if row["withheld"]))
    shown = [row["ours"] for row in rows if row["ours"]]
    if shown:
        good = sum(each["verdict"].startswith(CONFIRMED) for each in shown)
        parts.append(f"{good} of {len(shown)} drops that we measured are confirmed.")
    told = [row for row in rows if row["verdict"]]
    if told:
        worse, better = (sum(row["verdict"] == word for row in told) for word in ("worse", "better"))
        parts.append(
            f"Against the whole model, of {len(told)} comparisons {worse} are worse, {better} better, "
            f"{len(told) - worse - better} tied."
        )
    return "\n\n".join(parts)


def _what(result: Mapping[str, Any]) -> str:
    confidence = f"{result['confidence']:.0%}"
    text = f"Drop: whole less exported model on the same samples, {confidence} {SIMULTANEOUS}, sign-flip tests."
    ours = sorted({row["task"] for row in result["rows"] if row["whole"]["from"] == "our run"})
    if ours:
        text += f" The whole model's scores are those of our run ({', '.join(ours)}): no log of it was given."
    unbounded = sorted({row["task"] for row in result["rows"] if not row["bounded"]})
    if unbounded:
        text += f" Scores of {', '.join(unbounded)} leave 0 to 1, so intervals are Student's."
    return text


def _drops(result: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = [
        [
            row["task"],
            row["model"],
            _skipped(row["mask_id"]),
            row["metric"],
            row["num_samples"],
            row["whole"]["quality"],
            row["exported"]["quality"],
            f"{row['drop']:+.3f} {format_interval(row['drop_simultaneous_ci'])}",
            format_p_value(row["drop_p_holm"]),
            *(_share(row, name) for name in ("right_to_wrong", "wrong_to_right")),
            row["verdict"] or WITHHELD,
        ]
        for row in result["rows"]
    ]
    columns = ["task", "model", "skipped", "metric", "n", "whole", "exported", "drop", "p (Holm)"]
    return Table([*columns, "right to wrong", "wrong to right", "exported is"], rows)


def _share(row: Mapping[str, Any], name: str) -> str | None:
    """Share of scores that are lower, or higher, than the whole model's; not of scores without a range."""
    return f"{row[name]:.1%}" if name in row else None


def _skipped(mask: str | None) -> str | None:
    if mask is None:
        return None
    return list_counts([unit for unit, bit in enumerate(mask) if bit == "0"]) or "none"


def _confirmed_text(result: Mapping[str, Any]) -> str:
    return (
        "Their drop less ours, on the samples of both. Confirmed: the same on every sample, or an interval within "
        f"{result['tolerance']:g} of 0 (--tolerance). Equal: share of samples that the exported model scored "
        "(answered) there as the masked model did here."
    )


def _confirmations(result: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for row in result["rows"]:
        if (ours := row["ours"]) is None:
            continue
        answers = ours["equal_answers"]
        rows.append(
            [
                row["task"],
                row["model"],
                ours["num_samples"],
                f"{ours['our_drop']:+.3f}",
                f"{ours['their_drop']:+.3f}",
                f"{ours['difference']:+.3f} {format_interval(ours['difference_simultaneous_ci'])}",
                format_p_value(ours["p_holm"]),
                f"{ours['equal_scores']:.1%}",
                None if answers is None else f"{answers:.1%}",
                ours["verdict"],
            ]
        )
    columns = [
        "task",
        "model",
        "n",
        "our drop",
        "theirs",
        "difference",
        "p (Holm)",
        "equal scores",
        "equal answers",
        "",
    ]
    return Table(columns, rows)


def _other_whole(row: Mapping[str, Any]) -> str:
    """That the whole model does not score there as here, which is no matter of the mask."""
    share = 1.0 if row["ours"] is None else row["ours"]["equal_scores_whole"]
    if share == 1:
        return ""
    return (
        f"{row['task']}: the whole model, too, scores otherwise there than here; {share:.1%} of its scores are equal."
    )


def _unmatched(row: Mapping[str, Any]) -> str:
    sides = []
    for side, found in row["unmatched"].items():
        more = ", ..." if found["number"] > len(found["first"]) else ""
        sides.append(f"{found['number']} {side} ({', '.join(found['first'])}{more})")
    return f"{row['task']}, {row['model']}: samples that were left out: {'; '.join(sides)}."
