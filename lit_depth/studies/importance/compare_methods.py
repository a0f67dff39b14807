"""The part of ``lit-depth importance --methods``: do cheaper scores find the blocks that the accuracy drop finds?

Every method is asked for the same blocks on the same samples, and compared with the accuracy drop:

| question | answer |
|---|---|
| same order? | Spearman's correlation, with the interval of `rank_agreement_with` |
| same blocks to skip? | share of the k least important blocks that both name, for every k up to half of the blocks |
| as good masks? | quality on the *validation* split of the masks that keep the best 3/4 and 1/2 of the blocks |
| how expensive? | time of one batch over that of one plain forward of the same batch |

The interval of the correlation covers the noise of the accuracy drop (other images would give another one), not that of
the method's own scores, which count as given. ``reference_logprob_drop`` comes of the very answers that the accuracy
drop comes of and shares a part of its noise: where its correlation rests on few samples, it may look too high.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from lit_depth.data import DepthDataModule
from lit_depth.functional import mask_id, top_k
from lit_depth.functional.importance.methods import METHODS, check_methods, find_method
from lit_depth.functional.statistics import FamilyRow
from lit_depth.functional.statistics.agreement import rank_agreement_with
from lit_depth.module import DepthModule
from lit_depth.results.verdicts import WITHHELD, differs
from lit_depth.studies.importance.measure_proxies import TOGETHER
from lit_depth.studies.shared.block_ranks import drops
from lit_depth.studies.shared.checks import check_all_tokens, check_one_process, check_one_task, check_whole_blocks
from lit_depth.studies.shared.evaluate import evaluate
from lit_depth.studies.shared.importance_scores import describe_samples
from lit_depth.studies.shared.run_folder import Run
from lit_depth.studies.shared.scores import Measure, Scores, family_entry, interval_entry

# method -> measure of `Scores`; the first is what all others are held against
DROPS: dict[str, Measure] = {"accuracy_drop": "quality", "reference_logprob_drop": "reference_logprob"}


def check_asked(
    methods: Sequence[str] | str | None,
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    split: str,
    blocks: Sequence[int],
) -> list[str]:
    """Proxy methods to measure, none for None; refuse what they cannot be compared on.

    Raises:
        ValueError: Unknown methods, sublayers, several tasks or processes, the validation split or one that overlaps
            it, or so many blocks in ``skip`` that the smaller masks cannot keep them.
    """
    if methods is None:
        return []
    # the command line makes a list of a single word
    names = list(METHODS if methods in ("all", ["all"]) else check_methods(methods))
    check_whole_blocks(model, "--methods")
    check_all_tokens(model, "--methods")
    check_one_task(datamodule, "--methods takes one task at a time")
    check_one_process(trainer, "--methods runs in one process")
    if split == "validation":
        raise ValueError("--methods judges masks on the validation split: measure on another one, --split calibration")
    unmeasured, smallest = model.num_blocks - len(blocks), min(mask_sizes(model.num_blocks))
    if unmeasured > smallest:
        raise ValueError(
            f"--methods chooses masks of {smallest} active blocks, which cannot hold the {unmeasured} that --skip names"
        )
    datamodule.check_disjoint(split, "validation")
    return names


def mask_sizes(num_blocks: int) -> list[int]:
    """Numbers of active blocks of the masks that each method chooses.

    >>> mask_sizes(16), mask_sizes(2)
    ([12, 8], [1])
    """
    return list(dict.fromkeys(max(1, num_blocks * share // 4) for share in (3, 2)))


def compare_methods(
    run: Run, proxies: Mapping[str, Any], measured: Scores, blocks: Sequence[int], confidence: float
) -> dict[str, Any]:
    """The result's ``methods`` entry: every method against the accuracy drop, its masks on the validation split.

    Blocks that were not measured stay active in every mask.
    """
    num_blocks = run.model.num_blocks
    sizes = mask_sizes(num_blocks)
    raw = {method: drops(measured, blocks, key).mean(axis=1) for method, key in DROPS.items()}
    raw |= {method: np.array(values)[list(blocks)] for method, values in proxies["scores"].items()}
    directions = {method: "higher" if method in DROPS else find_method(method).direction for method in raw}
    important = {method: -values if directions[method] == "lower" else values for method, values in raw.items()}
    chosen = {
        method: [mask_of(values.tolist(), blocks, num_blocks, size) for size in sizes]
        for method, values in important.items()
    }
    masks = [mask for each in chosen.values() for mask in each]
    validation = evaluate(run, "validation", masks, "masks of every method")
    samples = describe_samples(validation, confidence)
    baseline = samples["baseline"]
    reference = drops(measured, blocks, "quality")
    entries: list[dict[str, Any]] = [
        {
            "method": method,
            "direction": directions[method],
            "scores": dict(zip(map(str, blocks), values.tolist())),
            "ranks": dict(zip(map(str, blocks), ranks_of(important[method].tolist()))),
            **_correlation(important[method], reference, measured.images, method, confidence),
            "overlap": overlaps(important["accuracy_drop"].tolist(), important[method].tolist()),
            "forwards": proxies["forwards"][method],
        }
        for method, values in raw.items()
    ]
    ids = {method: [mask_id(mask) for mask in each] for method, each in chosen.items()}
    for entry, masks_of_method in zip(entries, _describe_masks(ids, sizes, validation.scores, confidence)):
        entry["masks"] = masks_of_method
        if baseline and not baseline["beaten"]:
            for each in masks_of_method:
                each["verdict"] = "same mask" if each["p_holm"] is None else WITHHELD
    return {
        "num_active_blocks": sizes,
        "confidence": confidence,
        "forward_seconds": proxies["forward_seconds"],
        "batch_size": proxies["batch_size"],
        "proxies_together_forwards": proxies["forwards"][TOGETHER],
        "validation": {key: value for key, value in samples.items() if key != "bad_samples"},
        "entries": entries,
    }


def mask_of(scores: Sequence[float], blocks: Sequence[int], num_blocks: int, num_active_blocks: int) -> torch.Tensor:
    """Mask of the most important blocks, those that were not measured among them.

    >>> mask_of([0.1, 0.5, 0.2], blocks=[1, 2, 3], num_blocks=4, num_active_blocks=2).tolist()
    [True, False, True, False]
    """
    score_of = dict(zip(blocks, scores))
    keep = [block_idx for block_idx in range(num_blocks) if block_idx not in score_of]
    return top_k([score_of.get(block_idx, 0.0) for block_idx in range(num_blocks)], num_active_blocks, keep=keep)


def ranks_of(scores: Sequence[float]) -> list[int]:
    """1 = highest; equal scores share the better rank.

    >>> ranks_of([0.5, 2.0, 0.5])
    [2, 1, 2]
    """
    return [1 + sum(other > score for other in scores) for score in scores]


def overlaps(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Share of the k least important blocks that two lists of scores have in common, for k up to half of the blocks.

    Of equally important blocks the later one goes first, as in `top_k`: these are the blocks that its masks skip.

    >>> overlaps([4.0, 3.0, 2.0, 1.0], [2.0, 4.0, 1.0, 3.0])
    {'1': 0.0, '2': 0.5}
    """
    order = [sorted(range(len(scores)), key=lambda index: (scores[index], -index)) for scores in (first, second)]
    return {str(k): len(set(order[0][:k]) & set(order[1][:k])) / k for k in range(1, len(first) // 2 + 1)}


def _correlation(
    important: NDArray[np.float64],
    reference: NDArray[np.float64],
    images: Sequence[str],
    method: str,
    confidence: float,
) -> dict[str, Any]:
    """All null for the accuracy drop itself, and where there is no order or too little to judge it by."""
    nothing: dict[str, Any] = dict.fromkeys(("spearman", "spearman_ci", "p_value"))
    flat = np.ptp(important) == 0 or np.ptp(reference.mean(axis=1)) == 0
    if method == "accuracy_drop" or flat or len(important) < 4 or len(set(images)) < 4:
        return nothing
    found, p_value = rank_agreement_with(important, reference, images, confidence=confidence)
    return {"spearman": found.estimate, "spearman_ci": [found.low, found.high], "p_value": p_value}


def _describe_masks(
    ids: Mapping[str, Sequence[str]], sizes: Sequence[int], scores: Scores, confidence: float
) -> list[list[dict[str, Any]]]:
    """Per method one entry per size: quality with its interval, and the difference to the accuracy drop's mask."""
    baseline = scores.rows(ids["accuracy_drop"])
    masks = {name: values for each in ids.values() for name, values in zip(each, scores.rows(each) - baseline)}
    # a mask that several methods choose is one test, and the accuracy drop's own is none
    names = [name for name in masks if name not in ids["accuracy_drop"]]
    tests = dict(zip(names, scores.compare(np.stack([masks[name] for name in names]), confidence))) if names else {}
    result = []
    for each in ids.values():
        values = scores.rows(each)
        quality = scores.mean_intervals(values, confidence)
        entries: list[dict[str, Any]] = []
        for name, size, interval in zip(each, sizes, quality):
            entry = {"num_active_blocks": size, "mask_id": name, **interval_entry(interval, "quality")}
            entry["num_distinct_answers"] = scores.distinct_answers(name)
            found = tests.get(name)
            p_values = {"p_value": found and found.p_value, "p_holm": found and found.p_holm}
            entry |= family_entry(found, "difference") | p_values | {"verdict": _verdict(found, confidence)}
            entries.append(entry)
        result.append(entries)
    return result


def _verdict(found: FamilyRow | None, confidence: float) -> str:
    """Of a mask against the accuracy drop's of its size."""
    if found is None:
        return "same mask"
    if not differs(found.p_holm, confidence):
        return "tie"
    return "better" if found.interval.estimate > 0 else "worse"
