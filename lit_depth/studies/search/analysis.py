"""From what a search found, and its scores on the report split, to the content of ``search.json``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lit_depth.functional import Ablation, MaskSet, SearchLevel, SearchResult, ablation_masks
from lit_depth.functional.search.ablations import Removed
from lit_depth.functional.search.pairwise import PairwiseResult
from lit_depth.studies.search.arguments import SearchArguments
from lit_depth.studies.search.finders import Baselines
from lit_depth.studies.shared.prediction_errors import describe_errors, describe_skill
from lit_depth.studies.shared.scores import Scores, describe_with_full, family_entry, interval_entry


def to_report(
    found: SearchResult, baselines: Baselines, num_units: int, arguments: SearchArguments
) -> dict[Removed, list[str]]:
    """Ablations to evaluate on the report split, smaller ones first, and who found each; the full model is ``()``."""
    reported: dict[Removed, list[str]] = {(): ["full"]}
    for level in found.levels:
        for place, removed in enumerate(level.beam[: arguments.beam_width]):
            reported.setdefault(removed, []).append("search" if place == 0 else f"{arguments.strategy} {place + 1}")
    for name, ablations in baselines.items():
        for ablation in ablations:
            if ablation is not None:
                reported.setdefault(ablation.removed, []).append(name.replace("_", " "))
    for unit in set(range(num_units)) - set(arguments.keep):  # what interactions are measured against
        reported.setdefault((unit,), [])
    return dict(sorted(reported.items(), key=lambda item: (len(item[0]), item[0])))


def describe_ablation(ablation: Ablation | None) -> dict[str, Any] | None:
    """An ablation by its scores on the calibration split; None stays None."""
    if ablation is None:
        return None
    entry = ablation._asdict()
    return {key: entry[key] for key in ("removed", "score", "accuracy", "reference_logprob", "num_samples")}


def describe_level(level: SearchLevel, beam_width: int) -> dict[str, Any]:
    """What the search found at one number of removed units."""
    entry = level._asdict()
    return {
        "num_removed": len(level.best.removed),
        "ablations": [ablation._asdict() for ablation in level.ablations],
        # of an exhaustive search, whose beam holds everything, as many as of any other
        "beam": list(level.beam[:beam_width]),
        **{key: entry[key] for key in ("tied", "settled", "evaluations", "saved")},
    }


def describe_pairwise(found: PairwiseResult) -> dict[str, Any]:
    """Predictions of a pairwise search against scores on the calibration split, and errors on the random ablations."""
    held_out, proposed = ([each._asdict() for each in group] for group in (found.held_out, found.proposed))
    errors, skill = describe_errors(held_out), describe_skill(held_out)
    return {"errors": errors, "skill": skill, "held_out": held_out, "proposed": proposed}


def describe_ablations(
    reported: Mapping[Removed, list[str]], scores: Scores, confidence: float
) -> list[dict[str, Any]]:
    """Quality, drop and interaction of every ablation, each difference taken sample by sample.

    All drops are one family, and all interactions another.
    """
    removed = [each for each in reported if each]
    names = MaskSet.of(ablation_masks(len(scores.full_id), removed)).ids
    quality = scores.rows(names)
    drop = scores.rows([scores.full_id]) - quality
    single = {each[0]: row for each, row in zip(removed, drop) if len(each) == 1}
    extra = np.stack([row - sum(single[unit] for unit in each) for each, row in zip(removed, drop)])
    joint = [index for index, each in enumerate(removed) if len(each) > 1]
    # full - each - (a drop per part): as many differences as parts
    terms = [len(removed[index]) for index in joint]
    interactions = dict(zip(joint, scores.compare(extra[joint], confidence, terms=terms))) if joint else {}
    nothing = dict.fromkeys(("interaction", "interaction_ci", "interaction_simultaneous_ci"))
    agreements = describe_with_full(scores, [[name] for name in names], confidence)
    entries = []
    for index, (interval, found) in enumerate(
        zip(scores.mean_intervals(quality, confidence), scores.compare(drop, confidence))
    ):
        name, interaction = names[index], interactions.get(index)
        entries.append(
            {
                "removed": removed[index],
                "mask_id": name,
                "found_by": reported[removed[index]],
                **interval_entry(interval, "quality"),
                "num_distinct_answers": scores.distinct_answers(name),
                **family_entry(found, "drop"),
                "drop_p_holm": found.p_holm,
                "agreement": agreements[index],
                **(family_entry(interaction, "interaction") if interaction else nothing),
                "interaction_p_holm": interaction and interaction.p_holm,
                "reference_logprob": scores.mean_logprob([name]),
            }
        )
    return entries
