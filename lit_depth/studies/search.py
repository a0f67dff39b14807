"""``lit-depth search``: which blocks cost least when they are removed together; found on one split, told on another.

With masks of sublayers: which attentions and MLPs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import Trainer
from torch import Tensor

import lit_depth.metrics
from lit_depth.callbacks import MaskSweep
from lit_depth.data import DepthDataModule
from lit_depth.functional import (
    Ablation,
    SearchLevel,
    SearchResult,
    ablation_masks,
    beam_search,
    contiguous_spans,
    exhaustive_search,
    importance_order,
    mask_id,
    score_ablations,
)
from lit_depth.functional.ablations import Removed, free_units
from lit_depth.functional.masking import Granularity
from lit_depth.functional.policies import from_indices
from lit_depth.functional.racing import RankBy
from lit_depth.functional.search import MAX_COMBINATIONS
from lit_depth.module import DepthModule
from lit_depth.results.report import Section, write_report
from lit_depth.results.search_figures import ablation_label, write_search_figures
from lit_depth.results.store import write_json, write_parquet
from lit_depth.results.tables import format_p_value, format_table
from lit_depth.results.units import unit_names
from lit_depth.results.verdicts import LEGEND, SIMULTANEOUS, WITHHELD, describe_constant, mark, refusal
from lit_depth.studies.baseline import describe_baseline
from lit_depth.studies.cells import Cells
from lit_depth.studies.comparison import Scores, family_entry
from lit_depth.studies.importance import units_of
from lit_depth.studies.ranking import describe_full
from lit_depth.studies.run import check_shares, evaluate, log_to, open_run

RESULT = "search.json"
HEADERS = (
    *("removed", "which", "drop", "interval", "p (Holm)"),
    *("interaction", "interval", "p (Holm)", "found by"),
)
LEVEL_HEADERS = ("removed", "looked at", "dropped early", "settled", "evaluations", "saved", "tied with the best")
_ROUND = 64  # samples per round of racing, at first
_MAX_PRINTED = 6


def search(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    *,
    beam_width: int,
    max_blocks_to_remove: int,
    keep: Sequence[int] | None,
    rank_by: RankBy,
    racing: bool,
    epsilon: float,
    delta: float,
    exhaustive: bool,
    baselines: bool,
    confidence: float,
    max_bad_samples: float,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """Search; arguments and result as for `lit_depth.DepthTrainer.search`."""
    granularity: Granularity = model.hparams["granularity"]
    num_units, keep = model.num_units, sorted(keep or ())
    from_indices(model.num_blocks, keep or [0])  # refuse what is no block
    keep = units_of(keep, granularity)
    _check(num_units, max_blocks_to_remove, keep, beam_width, epsilon, delta, exhaustive)
    check_shares(confidence, max_bad_samples)
    _check_task(datamodule)
    datamodule.check_disjoint("calibration", "validation")
    task = datamodule.task
    options = {
        "beam_width": beam_width,
        "max_blocks_to_remove": max_blocks_to_remove,
        "keep": keep,
        "rank_by": rank_by,
        "racing": racing and not exhaustive,
        "epsilon": epsilon,
        "delta": delta,
        "exhaustive": exhaustive,
        "baselines": baselines,
        "confidence": confidence,
    }
    splits = ["calibration", "validation"]
    with open_run(trainer, model, datamodule, splits, options, output_dir, "search", name) as (folder, identity):
        records = folder / "records" / task.name / "calibration"
        cells = Cells(trainer, model, datamodule, "calibration", records, max_bad_samples)
        if not cells.num_samples:
            raise ValueError(f"calibration split of {task.name}: there are no samples to search on")
        found = run_search(cells, num_units, options, datamodule.seed)
        cost = {
            "evaluations": found.evaluations,
            "saved": found.saved,
            "block_forwards": cells.block_forwards,
            "sequential_block_forwards": cells.sequential_block_forwards,
        }
        full, others = _baselines(cells, num_units, found, options, datamodule.seed)
        reported = _to_report(found, others, num_units, keep, beam_width)
        text = f"search, {task.name}, validation split"
        masks = list(ablation_masks(num_units, list(reported)))
        scores, sweep = evaluate(trainer, model, datamodule, "validation", masks, folder, text, max_bad_samples)
        if not trainer.is_global_zero:
            return {}
        result: dict[str, Any] = {
            "command": "search",
            "task": task.name,
            "metric": task.metric,
            "in_training_mixture": task.in_training_mixture,
            "num_blocks": model.num_blocks,
            "units": unit_names(range(num_units), granularity),
            **options,
            "calibration": {
                "num_samples": cells.num_samples - len(cells.bad_samples),
                "num_bad_samples": len(cells.bad_samples),
                "bad_samples": cells.bad_samples,
                "full": full,
            },
            "report": _describe_split(scores, sweep, num_units, confidence),
            "levels": [_level(level, beam_width) for level in found.levels],
            "baselines": others,
            "ablations": _describe_ablations(reported, scores, num_units, confidence),
            "totals": {**cost, "evaluations_with_baselines": cells.evaluations},
        }
        if refusal(result["report"]):
            result["levels"] = [level | {"tied": None, "settled": None} for level in result["levels"]]
        assert sweep.records is not None
        _write(folder, result, identity, sweep.records.assign(task=task.name))
    log_to(trainer, "log_search", result, folder)
    print(_summary(result, folder))
    return result


def _check(
    num_units: int,
    max_removed: int,
    keep: Sequence[int],
    beam_width: int,
    epsilon: float,
    delta: float,
    exhaustive: bool,
) -> None:
    """Refuse before anything is written or evaluated what the search would refuse."""
    if beam_width < 1:
        raise ValueError(f"beam_width must be at least 1, got {beam_width}")
    if not 0 <= epsilon < math.inf or not 0 < delta < 1:
        raise ValueError(f"epsilon must be at least 0 and delta between 0 and 1, got {epsilon} and {delta}")
    try:
        free_units(num_units, max_removed, keep)
    except ValueError as error:
        raise ValueError(f"max_blocks_to_remove, keep: {error}") from error
    count = sum(math.comb(num_units - len(keep), size) for size in range(1, max_removed + 1))
    if exhaustive and count > MAX_COMBINATIONS:
        raise ValueError(
            f"exhaustive takes at most {MAX_COMBINATIONS:,} combinations, got {count:,} (1 to {max_removed} of "
            f"{num_units - len(keep)} units): remove fewer, keep more, or leave it to the beam"
        )


def _check_task(datamodule: DepthDataModule) -> None:
    if len(datamodule.tasks) > 1:
        raise ValueError(f"search takes one task at a time, got {[task.name for task in datamodule.tasks]}")
    metric = datamodule.task.metric
    if getattr(getattr(lit_depth.metrics, metric), "corpus", None) is not None:
        raise ValueError(
            f"search needs a score of each sample by itself; {metric} of {datamodule.task.name} belongs to all samples "
            "together. Give another --data.task"
        )


def run_search(cells: Cells, num_units: int, options: dict[str, Any], seed: int) -> SearchResult:
    """The search on the calibration split, as ``options`` (the command's arguments) say."""
    if options["exhaustive"]:
        cells.describe = lambda masks, positions: f"exhaustive search, {len(masks)} combinations"
        return exhaustive_search(cells, num_units, cells.num_samples, **_arguments(cells, options))
    cells.describe = _Progress(cells, num_units - len(options["keep"]), options)
    return _beam_search(cells, num_units, options["beam_width"], options, seed)


def _beam_search(cells: Cells, num_units: int, width: int, options: dict[str, Any], seed: int) -> SearchResult:
    return beam_search(
        cells,
        num_units,
        cells.num_samples,
        beam_width=width,
        racing=options["racing"],
        epsilon=options["epsilon"],
        batch=_ROUND,
        seed=seed,
        **_arguments(cells, options),
    )


def _arguments(cells: Cells, options: dict[str, Any]) -> dict[str, Any]:
    """What every kind of search is given."""
    same = {key: options[key] for key in ("keep", "rank_by", "delta")}
    return {**same, "max_removed": options["max_blocks_to_remove"], "clusters": cells.clusters}


class _Progress:
    """Where a search is, and how long the rest would take at most: as if no further sample were saved."""

    def __init__(self, cells: Cells, num_free: int, options: dict[str, Any]) -> None:
        self.cells = cells
        self.num_levels = options["max_blocks_to_remove"]
        # of each level, what its candidates cannot exceed
        self.most = [
            min(options["beam_width"] * (num_free - size + 1), math.comb(num_free, size))
            for size in range(1, self.num_levels + 1)
        ]
        self.level = self.round = self.asked = 0

    def __call__(self, masks: Tensor, positions: Sequence[int]) -> str:
        level = int((~masks[0]).sum())
        if level != self.level:
            self.level, self.round, self.asked = level, 0, 0
        self.round += 1
        left = len(masks) * (self.cells.num_samples - self.asked) + sum(self.most[level:]) * self.cells.num_samples
        self.asked += len(positions)
        text = f"level {level} of {self.num_levels}, round {self.round}"
        seconds = self.cells.seconds_per_cell
        return text if seconds is None else f"{text}, at most {_duration(left * seconds)} left"


def _duration(seconds: float) -> str:
    """
    >>> _duration(42.3), _duration(600), _duration(20000)
    ('42 s', '10 min', '5.6 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _baselines(
    cells: Cells, num_units: int, found: SearchResult, options: dict[str, Any], seed: int
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any] | None]]]:
    """The full model on the calibration split, and each baseline's best ablation of every size (None: there is none).

    The order of importance is that of the first level: with racing the mean of a block that was dropped is over fewer
    samples. Of a single block the best span is the search's own choice.
    """
    keep, most = options["keep"], options["max_blocks_to_remove"]
    spans: list[list[Removed]] = []
    for length in range(2, most + 1 if options["baselines"] else 2):
        try:
            spans.append(contiguous_spans(num_units, length, keep=keep))
        except ValueError:  # those that are kept leave no such stretch
            spans.append([])
    asked: list[Removed] = [(), *(span for same_length in spans for span in same_length)]
    cells.describe = lambda masks, positions: f"baselines, {len(masks)} contiguous spans and the full model"
    full, *scored = score_ablations(cells, num_units, cells.num_samples, asked, rank_by=options["rank_by"])
    if not options["baselines"]:
        return _entry(full), {}
    by_removed = {ablation.removed: ablation for ablation in scored}
    best_spans = [
        max((by_removed[span] for span in same_length), key=lambda ablation: ablation.score, default=None)
        for same_length in spans
    ]
    cells.describe = lambda masks, positions: f"baselines, greedy search, {int((~masks[0]).sum())} removed"
    greedy = _beam_search(cells, num_units, 1, options, seed)
    importance = np.full(num_units, np.inf)
    for ablation in found.levels[0].ablations:
        importance[ablation.removed[0]] = -ablation.score
    importance[np.isinf(importance)] = 1.0  # kept: no score is below -1
    cells.describe = lambda masks, positions: "baselines, order of importance"
    ordered = score_ablations(
        cells,
        num_units,
        cells.num_samples,
        importance_order(importance.tolist(), most, keep=keep),
        rank_by=options["rank_by"],
    )
    return _entry(full), {
        "greedy": [_entry(level.best) for level in greedy.levels],
        "importance_order": [_entry(ablation) for ablation in ordered],
        "span": [_entry(found.levels[0].best), *(None if best is None else _entry(best) for best in best_spans)],
    }


def _entry(ablation: Ablation) -> dict[str, Any]:
    entry = ablation._asdict()
    return {key: entry[key] for key in ("removed", "score", "accuracy", "reference_logprob", "num_samples")}


def _level(level: SearchLevel, beam_width: int) -> dict[str, Any]:
    entry = level._asdict()
    return {
        "num_removed": len(level.best.removed),
        "ablations": [ablation._asdict() for ablation in level.ablations],
        # of an exhaustive search, whose beam holds everything, as many as of any other
        "beam": list(level.beam[:beam_width]),
        **{key: entry[key] for key in ("tied", "settled", "evaluations", "saved")},
    }


def _to_report(
    found: SearchResult,
    baselines: dict[str, list[dict[str, Any] | None]],
    num_units: int,
    keep: Sequence[int],
    beam_width: int,
) -> dict[Removed, list[str]]:
    """Ablations to evaluate on the report split, smaller ones first, and who found each; the full model is ``()``."""
    reported: dict[Removed, list[str]] = {(): ["full"]}
    for level in found.levels:
        for place, removed in enumerate(level.beam[:beam_width]):
            reported.setdefault(removed, []).append("search" if place == 0 else f"beam {place + 1}")
    for name, entries in baselines.items():
        for entry in entries:
            if entry is not None:
                reported.setdefault(entry["removed"], []).append(name.replace("_", " "))
    for unit in range(num_units):  # what interactions are measured against
        if unit not in keep:
            reported.setdefault((unit,), [])
    return dict(sorted(reported.items(), key=lambda item: (len(item[0]), item[0])))


def _describe_split(scores: Scores, sweep: MaskSweep, num_units: int, confidence: float) -> dict[str, Any]:
    return {
        "split": "validation",
        "num_samples": len(scores.images),
        "num_images": len(set(scores.images)),
        "num_bad_samples": len(sweep.bad_samples),
        "bad_samples": sweep.bad_samples,
        "full": describe_full(scores, num_units, confidence),
        "baseline": describe_baseline(scores, "1" * num_units, confidence),
    }


def _describe_ablations(
    reported: dict[Removed, list[str]], scores: Scores, num_units: int, confidence: float
) -> list[dict[str, Any]]:
    """Quality, drop and interaction of every ablation, each difference taken sample by sample.

    All drops are one family, and all interactions another.
    """
    removed = [each for each in reported if each]
    names = [mask_id(mask) for mask in ablation_masks(num_units, removed)]
    quality = scores.rows(names)
    drop = scores.rows(["1" * num_units]) - quality
    single = {each[0]: row for each, row in zip(removed, drop) if len(each) == 1}
    extra = np.stack([row - sum(single[unit] for unit in each) for each, row in zip(removed, drop)])
    joint = [index for index, each in enumerate(removed) if len(each) > 1]
    # full - each - (a drop per part): as many differences as parts
    terms = [len(removed[index]) for index in joint]
    interactions = dict(zip(joint, scores.compare(extra[joint], confidence, terms=terms))) if joint else {}
    entries = []
    for index, (interval, found) in enumerate(
        zip(scores.mean_intervals(quality, confidence), scores.compare(drop, confidence))
    ):
        each, name, interaction = removed[index], names[index], interactions.get(index)
        nothing = dict.fromkeys(("interaction", "interaction_ci", "interaction_simultaneous_ci"))
        entries.append(
            {
                "removed": each,
                "mask_id": name,
                "found_by": reported[each],
                "quality": interval.estimate,
                "quality_ci": [interval.low, interval.high],
                "num_distinct_answers": scores.distinct_answers(name),
                **family_entry(found, "drop"),
                "drop_p_holm": found.p_holm,
                **(family_entry(interaction, "interaction") if interaction else nothing),
                "interaction_p_holm": interaction and interaction.p_holm,
                "reference_logprob": scores.mean_logprob([name]),
            }
        )
    return entries


def _write(folder: Path, result: dict[str, Any], identity: dict[str, Any], records: pd.DataFrame) -> None:
    write_parquet(folder / "records.parquet", records)
    figures = write_search_figures(result, folder / "figures")
    refused = _refusals(result)
    sections = [
        *([Section("No verdict", text="\n\n".join(refused))] if refused else []),
        Section("Removed blocks", text=_headline(result), headers=HEADERS, rows=_rows(result), figures=figures),
        Section("Search", text="\n\n".join(_costs(result)), headers=LEVEL_HEADERS, rows=_level_rows(result, None)),
        Section("Arguments", code=json.dumps(identity, indent=2, default=str)),
    ]
    write_report(folder, f"Blocks to remove together, {result['task']}", sections)
    # last: whoever sees it may rely on all the rest
    write_json(folder / RESULT, result)


def _headline(result: dict[str, Any]) -> str:
    calibration, report = result["calibration"], result["report"]
    full = report["full"]
    low, high = full["quality_ci"]
    kind = "Every combination" if result["exhaustive"] else f"A beam of {result['beam_width']}"
    trained = " Released checkpoints were trained on these very questions." if result["in_training_mixture"] else ""
    return (
        f"{kind} on {calibration['num_samples']} calibration samples of {result['task']}, ranked by "
        f"{result['rank_by']}; {result['metric']} on {report['num_samples']} validation samples of "
        f"{report['num_images']} images ({report['num_bad_samples']} bad), {result['confidence']:.0%} "
        f"{SIMULTANEOUS} by image, over all drops and over all interactions. Full model {full['quality']:.3f} "
        f"[{low:.3f}, {high:.3f}].{describe_constant(report)} Interaction: the drop beyond the sum of the drops of its "
        f"parts alone.{trained} {LEGEND}"
    )


def _refusals(result: dict[str, Any]) -> list[str]:
    reason = refusal(result["report"], result["task"])
    return [reason] if reason else []


def _rows(result: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for entry in result["ablations"]:
        if entry["found_by"]:
            drop, *rest = _cells(entry, "drop")
            sign = mark(entry["quality"], entry["num_distinct_answers"], result["report"]["baseline"])
            label, found_by = ablation_label(entry["removed"], result["units"]), ", ".join(entry["found_by"])
            rows.append([len(entry["removed"]), label, f"{drop}{sign}", *rest, *_cells(entry, "interaction"), found_by])
    return rows


def _cells(entry: dict[str, Any], key: str) -> list[str | None]:
    """A difference, its simultaneous interval, and the p-value that goes with it."""
    if entry[key] is None:
        return [None] * 3
    low, high = entry[f"{key}_simultaneous_ci"]
    return [f"{entry[key]:+.3f}", f"[{low:+.3f}, {high:+.3f}]", format_p_value(entry[f"{key}_p_holm"])]


def _level_rows(result: dict[str, Any], most: int | None = _MAX_PRINTED) -> list[list[Any]]:
    rows, refused = [], refusal(result["report"]) is not None
    for level in result["levels"]:
        dropped = sum(ablation["dropped_on"] is not None for ablation in level["ablations"])
        tied = [ablation_label(removed, result["units"]) for removed in (level["tied"] or ())[1:]]
        shown = ", ".join(tied[:most]) + (f" and {len(tied) - most} more" if most and len(tied) > most else "")
        rows.append(
            [
                level["num_removed"],
                len(level["ablations"]),
                dropped,
                WITHHELD if refused else "yes" if level["settled"] else "no",
                level["evaluations"],
                level["saved"],
                WITHHELD if refused else shown or "none",
            ]
        )
    return rows


def _costs(result: dict[str, Any]) -> list[str]:
    totals = result["totals"]
    asked, saved = totals["evaluations"], totals["saved"]
    how = f"racing saved {saved} ({saved / (asked + saved):.0%})" if result["racing"] else "no racing"
    return [
        f"{asked} evaluations (mask and sample) on the calibration split, {how}; {totals['block_forwards']} block "
        f"forwards on a prompt, {totals['sequential_block_forwards']} without sharing. Tied with the best: not proven "
        f"worse than another ablation of that size; with {1 - result['delta']:.0%} confidence for all sizes together, "
        "the truly best of those looked at is among them. Dropped early: would hardly have ended as the best, by more "
        f"than {result['epsilon']:g}."
    ]


def _summary(result: dict[str, Any], folder: Path) -> str:
    paths = [folder / RESULT, *sorted((folder / "figures").glob("*.png")), folder / "report.html"]
    lines = ["", *_refusals(result), _headline(result), "", format_table(_rows(result), HEADERS), ""]
    lines += [*_costs(result), "", format_table(_level_rows(result), LEVEL_HEADERS), ""]
    return "\n".join([*lines, "written:", *(f"  {path}" for path in paths)])
