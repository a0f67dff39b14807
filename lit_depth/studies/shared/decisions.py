"""From scores to decisions: which blocks would be skipped, how firmly, and what another task would have chosen."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional.statistics import Floats, Interval, Stability, Winner, best_of, least, transfer_regret
from lit_depth.studies.shared.block_ranks import drops
from lit_depth.studies.shared.scores import Scores, interval_entry

# of the measured blocks, how many a decision skips
_SHARE = 4
# why there is no decision
ONE_MASK = "one mask"


def count_to_skip(num_units: int) -> int:
    """A quarter of the units, which is what a decision by importance skips.

    >>> count_to_skip(16), count_to_skip(3)
    (4, 1)
    """
    return max(1, num_units // _SHARE)


def decide_blocks(scores: Scores, units: Sequence[int], confidence: float) -> dict[str, Any]:
    """The decision to skip the least important quarter of the units, see `describe_choice`; units by index."""
    units = sorted(units, reverse=True)  # of equally important ones the higher index goes first, as in `top_k`
    losses, count = drops(scores, units, "quality"), count_to_skip(len(units))
    found = scores.stability(losses, least(count))
    masks = [scores.full_id[:unit] + "0" + scores.full_id[unit + 1 :] for unit in units]
    best = describe_best(scores.winner(-losses, confidence), masks)
    return describe_choice("least important", units, found, len(scores.images)) | {"best": best}


def decide_mask(
    scores: Scores, ids: Sequence[str], confidence: float, reported: Scores | None = None
) -> dict[str, Any] | None:
    """The decision for the best of some masks, of equal ones the first; None where there are not two of them.

    ``reported`` are scores on samples that the choice does not see, of all masks or of those that are worth reporting.
    """
    names = list(dict.fromkeys(ids))
    if len(names) < 2:
        return None
    losses = scores.rows([scores.full_id]) - scores.rows(names)
    found = scores.stability(-losses, best_of(skipped_by(names)))
    best = describe_best(scores.winner(-losses, confidence), names)
    if reported is not None and best["mask_id"] in reported.mask_ids:
        (row,) = reported.compare(reported.rows([reported.full_id]) - reported.rows([best["mask_id"]]), confidence)
        best |= interval_entry(row.interval, "reported_drop")
    return describe_choice("best mask", range(len(names[0])), found, len(scores.images)) | {"best": best}


def decide_masks(
    groups: Mapping[str, Sequence[str]], scores: Scores, confidence: float, reported: Scores | None = None
) -> dict[str, Any]:
    """A decision for each group of masks, by its name, see `decide_mask`.

    Returns:
        ``decisions``, each with its ``name``, and by name why others are ``undecided``.
    """
    told = {name: decide_mask(scores, ids, confidence, reported) for name, ids in groups.items()}
    return {
        "decisions": [{"name": name, **entry} for name, entry in told.items() if entry],
        "undecided": {name: ONE_MASK for name, entry in told.items() if entry is None},
    }


def skipped_by(names: Sequence[str]) -> NDArray[np.bool_]:
    """Which units each mask skips, ``[masks, units]``.

    >>> skipped_by(["10", "11"]).tolist()
    [[False, True], [False, False]]
    """
    return np.array([[bit == "0" for bit in name] for name in names])


def describe_choice(rule: str, units: Sequence[int], found: Stability, num_samples: int) -> dict[str, Any]:
    """What results hold of a decision.

    ``skipped`` are units; ``inclusion`` is the probability, by unit, that a fresh sample of the same size skips it,
    ``repeated`` that it skips exactly the same, ``agreement`` that two such samples skip the same as each other, and
    ``samples_needed`` how many samples take that to 90%, None if 64 times as many do not.
    """
    return {
        "rule": rule,
        "skipped": sorted(unit for unit, chosen in zip(units, found.chosen) if chosen),
        "inclusion": {str(unit): round(float(each), 4) for unit, each in sorted(zip(units, found.inclusion))},
        "repeated": found.repeated,
        "agreement": found.agreement,
        "samples_needed": None if found.times is None else round(found.times * num_samples),
        "num_samples": num_samples,
    }


def describe_best(found: Winner, names: Sequence[str]) -> dict[str, Any]:
    """The mask of the smallest drop: its drop as it looks where it was chosen, and corrected for the choice.

    ``found`` is of differences to the full model, which are drops with the other sign.
    """
    as_chosen, corrected = (
        Interval(0.0 - each[0], 0.0 - each[2], 0.0 - each[1]) for each in (found.naive, found.corrected)
    )
    return {
        "mask_id": names[found.row],
        "num_options": len(names),
        "num_rivals": found.num_rivals,
        **interval_entry(as_chosen, "drop"),
        **interval_entry(corrected, "corrected_drop"),
    }


def pay_for_blocks(scores: Mapping[str, Scores], units: Sequence[int], confidence: float) -> list[dict[str, Any]]:
    """What the least important quarter of the units by each measurement costs on the others, see `pay_elsewhere`."""
    units = sorted(units, reverse=True)  # as in `decide_blocks`
    losses = {name: drops(each, units, "quality") for name, each in scores.items()}
    rule = least(count_to_skip(len(units)))
    chosen = {name: np.flatnonzero(rule(rows.mean(axis=1)[None])[0]).tolist() for name, rows in losses.items()}
    return pay_elsewhere(chosen, losses, scores, confidence)


def pay_elsewhere(
    decisions: Mapping[str, Sequence[int]],
    losses: Mapping[str, Floats],
    scores: Mapping[str, Scores],
    confidence: float,
) -> list[dict[str, Any]]:
    """Transfer regret: what the rows chosen on one task or split (``chosen``) cost on another (``paid``).

    Args:
        decisions: By name, the rows that were chosen there.
        losses: By name, ``[rows, samples]`` drops of the same rows.
        scores: By name, the samples that they come from.
        confidence: Of the intervals, by image; those that are paid on one task are one family.
    """
    entries: list[dict[str, Any]] = []
    for paid, values in losses.items():
        count = len(decisions[paid])
        regrets = {
            name: transfer_regret(values, np.isin(np.arange(len(values)), rows), least(count), scores[paid].images)
            for name, rows in decisions.items()
            if name != paid
        }
        # two sums of so many drops, each of two scores
        for entry in _describe_regrets(paid, regrets, scores[paid], confidence, terms=2 * count):
            shared = set(decisions[entry["chosen"]]) & set(decisions[paid])
            entries.append(entry | {"num_shared": len(shared), "num_skipped": count})
    return entries


def pay_for_masks(
    scores: Mapping[str, Scores], groups: Iterable[Sequence[str]], confidence: float
) -> list[dict[str, Any]]:
    """What the best masks by each task's scores cost on the others: one of each group, the mean over the groups.

    ``num_shared`` of ``num_choices`` groups have the same best mask on both. Groups of one mask are left out.
    """
    choices = [names for ids in groups if len(names := list(dict.fromkeys(ids))) > 1]
    if len(scores) < 2 or not choices:
        return []
    losses = {
        task: [each.rows([each.full_id]) - each.rows(names) for names in choices] for task, each in scores.items()
    }
    chosen = {task: [int(rows.mean(axis=1).argmin()) for rows in groups] for task, groups in losses.items()}
    entries: list[dict[str, Any]] = []
    for paid, tables in losses.items():
        regrets = {
            name: np.mean(
                [
                    transfer_regret(rows, np.arange(len(rows)) == row, least(1), scores[paid].images)
                    for rows, row in zip(tables, chosen[name])
                ],
                axis=0,
            )
            for name in scores
            if name != paid
        }
        for entry in _describe_regrets(paid, regrets, scores[paid], confidence, terms=1):
            same = sum(a == b for a, b in zip(chosen[entry["chosen"]], chosen[paid]))
            entries.append(entry | {"num_shared": same, "num_choices": len(choices)})
    return entries


def _describe_regrets(
    paid: str, regrets: Mapping[str, Floats], scores: Scores, confidence: float, terms: int
) -> list[dict[str, Any]]:
    """Regrets of each sample, by where the choice was made, as one family."""
    if not regrets:
        return []
    return [
        {"chosen": name, "paid": paid, **interval_entry(row.interval, "regret")}
        | {"regret_simultaneous_ci": [row.simultaneous.low, row.simultaneous.high], "p_holm": row.p_holm}
        for name, row in zip(regrets, scores.compare(np.stack(list(regrets.values())), confidence, terms=terms))
    ]
