"""Would a fresh sample have chosen the same mask under the budget? From scores that the choice has looked at."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_depth.studies.select.analysis import Option
from lit_depth.studies.select.arguments import SelectArguments
from lit_depth.studies.select.measurements import BySample
from lit_depth.studies.shared.decisions import decide_masks

NOT_MEASURED = "no quality was measured"
BY_INTERVAL = "with --complexity the choice is by an interval and by time"
NO_SAMPLES = "the comparison's file has no scores of single samples"


def decide(
    result: Mapping[str, Any], options: Sequence[Option], scores: BySample | None, arguments: SelectArguments
) -> dict[str, Any]:
    """The decision of the budget, and the one for each number of active blocks.

    Args:
        result: Holds the ``candidates``, what was ``selected`` and ``rejected``; of a comparison also its decisions.
        options: All masks.
        scores: Of these masks, where they were measured now.
        arguments: The budget, and what the choice goes by.

    Returns:
        As `lit_depth.studies.shared.decisions.decide_masks`.
    """
    asked = f"within {arguments.budget_ms:g} ms" if result["selected"] else None
    if scores is None:
        reason = NOT_MEASURED if arguments.estimate_depth else NO_SAMPLES
        sizes = {key: result[key] for key in ("decisions", "undecided") if key in result}
        sizes = sizes or {"decisions": [], "undecided": {"each number of blocks": reason}}
        return sizes | {"undecided": sizes["undecided"] | ({asked: reason} if asked else {})}
    groups: dict[str, list[str]] = {}
    for option in sorted(options, key=lambda option: option.mask_id.count("1")):
        if (count := option.mask_id.count("1")) < len(option.mask_id):
            groups.setdefault(f"{count} block{'s' if count > 1 else ''}", []).append(option.mask_id)
    if asked and arguments.complexity is None:
        groups = {asked: affordable(result, options), **groups}
    decided = decide_masks(groups, scores.seen, arguments.confidence, scores.unseen)
    if asked and arguments.complexity is not None:
        decided["undecided"][asked] = BY_INTERVAL
    return decided


def affordable(result: Mapping[str, Any], options: Sequence[Option]) -> list[str]:
    """Ids of all masks of the depths that keep the budget, the fastest depth first, as of equal ones it is chosen.

    A depth that was not timed, because a faster one was better, counts as fast as the next deeper one that was: on a
    fresh sample it might be the better one.
    """
    too_slow = {entry["num_active_blocks"] for entry in result["rejected"]}
    bounds = {entry["num_active_blocks"]: entry["latency_ms"]["bound"] for entry in result["candidates"]}
    times: dict[str, float] = {}
    for mask in (option.mask_id for option in options):
        timed = min((count for count in bounds if count >= mask.count("1")), default=None)
        if timed is not None and timed not in too_slow and bounds[timed] <= result["budget_ms"]:
            times[mask] = bounds[timed]
    return sorted(times, key=lambda mask: (times[mask], mask.count("1")))
