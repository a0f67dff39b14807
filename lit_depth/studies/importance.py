"""``lit-depth importance``: what skipping each single block costs, with intervals and ranks that admit ties."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Trainer

from lit_depth.callbacks import MaskSweep
from lit_depth.data import DepthDataModule
from lit_depth.functional import leave_one_out
from lit_depth.functional.masking import Granularity
from lit_depth.module import DepthModule
from lit_depth.results.importance_figures import write_importance_figures
from lit_depth.results.reading import read_object
from lit_depth.results.report import Section, write_report
from lit_depth.results.store import write_json, write_parquet
from lit_depth.results.tables import format_p_value, format_table
from lit_depth.results.units import unit_name, units_noun
from lit_depth.results.verdicts import LEGEND, SIMULTANEOUS, WITHHELD, describe_constant, mark, refusal
from lit_depth.studies.answers import list_counts
from lit_depth.studies.baseline import describe_baseline
from lit_depth.studies.comparison import Scores
from lit_depth.studies.identity import check_same_model
from lit_depth.studies.methods import (
    check_asked,
    compare_methods,
    method_lines,
    method_sections,
    refusal_of_methods,
)
from lit_depth.studies.proxies import measure_proxies
from lit_depth.studies.ranking import MEASURES, describe_agreement, describe_blocks, describe_full, tied_at_cut
from lit_depth.studies.run import check_shares, evaluate, log_to, open_run

RESULT = "importance.json"
COMPARISON = "m5_mask_strategy_comparison.json"
SCORES = "layer_importance_scores.json"
# keys of a comparison's ``importance`` entry, and what they hold of each block
IMPORTANCE_KEYS = {
    "scores": "drop",
    "intervals": "drop_ci",
    "simultaneous_intervals": "drop_simultaneous_ci",
    "p_holm": "p_holm",
    "tied_with": "tied_with",
}
# rank correlation from which two orders of the blocks count as the same
THRESHOLD = 0.9
HEADERS = (
    *("drop", "interval", "p (Holm)", "rank", "may be"),
    *("log-prob drop", "interval", "p (Holm)", "rank", "may be"),
)
AGREEMENT = (
    "Rank correlation (Spearman) between two orders of the blocks as measured; the interval of the correlation that "
    "measurements without noise would show; the p-value of no correlation. 'samples' would put the interval above "
    "{threshold:g}, if the two agree as closely as these samples allow."
)
AGREEMENT_HEADERS = ("a", "b", "drop in", "spearman", "noise-free", "p", "agreement", "samples")


def importance(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    *,
    skip: Sequence[int] | None,
    split: str,
    num_samples: int | None,
    methods: Sequence[str] | str | None,
    confidence: float,
    max_bad_samples: float,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """Measure the importance; arguments and result as for `lit_depth.DepthTrainer.importance`."""
    granularity: Granularity = model.hparams["granularity"]
    blocks = check_blocks(model.num_blocks, skip or ())
    units = units_of(blocks, granularity)
    check_shares(confidence, max_bad_samples)
    if num_samples is not None:
        datamodule.take(split, num_samples)
    asked = check_asked(methods, trainer, model, datamodule, split, blocks)
    splits = [split, "validation"] if asked else [split]
    arguments = {"blocks": blocks, "split": split, "confidence": confidence} | ({"methods": asked} if asked else {})
    tasks = []
    with open_run(trainer, model, datamodule, splits, arguments, output_dir, "importance", name) as (folder, identity):
        # first, because it is short and may refuse the model
        proxies = measure_proxies(trainer, model, datamodule, split, asked, blocks, folder) if asked else {}
        for each in datamodule.for_each_task():
            text = f"importance, {each.task.name}, {split} split"
            tasks.append((each, *measure(trainer, model, each, split, units, folder, text, max_bad_samples)))
        if not trainer.is_global_zero:
            return {}
        result: dict[str, Any] = {
            "command": "importance",
            "num_blocks": model.num_blocks,
            "split": split,
            "confidence": confidence,
            "tasks": [task_entry(*task, units, model.num_units, confidence, granularity) for task in tasks],
            **_describe_mean([scores for _, scores, _ in tasks], units, model.num_units, confidence, granularity),
            "agreement": [
                {"a": a.task.name, "b": b.task.name}
                | describe_agreement(first, second, units, model.num_units, THRESHOLD, confidence)
                for (a, first, _), (b, second, _) in itertools.combinations(tasks, 2)
            ],
        }
        withhold_agreement(result["agreement"], result["tasks"])
        if asked:
            result["methods"] = compare_methods(
                trainer, model, datamodule, proxies, tasks[0][1], blocks, folder, confidence, max_bad_samples
            )
        records = [sweep.records.assign(task=each.task.name) for each, _, sweep in tasks if sweep.records is not None]
        _write(folder, result, identity, pd.concat(records, ignore_index=True))
    log_to(trainer, "log_importance", result, folder)
    print(_summary(result, folder))
    return result


def _describe_mean(
    tasks: Sequence[Scores], units: Sequence[int], num_units: int, confidence: float, granularity: Granularity
) -> dict[str, Any]:
    """What is known of the mean over several tasks; of one task it is that task's."""
    if len(tasks) == 1:
        return {"macro": None}
    pooled = Scores.pooled(tasks)
    return {
        "macro": describe_blocks(pooled, units, num_units, confidence, granularity),
        "full": describe_full(pooled, num_units, confidence),
        "baseline": describe_baseline(pooled, "1" * num_units, confidence),
    }


