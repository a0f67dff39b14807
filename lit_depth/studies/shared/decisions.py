"""From scores to decisions: which blocks would be skipped, how firmly, and what another task would have chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_depth.functional.statistics import Floats, Interval, Stability, best_of, least, transfer_regret
from lit_depth.studies.shared.block_ranks import drops
from lit_depth.studies.shared.scores import Scores, interval_entry

# probability that two fresh samples agree, from which a decision counts as settled
SETTLED = 0.9
# of the measured blocks, how many a decision skips
_SHARE = 4


def count_to_skip(num_units: int) -> int:
    """A quarter of the units, which is what a decision by importance skips.

    >>> count_to_skip(16), count_to_skip(3)
    (4, 1)
    """
    return max(1, num_units // _SHARE)


def decide_blocks(scores: Scores, units: Sequence[int], confidence: float) -> dict[str, Any]:
    """The decision to skip the least important quarter of the units, see `_entry`; units by index in the mask."""
    units = sorted(units, reverse=True)  # of equally important ones the higher index goes first, as in `top_k`
    losses, count = drops(scores, units, "quality"), count_to_skip(len(units))
    found = scores.stability(losses, least(count))
    masks = [scores.full_id[:unit] + "0" + scores.full_id[unit + 1 :] for unit in units]
    return _entry("least important", units, found, scores) | {"best": _best(scores, masks, losses, confidence)}


def decide_mask(scores: Scores, ids: Sequence[str], confidence: float) -> dict[str, Any] | None:
    """The decision for the best of some masks; None where there are not two of them."""
    names = [name for name in dict.fromkeys(ids) if name != scores.full_id]
    if len(names) < 2:
        return None
    skips = np.array([[bit == "0" for bit in name] for name in names])
    losses = scores.rows([scores.full_id]) - scores.rows(names)
    found = scores.stability(-losses, best_of(skips))
    entry = _entry("best mask", range(len(names[0])), found, scores)
    return entry | {"best": _best(scores, names, losses, confidence)}


def _entry(rule: str, units: Sequence[int], found: Stability, scores: Scores) -> dict[str, Any]:
    """What results hold of a decision.

    ``skipped`` are units; ``inclusion`` is the probability, by unit, that a fresh sample of the same size skips it,
    ``repeated`` that it skips exactly the same, ``agreement`` that two such samples skip the same as each other, and
    ``samples_needed`` how many samples take that to `SETTLED`, None if 64 times as many do not.
    """
    number = len(scores.images)
    return {
        "rule": rule,
        "skipped": sorted(unit for unit, chosen in zip(units, found.chosen) if chosen),
        "inclusion": {str(unit): round(float(each), 4) for unit, each in sorted(zip(units, found.inclusion))},
        "repeated": found.repeated,
        "agreement": found.agreement,
        "samples_needed": None if found.times is None else round(found.times * number),
        "num_samples": number,
    }


def _best(scores: Scores, names: Sequence[str], losses: Floats, confidence: float) -> dict[str, Any]:
    """The mask of the smallest drop: its drop as it looks where it was chosen, and corrected for the choice."""
    found = scores.winner(-losses, confidence)
    as_chosen, corrected = (Interval(-each[0], -each[2], -each[1]) for each in (found.naive, found.corrected))
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
        others = [name for name in decisions if name != paid]
        count = len(decisions[paid])
        if not others:
            continue
        regrets = [
            transfer_regret(values, np.isin(np.arange(len(values)), decisions[name]), least(count), scores[paid].images)
            for name in others
        ]
        # two sums of so many drops, each of two scores
        found = scores[paid].compare(np.stack(regrets), confidence, terms=2 * count)
        for name, row in zip(others, found):
            together = [row.simultaneous.low, row.simultaneous.high]
            entries.append(
                {"chosen": name, "paid": paid, **interval_entry(row.interval, "regret")}
                | {"regret_simultaneous_ci": together, "p_holm": row.p_holm}
                | {"num_shared": len(set(decisions[name]) & set(decisions[paid])), "num_skipped": count}
            )
    return entries
