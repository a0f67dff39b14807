"""A result of ``lit-depth search``, as its report and its figures read it."""

from __future__ import annotations

import itertools
from typing import Any

BASELINE = {"answer": "yes", "quality": 0.6, "difference": 0.3, "difference_ci": [0.2, 0.4], "beaten": True}
BASELINE |= {"quality_ci": [0.5, 0.7], "num_candidates": 4, "split": "calibration"}


def ablation(removed: tuple[int, ...], parents: list[tuple[int, ...]], score: float, dropped: bool = False) -> dict:
    return {"removed": removed, "parents": parents, "score": score, "dropped_on": "accuracy" if dropped else None}


def search_result() -> dict[str, Any]:
    """Four blocks, a beam of two, two levels."""
    singles = [ablation((i,), [()], 0.9 - 0.1 * i, dropped=i == 3) for i in range(4)]
    pairs = [
        ablation(pair, [(i,) for i in pair if i < 2], 0.8 - 0.1 * sum(pair))
        for pair in itertools.combinations(range(4), 2)
        if pair != (2, 3)
    ]
    common = {"settled": True, "evaluations": 100, "saved": 50}
    levels = [
        {"num_removed": 1, "ablations": singles, "beam": [(0,), (1,)], "tied": [(0,)], **common},
        {"num_removed": 2, "ablations": pairs, "beam": [(0, 1), (0, 2)], "tied": [(0, 1), (0, 2)], **common},
    ]
    common = {"quality": 0.8, "drop_ci": [0.0, 0.2], "drop_simultaneous_ci": [-0.1, 0.3], "drop_p_holm": 0.4}
    common |= {"num_distinct_answers": 9}
    alone = dict.fromkeys(f"interaction{part}" for part in ("", "_ci", "_simultaneous_ci", "_p_holm"))
    joint = {"interaction": 0.3, "interaction_ci": [0.2, 0.4], "interaction_simultaneous_ci": [0.1, 0.5]}
    joint |= {"interaction_p_holm": 0.01}
    reported = [
        {"removed": (0,), "found_by": ["search", "greedy"], "drop": 0.1, **common, **alone},
        {"removed": (1,), "found_by": ["beam 2"], "drop": 0.05, **common, **alone},
        {"removed": (0, 1), "found_by": ["greedy"], "drop": 0.15, **common, **joint},
        {"removed": (0, 2), "found_by": ["search"], "drop": 0.12, **common, **joint, "num_distinct_answers": 1},
    ]
    split = {"num_samples": 40, "num_images": 20, "num_bad_samples": 0, "baseline": BASELINE}
    totals = {"evaluations": 800, "saved": 200, "block_forwards": 70, "sequential_block_forwards": 90}
    return {
        "task": "shapes",
        "metric": "ExactMatch",
        "in_training_mixture": False,
        "num_blocks": 4,
        "units": ["0", "1", "2", "3"],
        "beam_width": 2,
        "rank_by": "accuracy",
        "racing": True,
        "epsilon": 0.02,
        "delta": 0.05,
        "exhaustive": False,
        "confidence": 0.95,
        "calibration": {"num_samples": 50, "full": {"score": 0.95}},
        "report": {**split, "full": {"quality": 0.9, "quality_ci": [0.8, 1.0], "num_distinct_answers": 9}},
        "levels": levels,
        "ablations": reported,
        "totals": totals,
    }