def withhold_agreement(pairs: Sequence[dict[str, Any]], measurements: Sequence[Mapping[str, Any]]) -> None:
    """Take the verdict from every pair of which one side was measured on a task that the model does not do."""
    refused = {entry.get("name", entry["task"]) for entry in measurements if refusal(entry)}
    for pair in pairs:
        if {pair["a"], pair["b"]} & refused:
            for name in MEASURES:
                pair[name]["verdict"] = WITHHELD


def measure(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    split: str,
    units: Sequence[int],
    folder: Path,
    description: str,
    max_bad_samples: float,
) -> tuple[Scores, MaskSweep]:
    """Evaluate the full model and every leave-one-out mask of ``units``; see `lit_depth.studies.run.evaluate`."""
    masks = [torch.ones(model.num_units, dtype=torch.bool), *leave_one_out(model.num_units)[list(units)]]
    return evaluate(trainer, model, datamodule, split, masks, folder, description, max_bad_samples)


def measure_mean(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    folder: Path,
    confidence: float,
    max_bad_samples: float,
) -> tuple[list[float], dict[str, Any]]:
    """Accuracy drop of every block on the calibration split: the scores, and the result's ``importance`` entry.

    Of several tasks it is their mean, so that every task is evaluated under the same masks.
    """
    blocks, found = range(model.num_blocks), []
    for each in datamodule.for_each_task():
        text = f"importance, {each.task.name}, calibration split"
        found.append(measure(trainer, model, each, "calibration", blocks, folder, text, max_bad_samples)[0])
    scores = found[0] if len(found) == 1 else Scores.pooled(found)
    entries = describe_blocks(scores, blocks, model.num_blocks, confidence)
    drop = {str(entry["block"]): entry["quality"] for entry in entries}
    return [each["drop"] for each in drop.values()], {
        "source": "accuracy drop on the calibration split" + ("" if len(found) == 1 else ", mean over tasks"),
        "num_samples": len(scores.images),
        **{key: {block: each[name] for block, each in drop.items()} for key, name in IMPORTANCE_KEYS.items()},
    }


def read_importance(path: str, model: DepthModule, datamodule: DepthDataModule) -> dict[str, Any]:
    """The content of a ``{"0": 0.6, ...}`` file; refuse one of another model, or of what this run reports on."""
    try:
        scores = read_object(path)
    except ValueError as error:
        raise ValueError(
            f'importance: expected a JSON file like {{"0": 0.6, "1": 0.03, ...}}: {path}: {error}'
        ) from error
    # what `lit-depth importance` writes beside it
    details = Path(path).with_name(RESULT)
    if details.is_file():
        try:
            run = read_object(details)
            split, measured = run["split"], {entry["task"] for entry in run["tasks"]}
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no entry {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"importance: {details}, which says what the scores beside it were measured on, is damaged ({reason}): "
                f"measure again, or move {Path(path).name} elsewhere"
            ) from error
        shared = {task.name for task in datamodule.tasks} & measured
        if split == "validation" and shared:
            raise ValueError(
                f"importance: {path} was measured on the validation split of {min(shared)}, which compare reports on: "
                "masks chosen by it would look better than they are. Measure it with --split calibration"
            )
    check_same_model(path, "importance", model, {})
    return scores


