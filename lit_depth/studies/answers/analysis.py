"""From answers under masks to their agreement with the full model."""

from collections.abc import Sequence
from typing import Any

from lit_depth.studies.shared.evaluate import Measured
from lit_depth.studies.shared.importance_scores import describe_nouns
from lit_depth.studies.shared.mask_grid import PlannedMask
from lit_depth.studies.shared.readings import describe_readings
from lit_depth.studies.shared.scores import interval_entry


def describe(plan: Sequence[PlannedMask], measured: Measured, confidence: float) -> dict[str, Any]:
    """The result: of every mask the share of answers that are the full model's, with interval, and how many are not."""
    scores, sweep = measured.scores, measured.sweep
    ids = list(dict.fromkeys(planned.id for planned in plan))
    policies = {name: sorted({planned.policy for planned in plan if planned.id == name}) for name in ids}
    agreement = scores.rows(ids)
    intervals = scores.mean_intervals(agreement, confidence)
    return {
        "command": "answers",
        "task": measured.task.name,
        "num_blocks": len(scores.full_id),
        "num_samples": len(scores.images),
        "num_images": len(set(scores.images)),
        "num_bad_samples": len(sweep.bad_samples),
        "bad_samples": sweep.bad_samples,
        "confidence": confidence,
        **describe_nouns(measured.nouns),
        **describe_readings(measured, confidence),
        "full": {"mask_id": scores.full_id, "num_distinct_answers": scores.distinct_answers(scores.full_id)},
        "masks": [
            {
                "mask_id": name,
                "policies": policies[name],
                "num_active_blocks": name.count("1"),
                **interval_entry(interval, "agreement"),
                "num_flips": int((row == 0).sum()),
                "num_distinct_answers": scores.distinct_answers(name),
            }
            for name, row, interval in zip(ids, agreement, intervals)
        ],
    }
