"""From scores of single and paired ablations to interactions, and to what they predict of larger ones."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_depth.functional import MaskSet, ablation_masks
from lit_depth.functional.arguments import check_least
from lit_depth.functional.masks import Granularity
from lit_depth.functional.search.ablations import Removed, free_units
from lit_depth.functional.search.beam import MAX_COMBINATIONS
from lit_depth.functional.search.second_order import (
    SecondOrder,
    best_predicted,
    fit_second_order,
    singles_and_pairs,
)
from lit_depth.functional.statistics import spearman
from lit_depth.module import DepthModule
from lit_depth.studies.shared.block_ranks import MEASURES, describe_blocks
from lit_depth.studies.shared.effort import block_forwards
from lit_depth.studies.shared.prediction_errors import describe_errors, describe_skill
from lit_depth.studies.shared.scores import Measure, Scores, describe_with_full, family_entry

Floats = NDArray[np.float64]
# a pair's score and the full model's, less those of its two units: two differences
_PAIR_TERMS = 2


def check_arguments(units: Sequence[int], num_units: int, num_held_out: int, max_removed: int, seed: int) -> None:
    """Raise ValueError for numbers out of range, or where no pair may be skipped."""
    check_least(0, num_held_out=num_held_out, seed=seed)
    check_least(3, max_blocks_to_remove=max_removed)
    if len(units) < 2 or num_units < 3:
        raise ValueError(
            f"expected a pair to skip and a third that stays, got {len(units)} of {num_units} that may be skipped"
        )
    count = len(units) + math.comb(len(units), 2)
    if count > MAX_COMBINATIONS:
        raise ValueError(
            f"expected at most {MAX_COMBINATIONS:,} singles and pairs, got {count:,} of {len(units)} that may be "
            "skipped; keep more of them active with --skip"
        )


def describe_passes(model: DepthModule, combined: Sequence[Removed], held_out: Sequence[Removed]) -> dict[str, Any]:
    """Masks of the pass, and forwards of a block on one prompt: shared, and of one mask after another."""
    entries = {}
    for name, removed in (("singles_and_pairs", [(), *combined]), ("all", [(), *combined, *held_out])):
        sequential, shared = block_forwards(model, MaskSet.of(ablation_masks(model.num_units, removed)))
        entries[name] = {
            "masks": len(removed),
            "block_forwards": shared,
            "sequential_block_forwards": sequential,
        }
    return entries


def describe(
    scores: Scores,
    units: Sequence[int],
    held_out: Sequence[Removed],
    max_removed: int,
    confidence: float,
    granularity: Granularity = "block",
) -> dict[str, Any]:
    """Single units, pairs, how well these predict the held-out masks, and the masks that they predict to be best.

    All pairs are one family for each measure, their drops another; so are all held-out masks.
    """
    fitted = {
        measure: fit_second_order(units, _rows(scores, singles_and_pairs(units), measure)) for measure in MEASURES
    }
    return {
        "blocks": describe_blocks(scores, units, confidence, granularity),
        "pairs": describe_pairs(scores, fitted, confidence),
        "second_order": describe_prediction(scores, fitted, held_out, max_removed, confidence),
    }


def _rows(scores: Scores, ablations: Sequence[Removed], measure: Measure) -> Floats:
    """Per-sample scores ``[ablations, samples]``."""
    return scores.rows(MaskSet.of(ablation_masks(len(scores.full_id), ablations)).ids, measure)


def describe_pairs(scores: Scores, fitted: dict[Measure, SecondOrder], confidence: float) -> list[dict[str, Any]]:
    """One entry per pair: its drop and its interaction, sample by sample, in quality and reference log-probability.

    Beside them how it agrees with the full model.
    """
    units = fitted["quality"].units
    places = list(itertools.combinations(range(len(units)), 2))
    pairs = [(units[a], units[b]) for a, b in places]
    names = MaskSet.of(ablation_masks(len(scores.full_id), pairs)).ids
    entries: list[dict[str, Any]] = [
        {"removed": list(pair), "num_distinct_answers": scores.distinct_answers(name), "agreement": agreement}
        for pair, name, agreement in zip(
            pairs, names, describe_with_full(scores, [[name] for name in names], confidence)
        )
    ]
    for measure, model in fitted.items():
        values = np.stack([model.interactions[a, b] for a, b in places])
        drops = np.stack([model.drops[a] + model.drops[b] for a, b in places]) + values
        families = (
            scores.compare(drops, confidence, measure),
            scores.compare(values, confidence, measure, _PAIR_TERMS),
        )
        for entry, drop, row in zip(entries, *families):
            entry[measure] = {
                **family_entry(drop, "drop"),
                "drop_p_holm": drop.p_holm,
                **family_entry(row, "interaction"),
                "p_value": row.p_value,
                "p_holm": row.p_holm,
            }
    return entries


def describe_prediction(
    scores: Scores,
    fitted: dict[Measure, SecondOrder],
    held_out: Sequence[Removed],
    max_removed: int,
    confidence: float,
) -> dict[str, Any] | None:
    """Errors on the held-out masks, each beside the error of the sum of single drops, and the best predicted masks.

    None where no mask was held out: a prediction whose error is not known is not told. Nor are the best predicted
    masks of a measure, then None, whose predictions are no closer than a mean (`describe_skill`).
    """
    if not held_out:
        return None
    entries: list[dict[str, Any]] = [{"removed": list(removed)} for removed in held_out]
    found: dict[str, Any] = {"held_out": entries, "errors": {}, "skill": {}, "spearman": {}, "best": {}}
    # a prediction is a weighted sum of scores: (k - 1)^2 differences for k removed units
    terms = [(len(removed) - 1) ** 2 for removed in held_out]
    for measure, model in fitted.items():
        full = scores.rows([scores.full_id], measure)
        measured = full - _rows(scores, held_out, measure)
        predicted = {order: model.predict_drops(held_out, order) for order in (1, 2)}
        family = scores.compare(predicted[2] - measured, confidence, measure, terms)
        for index, (entry, row) in enumerate(zip(entries, family)):
            entry[measure] = {
                "drop": float(measured[index].mean()),
                "additive": float(predicted[1][index].mean()),
                "predicted": float(predicted[2][index].mean()),
                **family_entry(row, "error"),
                "p_holm": row.p_holm,
            }
        told = [{**entry, **entry[measure]} for entry in entries]
        found["errors"][measure], found["skill"][measure] = describe_errors(told), describe_skill(told)
        found["spearman"][measure] = {
            name: _rank_correlation(entries, measure, name) for name in ("additive", "predicted")
        }
        is_useless = found["skill"][measure]["is_useful"] is False
        second = fitted["reference_logprob"] if measure == "quality" else None
        found["best"][measure] = None if is_useless else _best(model, second, len(scores.full_id), max_removed)
    return found


def _rank_correlation(entries: Sequence[dict[str, Any]], measure: Measure, name: str) -> float | None:
    """Spearman's of predicted and measured drops; None where there is no order."""
    columns = [[each[measure][key] for each in entries] for key in (name, "drop")]
    return spearman(columns[0], columns[1])[0].estimate


def _mean(model: SecondOrder) -> SecondOrder:
    """The model of the mean over samples."""
    full, drops, interactions = (each.mean(axis=-1) for each in model[1:])
    return SecondOrder(model.units, full, drops, interactions)


def _best(model: SecondOrder, second: SecondOrder | None, num_units: int, max_removed: int) -> list[dict[str, Any]]:
    """The best predicted mask of each size, with what either order predicts of it.

    Where the first model predicts the same of several, ``second`` decides.
    """
    mean = _mean(model)
    kept = [unit for unit in range(num_units) if unit not in model.units]
    most = min(max_removed, len(free_units(num_units, 1, kept)), num_units - 1)
    rows = []
    for size in range(1, most + 1):
        (removed,) = best_predicted(mean, num_units, size, second=second and _mean(second))
        additive, predicted = (float(mean.predict_drops([removed], order)[0]) for order in (1, 2))
        rows.append({"removed": list(removed), "additive": additive, "predicted": predicted})
    return rows