def read_ties(path: str) -> dict[int, list[int]] | None:
    """Which blocks of a ``{"0": 0.6, ...}`` file are tied, by the result that stands beside it.

    Returns:
        Of each measured block the blocks that it is tied with; None where the file stands alone, or was changed.
    """
    try:
        scores, folder = read_object(path), Path(path).parent
        if (folder / RESULT).is_file():
            run = read_object(folder / RESULT)
            blocks = run["macro"] or run["tasks"][0]["blocks"]
            found = {str(entry["block"]): entry["quality"]["tied_with"] for entry in blocks}
            measured = _plain_scores(blocks)
        else:
            entry = read_object(folder / COMPARISON)["importance"]
            found, measured = entry["tied_with"], entry["scores"]
        ties = {int(block): [int(other) for other in others] for block, others in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return ties if measured == scores else None


def name_ties(
    masks: Mapping[int, Sequence[int]],
    scores: Sequence[float],
    tied_with: Mapping[int, Sequence[int]],
    keep: Sequence[int],
) -> list[dict[str, Any]]:
    """Where the importance policy decided among blocks that the samples cannot tell apart.

    Args:
        masks: Its active blocks by their number.
        scores: Importance of each block.
        tied_with: Blocks that each block is tied with.
        keep: Blocks that were active whatever their score.

    Returns:
        Entries as `lit_depth.results.schema.Tie`, one for each number of active blocks with ties across the cut.
    """
    free = {b: [other for other in others if other not in keep] for b, others in tied_with.items() if b not in keep}
    found = []
    for count, kept in masks.items():
        blocks = tied_at_cut(scores, free, kept)
        if blocks:
            found.append({"num_active_blocks": count, "blocks": blocks, "kept": [b for b in blocks if b in set(kept)]})
    return found


def tie_sentences(entry: Mapping[str, Any]) -> list[str]:
    """What the importance policy decided by chance: one sentence per number of active blocks.

    >>> tie_sentences({"ties": [{"num_active_blocks": 8, "blocks": [3, 5, 7], "kept": [5, 7]}]})
    ['At 8 blocks the order of blocks 3, 5 and 7 is noise; 5 and 7 were kept.']
    """
    if entry.get("ties") is None:
        return [f"Which blocks are tied in importance is not known: {entry['source']} stands alone, without tests."]
    sentences = []
    for tie in entry["ties"]:
        count, were = tie["num_active_blocks"], "were" if len(tie["kept"]) > 1 else "was"
        sentences.append(
            f"At {count} block{'s' if count > 1 else ''} the order of blocks {list_counts(tie['blocks'])} is noise; "
            f"{list_counts(tie['kept'])} {were} kept."
        )
    return sentences


def to_importance(scores: Mapping[str, float], num_blocks: int, source: str, keep: Sequence[int] = ()) -> list[float]:
    """Scores of a ``{"0": 0.6, ...}`` file as a list, checked.

    Args:
        keep: Blocks that stay active whatever their score; these may be missing, and count as most important.

    >>> to_importance({"1": 0.5, "0": 2}, 2, "file.json")
    [2.0, 0.5]
    >>> to_importance({"1": 0.5}, 2, "file.json", keep=[0])
    [0.5, 0.5]

    Raises:
        ValueError: If a block is missing, unknown, or has no finite number.
    """
    expected = {str(block_idx) for block_idx in range(num_blocks)}
    known = isinstance(scores, Mapping) and bool(scores) and not set(scores) - expected
    missing = sorted(int(b) for b in expected - set(scores) if int(b) not in keep) if known else []
    if not known or missing:
        given = sorted(scores, key=str)[:5] if isinstance(scores, Mapping) else type(scores).__name__
        raise ValueError(
            f"{source}: expected one score for each of the blocks 0..{num_blocks - 1}, got {given}"
            + (f"; without one, give --keep for blocks {missing}" if missing else "")
        )
    for block_idx, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{source}: expected a finite score, got {value!r} for block {block_idx}")
    return [float(scores.get(str(block_idx), max(scores.values()))) for block_idx in range(num_blocks)]


def check_blocks(num_blocks: int, skip: Sequence[int]) -> list[int]:
    """Blocks to measure: all but those in ``skip``."""
    wrong = [block_idx for block_idx in skip if not 0 <= block_idx < num_blocks]
    if wrong:
        raise ValueError(f"skip: expected block indices in 0..{num_blocks - 1}, got {wrong}")
    blocks = [block_idx for block_idx in range(num_blocks) if block_idx not in skip]
    if not blocks or num_blocks < 2:
        raise ValueError(f"there is no block to measure: the model has {num_blocks}, skip names {sorted(set(skip))}")
    return blocks


def units_of(blocks: Sequence[int], granularity: Granularity) -> list[int]:
    """Indices in a mask of what is measured of these blocks.

    >>> units_of([0, 2], "block"), units_of([0, 2], "sublayer")
    ([0, 2], [0, 1, 4, 5])
    """
    if granularity == "block":
        return list(blocks)
    return [2 * block_idx + half for block_idx in blocks for half in (0, 1)]


def task_entry(
    datamodule: DepthDataModule,
    scores: Scores,
    sweep: MaskSweep,
    units: Sequence[int],
    num_units: int,
    confidence: float,
    granularity: Granularity,
) -> dict[str, Any]:
    """What is known of one task: its samples, the full model, every unit; of choices also how many are none."""
    entry = {
        "task": datamodule.task.name,
        "metric": datamodule.task.metric,
        "in_training_mixture": datamodule.task.in_training_mixture,
        "num_samples": len(scores.images),
        "num_images": len(set(scores.images)),
        "num_bad_samples": len(sweep.bad_samples),
        "bad_samples": sweep.bad_samples,
        "full": describe_full(scores, num_units, confidence),
        "baseline": describe_baseline(scores, "1" * num_units, confidence),
        "blocks": describe_blocks(scores, units, num_units, confidence, granularity),
    }
    return entry | ({"parse_failed": sweep.parse_failed} if sweep.parse_failed else {})


def _plain_scores(blocks: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {str(unit_name(entry, ".")): entry["quality"]["drop"] for entry in blocks}


def _write(folder: Path, result: dict[str, Any], arguments: dict[str, Any], records: pd.DataFrame) -> None:
    figures = write_importance_figures(result, folder / "figures")
    write_parquet(folder / "records.parquet", records)
    refused = refusals(result)
    sections = [Section("No verdict", text="\n\n".join(refused))] if refused else []
    sections.append(Section("Figures", figures=figures))
    for task in result["tasks"]:
        text = f"{headline(task, result)}\n\n{LEGEND}"
        sections.append(Section(f"{task['task']}", text=text, headers=_headers(task), rows=_rows(task)))
        if result["macro"]:
            write_json(folder / f"layer_importance_scores_{task['task']}.json", _plain_scores(task["blocks"]))
    if result["macro"]:
        mean = _mean(result)
        sections.append(
            Section("Mean over tasks", text=describe_constant(mean).strip(), headers=_headers(mean), rows=_rows(mean))
        )
        rows, text = agreement_rows(result["agreement"]), AGREEMENT.format(threshold=THRESHOLD)
        sections.append(Section("Agreement between tasks", text=text, headers=AGREEMENT_HEADERS, rows=rows))
    if "methods" in result:
        sections += method_sections(result["methods"])
    sections.append(Section("Arguments", code=json.dumps(arguments, indent=2, default=str)))
    write_report(folder, "Importance of transformer blocks", sections)
    write_json(folder / SCORES, _plain_scores(result["macro"] or result["tasks"][0]["blocks"]))
    # last: whoever sees it may rely on all the rest
    write_json(folder / RESULT, result)


def _mean(result: Mapping[str, Any]) -> dict[str, Any]:
    """The mean over tasks as if it were one."""
    metric = " / ".join(dict.fromkeys(task["metric"] for task in result["tasks"]))
    keys = {key: result[key] for key in ("full", "baseline")}
    return {"task": "the mean over tasks", "metric": metric, "blocks": result["macro"], **keys}


def refusals(result: Mapping[str, Any]) -> list[str]:
    """Why there are no findings, on each task and on their mean."""
    each = [*result["tasks"], *([_mean(result)] if result["macro"] else [])]
    reasons = [refusal(entry, entry["task"]) for entry in each]
    reasons += [refusal_of_methods(result["methods"])] if "methods" in result else []
    return [reason for reason in reasons if reason]


def _headers(task: Mapping[str, Any]) -> tuple[str, ...]:
    return (units_noun(task["blocks"]), *HEADERS)


def _rows(task: Mapping[str, Any]) -> list[list[Any]]:
    """One row per block; where the model does not do the task, ranks would be no findings and are left out."""
    rows, refused = [], refusal(task) is not None
    for entry in task["blocks"]:
        quality, logprob = entry["quality"], entry["reference_logprob"]
        sign = mark(task["full"]["quality"] - quality["drop"], entry["num_distinct_answers"], task["baseline"])
        ranks = [[None, None] if refused else [each["rank"], _span(each["rank_ci"])] for each in (quality, logprob)]
        drop, limits = _interval(quality)
        rows.append(
            [
                unit_name(entry),
                f"{drop}{sign}",
                limits,
                format_p_value(quality["p_holm"]),
                *ranks[0],
                *_interval(logprob),
                format_p_value(logprob["p_holm"]),
                *ranks[1],
            ]
        )
    return rows


def agreement_rows(pairs: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """One row per pair of measurements and measure, under :data:`AGREEMENT_HEADERS`."""
    rows = []
    for pair in pairs:
        for measure, label in (("quality", "quality"), ("reference_logprob", "log-prob")):
            entry = pair[measure]
            needed = entry["samples_needed"]
            rows.append(
                [
                    pair["a"],
                    pair["b"],
                    label,
                    entry["spearman"],
                    "[{:+.3f}, {:+.3f}]".format(*entry["ci"]) if entry["ci"] else "not estimable",
                    None if entry["p_value"] is None else format_p_value(entry["p_value"]),
                    entry["verdict"],
                    " / ".join(map(str, needed)) if needed else None,
                ]
            )
    return rows


def _interval(entry: dict[str, Any]) -> tuple[str, str]:
    low, high = entry["drop_simultaneous_ci"]
    return f"{entry['drop']:+.3f}", f"[{low:+.3f}, {high:+.3f}]"


def _span(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]}-{ranks[1]}"


def headline(task: dict[str, Any], result: dict[str, Any]) -> str:
    """What was measured and how well the full model did, in a sentence or two."""
    full = task["full"]
    low, high = full["quality_ci"]
    split = task.get("split") or result["split"]
    trained = " Released checkpoints were trained on these very questions." if task["in_training_mixture"] else ""
    ranks = " Rank 1 costs most; 'may be' are the ranks that the samples leave open." if not refusal(task) else ""
    return (
        f"{task['metric']} on {task['task']} ({split} split), {task['num_samples']} samples of "
        f"{task['num_images']} images ({task['num_bad_samples']} bad), {result['confidence']:.0%} {SIMULTANEOUS} by "
        f"image. Full model {full['quality']:.3f} [{low:.3f}, {high:.3f}].{describe_constant(task)}{ranks}{trained}"
    )


def _conclusion(task: Mapping[str, Any]) -> list[str]:
    blocks = task["blocks"]
    lines = [LEGEND] if any(str(row[1]).endswith("*") for row in _rows(task)) else []
    if refusal(task):
        return lines
    for measure, label in (("quality", task["metric"]), ("reference_logprob", "reference log-probability")):
        cheap = [str(unit_name(entry)) for entry in blocks if entry[measure]["rank_ci"][1] == len(blocks)]
        tied = " (tied)" if len(cheap) > 1 else ""
        lines.append(f"least important by {label}: {units_noun(blocks)}s {', '.join(cheap)}{tied}")
    return lines


def _summary(result: dict[str, Any], folder: Path) -> str:
    lines = ["", *refusals(result)]
    for task in result["tasks"]:
        lines += [headline(task, result), "", format_table(_rows(task), _headers(task)), "", *_conclusion(task), ""]
    if result["macro"]:
        mean = _mean(result)
        lines += [f"mean over {len(result['tasks'])} tasks.{describe_constant(mean)}", ""]
        lines += [format_table(_rows(mean), _headers(mean)), "", *_conclusion(mean), ""]
        lines += [
            AGREEMENT.format(threshold=THRESHOLD),
            "",
            format_table(agreement_rows(result["agreement"]), AGREEMENT_HEADERS),
            "",
        ]
    if "methods" in result:
        lines += method_lines(result["methods"])
    paths = [folder / SCORES, folder / RESULT, *sorted((folder / "figures").glob("*.png")), folder / "report.html"]
    return "\n".join([*lines, "written:", *(f"  {path}" for path in paths)])
