"""What ``lit-depth select`` tells of its result: the choice, its reasons, and the table of candidates."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lit_depth.functional.latency.budget import TOLERANCES
from lit_depth.results.against_full_views import AgainstFull, agreement_sections, flips_figures
from lit_depth.results.flop_shares import FLOPS_NOTE, share_of_full, told_share
from lit_depth.results.measures import cluster_noun, metric_label, readings_note, readings_sections, sample_noun
from lit_depth.results.report import Curves, Report, Section, Table
from lit_depth.results.table import Cell, format_interval
from lit_depth.results.unit_names import ranges
from lit_depth.results.verdicts import (
    LEGEND,
    SIMULTANEOUS,
    WITHHELD,
    describe_constant,
    differs,
    mark,
    refusal,
    verdict_scalars,
)
from lit_depth.studies.select.figures import selection_chart, selection_figure
from lit_depth.studies.select.lossless_views import FIGURE, lossless_figure, lossless_scalars, lossless_section
from lit_depth.studies.shared.decision_views import decision_figures, mask_decision_section, mask_decisions

HEADERS = (
    *("blocks", "policy", "time P50", "budget from", "FLOPs of full", "chosen by", "expected", "interval"),
    "frontier",
)
COLUMNS = ("mask_id", "num_active_blocks", "budget_ms", "quality")

_STEP = "num_active_blocks"
EXPLAIN_DECISIONS = "The best of all masks within the budget, and of each number of blocks."


def report(result: Mapping[str, Any]) -> Report:
    """The report of the content of ``selection.json``; the figure stands in it where quality was measured."""
    figures: dict[str, Callable[[], Any]] = (
        {"quality_vs_budget": partial(selection_figure, result)} if result["frontier"] else {}
    )
    compared, candidates = _against_full(result), list(figures)
    drafts = [lossless_section(result)] if "lossless" in result else []
    if any(section.figures for section in drafts):
        figures[FIGURE] = partial(lossless_figure, result)
    decided, units = mask_decisions(result, refusal(result)), {str(i): str(i) for i in range(result["num_blocks"])}
    figures |= decision_figures(decided, units, [], result["confidence"])
    title = f"Scores that change against the drop, {result['task']}"
    changes = flips_figures(compared, title, result["confidence"], max_score=result.get("max_score"))
    figures |= changes
    refused = refusal(result, result["task"])
    return Report(
        title=f"Masks under a latency budget, {result['task']}",
        headline="\n\n".join([*([refused] if refused else []), *_measured(result)]),
        sections=[
            Section("Choice", "\n\n".join(_choice(result))),
            Section("Candidates", table=Table(HEADERS, _rows(result)), figures=candidates),
            *drafts,
            *mask_decision_section(result, refusal(result), units, EXPLAIN_DECISIONS, list(figures)),
            *agreement_sections(compared, result["confidence"], cluster_noun(result), figures=list(changes)),
            *readings_sections(result, result),
        ],
        kind="selection",
        curves=_curves(result),
        charts={"quality_vs_budget": selection_chart(result)} if result["frontier"] else {},
        figures=figures,
        masks=_masks(result),
        tables={"select/candidates": Table(COLUMNS, [_candidate(entry) for entry in result["candidates"]])},
        scalars={
            **verdict_scalars([(result["task"], "", result)]),
            **_chosen(result),
            **(lossless_scalars(result) if drafts else {}),
        },
        metadata={"device": result["device"]},
    )


def _against_full(result: Mapping[str, Any]) -> list[AgainstFull]:
    """The candidates beside the full model, where their quality was measured; earlier files know nothing of it."""
    measured = [(each, each["expected"] or each["chosen_by"]) for each in result["candidates"]]
    return [
        AgainstFull(
            f"{each['num_active_blocks']} blocks, {' and '.join(each['policies'])}",
            "best mask of each depth",
            found["drop"],
            found["drop_ci"],
            differs(found.get("drop_p_holm"), result["confidence"]),
            found.get("agreement"),
        )
        for each, found in measured
        if found and "0" in each["mask_id"]
    ]


def _masks(result: Mapping[str, Any]) -> dict[str, list[str]]:
    masks: dict[str, list[str]] = {}
    for entry in result["candidates"]:
        for policy in (*entry["policies"], "best mask of each depth", "chosen"):
            masks.setdefault(f"{policy}, {entry['num_active_blocks']}", []).append(entry["mask_id"])
    return masks


def _rows(result: Mapping[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    refused = refusal(result) is not None
    for entry in result["candidates"]:
        times, chosen_by, expected = entry["latency_ms"], entry["chosen_by"], entry["expected"]
        shown = expected or chosen_by
        rows.append(
            [
                entry["num_active_blocks"],
                ", ".join(entry["policies"]),
                None if times["P50"] is None else f"{times['P50']:.2f}",
                f"{times['bound']:.2f}",
                told_share(share_of_full(result.get("flops"), entry["mask_id"])),
                _quality(chosen_by, result),
                _quality(expected, result),
                format_interval(shown["quality_ci"], sign="") if shown else None,
                WITHHELD if refused else "yes" if entry["mask_id"] in result["frontier"] else "",
            ]
        )
    return rows


def _quality(measured: Mapping[str, Any] | None, result: Mapping[str, Any]) -> str | None:
    if measured is None:
        return None
    sign = mark(measured["quality"], measured.get("num_distinct_answers"), result.get("baseline"))
    return f"{measured['quality']:.3f}{sign}"


def _drop_limits(measured: Mapping[str, Any]) -> list[float]:
    """Of the drop: the simultaneous interval, of a choice among several masks; files of earlier versions have none."""
    return measured.get("drop_simultaneous_ci") or measured["drop_ci"]


def _measured(result: Mapping[str, Any]) -> list[str]:
    """What was timed, and what the times rest on; the constant answer."""
    share = result["share_within_budget"]
    lines = [
        f"Requests of batch size 1 with {result['new_tokens']} new tokens on {result['device']}; times in ms. "
        f"'budget from' is the smallest budget that {share:.0%} of the requests stay within (upper 95% bound of the "
        f"percentile) with {result['margin']:.0%} of it kept free."
    ]
    lines += _effort(result.get("timing") or {})
    few = [count for entry in result["candidates"] if (count := entry["latency_ms"]["num_requests"])]
    if few:
        many = f" to {max(few)}" if max(few) > min(few) else ""
        lines.append(f"Times rest on {min(few)}{many} requests under each mask that was timed.")
    # a 95% bound of that percentile takes so many requests, see `percentile_bound`
    enough = math.ceil(math.log(0.05) / math.log(share))
    few = [count for count in few if count < enough]
    if few:
        lines.append(
            f"From {min(few)} requests it is their largest time, which is no 95% bound: that takes {enough} requests."
        )
    if result["line"]:
        line = result["line"]
        fit = "" if line["r2"] is None else f" (R squared {line['r2']:.3f})"
        lines.append(f"'budget from' is {line['intercept']:.2f} + {line['slope']:.2f} per block{fit}.")
    if result.get("flops"):
        lines.append(FLOPS_NOTE)
    measure = readings_note(result["readings"]) if "readings" in result else ""
    constant = [f"{describe_constant(result)}{measure} {LEGEND}".strip()] if result["frontier"] else []
    return [" ".join(lines), *constant]


def _effort(timing: Mapping[str, Any]) -> list[str]:
    """How many requests were timed, and which masks were not; files of earlier versions do not tell."""
    if not timing.get("adaptive"):
        return []
    lines = [f"{timing['num_requests']} requests were timed under {timing['num_masks']} masks."]
    if timing["depths_not_timed"]:
        depths = ranges(timing["depths_not_timed"], ", ")
        lines.append(f"Not timed: the best masks of {depths} blocks, which are no better than a faster one.")
    return lines


def _choice(result: Mapping[str, Any]) -> list[str]:
    """What was chosen, measured again; its quality; what other requests would get."""
    selected = result["selected"]
    if selected is None:
        unasked = "No --budget_ms was given, so no mask is chosen: see the frontier."
        return [unasked if result["budget_ms"] is None else "No mask is recommended."]
    again = selected["measured_again"]
    blocks = " ".join(map(str, selected["active_block_indices"]))
    lines = [
        f"Budget {result['budget_ms']:g} ms: {selected['num_active_blocks']} of {result['num_blocks']} blocks "
        f"({blocks}). Measured again on {again['num_requests']} other requests: "
        f"{again['share_within_budget']:.1%} within the budget, P50 {again['P50']:.2f}, P95 {again['P95']:.2f} "
        f"(at most {again['bound']:.2f})."
        + (f" {len(result['rejected'])} better choices took longer when measured again." if result["rejected"] else ""),
        _expectation(result, selected),
    ]
    by_id = {entry["mask_id"]: entry for entry in result["candidates"]}
    for complexity, mask in result["requests"].items():
        indices = " ".join(map(str, by_id[mask]["active_block_indices"]))
        kept = _drop_limits(by_id[mask]["chosen_by"])[1] <= TOLERANCES[complexity]
        why = "" if kept else " (the best: no mask surely loses so little)"
        lines.append(
            f"A {complexity} request (drop up to {TOLERANCES[complexity]:g}) within this budget: blocks {indices}{why}."
        )
    return lines


def _expectation(result: Mapping[str, Any], selected: Mapping[str, Any]) -> str:
    shown = selected["expected"] or selected["chosen_by"]
    if not shown:
        return (
            "No quality was measured: the depth is estimated from the line; budget over full time would have promised "
            f"{result['depth_by_plain_ratio']} blocks."
        )
    where = (
        "on the validation split, which the choice did not see"
        if selected["expected"]
        else f"on the very {sample_noun(result)}s that the choice looked at, so a little too good"
    )
    return (
        f"Expected {metric_label(result['metric'])} {shown['quality']:.3f} "
        f"{format_interval(shown['quality_ci'], sign='')}, drop from the full model {shown['drop']:+.3f} "
        f"{format_interval(_drop_limits(shown))}, {where}; drops have "
        f"{SIMULTANEOUS}."
    )


def _known_quality(entry: Mapping[str, Any]) -> float | None:
    return (entry["expected"] or entry["chosen_by"] or {}).get("quality")


def _curves(result: Mapping[str, Any]) -> Curves:
    """Budget, quality and the ends of its interval along the number of active blocks, where each is known."""
    rows: dict[int, dict[str, float]] = {}
    for entry in sorted(result["candidates"], key=lambda entry: entry["num_active_blocks"]):
        count, found = entry["num_active_blocks"], entry["expected"] or entry["chosen_by"]
        row = rows.setdefault(count, {_STEP: count, "budget_ms": entry["latency_ms"]["bound"]})
        row |= dict(zip(("quality", "low", "high"), (found["quality"], *found["quality_ci"]))) if found else {}
    return Curves(_STEP, list(rows.values()))


def _candidate(entry: Mapping[str, Any]) -> list[Cell]:
    return [entry["mask_id"], entry["num_active_blocks"], entry["latency_ms"]["bound"], _known_quality(entry)]


def _chosen(result: Mapping[str, Any]) -> dict[str, Any]:
    if (selected := result["selected"]) is None:
        return {}
    return {
        "select/mask_id": selected["mask_id"],
        "select/budget_ms": result["budget_ms"],
        "select/share_within_budget": selected["measured_again"]["share_within_budget"],
        "select/quality": _known_quality(selected),
    }
