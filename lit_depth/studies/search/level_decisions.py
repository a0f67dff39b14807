"""Would a fresh sample have found the same ablations? From scores that the search has; nothing more is evaluated."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_depth.functional import MaskSet, SearchLevel, SearchResult, ablation_masks
from lit_depth.functional.masks import full_id
from lit_depth.functional.search.racing import MaskScores, RankBy
from lit_depth.functional.statistics import Floats, paired_intervals, raced_stability, raced_winner
from lit_depth.studies.search.score_cache import ScoreCache
from lit_depth.studies.shared.decisions import ONE_MASK, describe_best, describe_choice, skipped_by
from lit_depth.studies.shared.scores import Scores, interval_entry

# candidates of a level whose true means are simulated, the best ones
MOST_CANDIDATES = 64
_FEW_CLUSTERS = "calibration samples of one cluster"


def decide_levels(
    found: SearchResult, cache: ScoreCache, reported: Scores, rank_by: RankBy, confidence: float
) -> dict[str, Any]:
    """A decision for each number of removed units, among the candidates of that level, by the score that ranked them.

    Args:
        found: What the search found on the calibration split.
        cache: Scores of its candidates; of those that racing dropped, on the samples that they got.
        reported: Scores of the best of each level on samples that the search did not see.
        rank_by: The score that ranked: drops are in it, from 0 to 1, on both splits.
        confidence: Of the intervals.

    Returns:
        As `lit_depth.studies.shared.decisions.decide_masks`.
    """
    decisions, undecided = [], {}
    for level in found.levels:
        name = f"{len(level.best.removed)} removed"
        entry = _decide(level, cache, reported, rank_by, confidence)
        if isinstance(entry, str):
            undecided[name] = entry
        else:
            decisions.append({"name": name, **entry})
    return {"decisions": decisions, "undecided": undecided}


def _decide(
    level: SearchLevel, cache: ScoreCache, reported: Scores, rank_by: RankBy, confidence: float
) -> dict[str, Any] | str:
    """The decision of one level, or why there is none."""
    # best first: what is equal in both scores on a fresh sample goes by this order
    shown = [ablation.removed for ablation in level.ablations[:MOST_CANDIDATES]]
    names = MaskSet.of(ablation_masks(cache.num_units, shown)).ids
    recorded = cache.recorded([full_id(cache.num_units), *names])
    full, *rows = _ranking(recorded, rank_by)
    known = np.isfinite(full)
    values, images = (np.stack(rows) - full)[:, known], np.array(cache.clusters)[known]
    full, *rows = _ranking(recorded, "reference_logprob")
    second = (np.stack(rows) - full)[:, known]
    is_told = np.array([len(np.unique(images[np.isfinite(row)])) > 1 for row in values])
    if len(shown) < 2:
        return ONE_MASK
    if not is_told[0] or is_told.sum() < 2:
        return _FEW_CLUSTERS
    told = [name for name, is_one in zip(names, is_told) if is_one]
    # as in the search, the reference probability orders equal accuracies, where it was measured
    decides = rank_by == "accuracy" and bool(np.isfinite(second[np.isfinite(values)]).all())
    breaker = second[is_told] if decides else None
    stability = raced_stability(values[is_told], skipped_by(told), 0, images, second=breaker)
    winner = raced_winner(values[is_told], 0, images, confidence)
    return {
        **describe_choice("best mask", range(cache.num_units), stability, int(known.sum())),
        "best": describe_best(winner, told) | _elsewhere(reported, told[0], rank_by, confidence),
        "num_candidates": len(level.ablations),
        "num_dropped_early": sum(each.dropped_on is not None for each in level.ablations),
    }


def _ranking(scores: MaskScores, rank_by: RankBy) -> Floats:
    """What ranks candidates, ``[masks, samples]`` from 0 to 1: accuracy, or the reference probability."""
    accuracy, logprob, _ = scores.as_arrays()
    return accuracy if rank_by == "accuracy" else np.exp(np.minimum(logprob, 0.0))


def _elsewhere(reported: Scores, name: str, rank_by: RankBy, confidence: float) -> dict[str, Any]:
    """The drop of a mask on samples that the search did not see, by the score that ranked it."""
    ids: Sequence[str] = [reported.full_id, name]
    quality, largest = reported.rows(ids), reported.max_scores[0]
    # as in the cache: of a log-probability per token, the geometric mean probability of a token
    accuracy = quality / largest if reported.is_bounded else np.exp(quality)
    full, masked = _ranking(MaskScores(accuracy, reported.rows(ids, "reference_logprob")), rank_by)
    (found,) = paired_intervals([full - masked], reported.images, confidence)
    return interval_entry(found, "reported_drop")
