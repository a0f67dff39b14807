"""Which masks a few samples rule out before ``lit-depth select`` measures the others on all of them."""

from collections.abc import Sequence

import numpy as np

from lit_depth.functional.masks import MaskSet
from lit_depth.functional.statistics import holm, sign_flip_tests
from lit_depth.studies.shared.evaluate import sweep_samples
from lit_depth.studies.shared.mask_grid import PlannedMask
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.scores import Scores

NUM_SAMPLES = 64
# a split with fewer times as many samples is measured at once
_LEAST_SHARE = 3


def screen(run: Run, plan: Sequence[PlannedMask], confidence: float) -> list[PlannedMask]:
    """The planned masks without those that `surely_beaten` names on the first samples of the calibration split.

    All of them where the split is small, or scores have no known range.
    """
    if len(run.datamodule.eval_dataset("calibration")) < _LEAST_SHARE * NUM_SAMPLES:
        return list(plan)
    task = run.datamodule.task
    masks = [*MaskSet.full(run.model.num_units), *(planned.mask for planned in plan)]
    # answers of these samples are given again with those of all others: a batch is answered as one
    records, text = run.folder / "records" / task.name / "screening", f"screening, {task.name}, calibration split"
    sweep = sweep_samples(run, "calibration", masks, records, text, range(NUM_SAMPLES))
    assert sweep.records is not None
    scores = Scores.from_records(sweep.records, sweep.metric.max_score)
    if not scores.is_bounded or len(set(scores.images)) < 2:
        return list(plan)
    beaten = surely_beaten(scores, confidence)
    return [planned for planned in plan if planned.id not in beaten]


def surely_beaten(scores: Scores, confidence: float) -> set[str]:
    """Masks that are surely worse than one of at most as many blocks: no budget would choose them.

    Every mask is compared with every other of at most as many blocks, by sign flips of whole images. All comparisons
    are one family (Holm), so that with the given confidence not one mask is ruled out wrongly. The full model stays.
    """
    counts = [mask.count("1") for mask in scores.mask_ids]
    pairs = [
        (mask, other)
        for mask in range(len(counts))
        for other in range(len(counts))
        # of two alike in blocks each pair is tested once, two-sided
        if counts[other] < counts[mask] or (counts[other] == counts[mask] and other < mask)
    ]
    if not pairs:
        return set()
    gains = np.array([scores.quality[other] - scores.quality[mask] for mask, other in pairs])
    p_values = holm(sign_flip_tests(gains, scores.images))
    beaten: set[str] = set()
    for (mask, other), gain, p_value in zip(pairs, gains.mean(axis=1), p_values):
        if p_value > 1 - confidence:
            continue
        if gain > 0:
            beaten.add(scores.mask_ids[mask])
        elif counts[mask] == counts[other]:
            beaten.add(scores.mask_ids[other])
    return beaten - {scores.full_id}
