"""What ``lit-depth select`` writes and prints: the choice, its reasons, and the table of candidates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lit_depth.functional.selection import TOLERANCES
from lit_depth.results.report import Section, write_report
from lit_depth.results.selection_figures import write_selection_figure
from lit_depth.results.store import write_json
from lit_depth.results.tables import format_table
from lit_depth.results.verdicts import LEGEND, SIMULTANEOUS, WITHHELD, describe_constant, mark, refusal

RESULT = "selection.json"
HEADERS = ("blocks", "policy", "time P50", "budget from", "chosen by", "expected", "interval", "frontier")


def write_selection(result: dict[str, Any], identity: dict[str, Any], folder: Path) -> None:
    """Write ``selection.json``, ``report.html`` and, where quality was measured, the figure.

    Args:
        result: The content of ``selection.json``.
        identity: What identifies the run, for the report.
        folder: The run's folder.
    """
    figures = [write_selection_figure(result, folder / "figures")] if result["frontier"] else []
    refused = refusal(result, result["task"])
    sections = [
        *([Section("No verdict", text=refused)] if refused else []),
        Section("Choice", text="\n\n".join(_conclusion(result))),
        Section("Candidates", headers=HEADERS, rows=_rows(result), figures=figures),
        Section("Arguments", code=json.dumps(identity, indent=2, default=str)),
    ]
    write_report(folder, f"Masks under a latency budget, {result['task']}", sections)
    # last: whoever sees it may rely on all the rest
    write_json(folder / RESULT, result)


def summarize_selection(result: dict[str, Any], folder: Path) -> str:
    """The conclusion, the table and the written paths, as the command prints them at its end."""
    paths = [folder / RESULT, *sorted((folder / "figures").glob("*.png")), folder / "report.html"]
    refused = refusal(result, result["task"])
    lines = ["", *([refused] if refused else []), *_conclusion(result), "", format_table(_rows(result), HEADERS), ""]
    return "\n".join([*lines, "written:", *(f"  {path}" for path in paths)])


def _rows(result: dict[str, Any]) -> list[list[Any]]:
    rows, refused = [], refusal(result) is not None
    for entry in result["candidates"]:
        times, chosen_by, expected = entry["latency_ms"], entry["chosen_by"], entry["expected"]
        shown = expected or chosen_by
        rows.append(
            [
                entry["num_active_blocks"],
                ", ".join(entry["policies"]),
                None if times["P50"] is None else f"{times['P50']:.2f}",
                f"{times['bound']:.2f}",
                _quality(chosen_by, result),
                _quality(expected, result),
                f"[{shown['quality_ci'][0]:.3f}, {shown['quality_ci'][1]:.3f}]" if shown else None,
                WITHHELD if refused else "yes" if entry["mask_id"] in result["frontier"] else "",
            ]
        )
    return rows


def _quality(measured: dict[str, Any] | None, result: dict[str, Any]) -> str | None:
    if measured is None:
        return None
    sign = mark(measured["quality"], measured.get("num_distinct_answers"), result.get("baseline"))
    return f"{measured['quality']:.3f}{sign}"


def _drop_limits(measured: dict[str, Any]) -> list[float]:
    """Of the drop: the simultaneous interval, of a choice among several masks; files of earlier versions have none."""
    return measured.get("drop_simultaneous_ci") or measured["drop_ci"]


def _conclusion(result: dict[str, Any]) -> list[str]:
    share = result["share_within_budget"]
    lines = [
        f"Requests of batch size 1 with {result['new_tokens']} new tokens on {result['device']}; times in ms. "
        f"'budget from' is the smallest budget that {share:.0%} of the requests stay within (upper 95% bound of the "
        f"percentile) with {result['margin']:.0%} of it kept free."
    ]
    few = [entry["latency_ms"]["num_requests"] for entry in result["candidates"]]
    if any(few):
        lines.append(f"Times rest on {min(filter(None, few))} requests under each mask that was timed.")
    # a 95% bound of that percentile takes so many requests, see `percentile_bound`
    enough = math.ceil(math.log(0.05) / math.log(share))
    few = [count for count in few if 0 < count < enough]
    if few:
        lines.append(
            f"From {min(few)} requests it is their largest time, which is no 95% bound: that takes {enough} requests."
        )
    if result["line"]:
        line = result["line"]
        fit = "" if line["r2"] is None else f" (R squared {line['r2']:.3f})"
        lines.append(f"It is {line['intercept']:.2f} + {line['slope']:.2f} per block{fit}.")
    if result["frontier"]:
        lines.append(f"{describe_constant(result)} {LEGEND}".strip())
    selected = result["selected"]
    if selected is None and result["budget_ms"] is not None:
        return [*lines, "No mask is recommended."]
    if selected is None:
        return [*lines, "No --budget_ms was given, so no mask is chosen: see the frontier."]
    again = selected["measured_again"]
    blocks = " ".join(map(str, selected["active_block_indices"]))
    lines.append(
        f"Budget {result['budget_ms']:g} ms: {selected['num_active_blocks']} of {result['num_blocks']} blocks "
        f"({blocks}). Measured again on {again['num_requests']} other requests: "
        f"{again['share_within_budget']:.1%} within the budget, P50 {again['P50']:.2f}, P95 {again['P95']:.2f} "
        f"(at most {again['bound']:.2f})."
        + (f" {len(result['rejected'])} better choices took longer when measured again." if result["rejected"] else "")
    )
    shown = selected["expected"] or selected["chosen_by"]
    if shown:
        (low, high), (least, most) = shown["quality_ci"], _drop_limits(shown)
        where = (
            "on the validation split, which the choice did not see"
            if selected["expected"]
            else "on the very questions that the choice looked at, so a little too good"
        )
        lines.append(
            f"Expected {result['metric']} {shown['quality']:.3f} [{low:.3f}, {high:.3f}], drop from the full model "
            f"{shown['drop']:+.3f} [{least:+.3f}, {most:+.3f}], {where}; drops have {SIMULTANEOUS}."
        )
    else:
        lines.append(
            f"No quality was measured: the depth is estimated from the line; budget over full time would have promised "
            f"{result['depth_by_plain_ratio']} blocks."
        )
    by_id = {entry["mask_id"]: entry for entry in result["candidates"]}
    for complexity, mask in result["requests"].items():
        indices = " ".join(map(str, by_id[mask]["active_block_indices"]))
        kept = _drop_limits(by_id[mask]["chosen_by"])[1] <= TOLERANCES[complexity]
        why = "" if kept else " (the best: no mask surely loses so little)"
        lines.append(
            f"A {complexity} request (drop up to {TOLERANCES[complexity]:g}) within this budget: blocks {indices}{why}."
        )
    return lines
