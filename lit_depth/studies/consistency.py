"""``lit-depth consistency``: do two splits, or two tasks, rank the blocks alike?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.masking import Granularity
from lit_depth.module import DepthModule
from lit_depth.results.consistency_figures import write_consistency_figures
from lit_depth.results.report import Section, write_report
from lit_depth.results.store import write_json, write_parquet
from lit_depth.results.tables import format_table
from lit_depth.results.verdicts import WITHHELD, refusal
from lit_depth.studies.importance import (
    AGREEMENT,
    AGREEMENT_HEADERS,
    agreement_rows,
    check_blocks,
    headline,
    measure,
    task_entry,
    units_of,
    withhold_agreement,
)
from lit_depth.studies.ranking import describe_agreement
from lit_depth.studies.run import check_shares, log_to, open_run

RESULT = "consistency.json"


def consistency(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    *,
    splits: Sequence[str],
    skip: Sequence[int] | None,
    num_samples: int | None,
    threshold: float,
    confidence: float,
    max_bad_samples: float,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """Measure and compare; arguments and result as for `lit_depth.DepthTrainer.consistency`."""
    granularity: Granularity = model.hparams["granularity"]
    blocks = check_blocks(model.num_blocks, skip or ())
    units = units_of(blocks, granularity)
    check_shares(confidence, max_bad_samples)
    if len(units) < 4:
        raise ValueError(f"a rank correlation needs at least 4 {granularity}s, got {len(units)}")
    if not -1 < threshold < 1:
        raise ValueError(f"threshold must lie between -1 and 1, got {threshold}")
    splits = list(splits)
    if len(splits) not in (1, 2) or len(set(splits)) < len(splits):
        raise ValueError(f"splits: expected one or two different ones, got {splits}")
    if len(splits) == 1 and len(datamodule.tasks) < 2:
        raise ValueError("with one split, two or more tasks are compared: give --data.tasks a b, or --splits a b")
    if num_samples is not None:
        for split in splits:
            datamodule.take(split, num_samples)
    arguments = {"blocks": blocks, "splits": splits, "threshold": threshold, "confidence": confidence}
    with open_run(trainer, model, datamodule, splits, arguments, output_dir, "consistency", name) as (folder, identity):
        measured = {}
        for each in datamodule.for_each_task():
            if len(splits) == 2:
                each.check_disjoint(*splits)
            for split in splits:
                text = f"importance, {each.task.name}, {split} split"
                found = measure(trainer, model, each, split, units, folder, text, max_bad_samples)
                measured[_label(each.task.name, split, splits)] = (each, *found, split)
        if not trainer.is_global_zero:
            return {}
        names = list(measured)
        pairs = list(zip(names[::2], names[1::2])) if len(splits) == 2 else list(itertools.combinations(names, 2))
        result: dict[str, Any] = {
            "command": "consistency",
            "num_blocks": model.num_blocks,
            "splits": splits,
            "threshold": threshold,
            "confidence": confidence,
            "measurements": [
                {"name": label, "split": split}
                | task_entry(each, scores, sweep, units, model.num_units, confidence, granularity)
                for label, (each, scores, sweep, split) in measured.items()
            ],
            "pairs": [
                {"a": a, "b": b}
                | describe_agreement(measured[a][1], measured[b][1], units, model.num_units, threshold, confidence)
                for a, b in pairs
            ],
        }
        withhold_agreement(result["pairs"], result["measurements"])
        records = [
            sweep.records.assign(task=each.task.name, split=split)
            for each, _, sweep, split in measured.values()
            if sweep.records is not None
        ]
        _write(folder, result, identity, pd.concat(records, ignore_index=True))
    log_to(trainer, "log_consistency", result, folder)
    print(_summary(result, folder))
    return result


def _label(task: str, split: str, splits: Sequence[str]) -> str:
    return task if len(splits) == 1 else f"{task}, {split}"


def _write(folder: Path, result: dict[str, Any], arguments: dict[str, Any], records: pd.DataFrame) -> None:
    figures = write_consistency_figures(result, folder / "figures")
    write_parquet(folder / "records.parquet", records)
    refused = _refusals(result)
    sections = [
        *([Section("No verdict", text="\n\n".join(refused))] if refused else []),
        Section(
            "Agreement",
            text=f"{_explain(result)}\n\n{AGREEMENT.format(threshold=result['threshold'])}",
            headers=AGREEMENT_HEADERS,
            rows=agreement_rows(result["pairs"]),
        ),
        Section("Figures", figures=figures),
        Section("Measurements", text="\n\n".join(headline(entry, result) for entry in result["measurements"])),
        Section("Arguments", code=json.dumps(arguments, indent=2, default=str)),
    ]
    write_report(folder, "Consistency of block importance", sections)
    # last: whoever sees it may rely on all the rest
    write_json(folder / RESULT, result)


def _refusals(result: dict[str, Any]) -> list[str]:
    each = [refusal(entry, f"{entry['task']} ({entry['split']} split)") for entry in result["measurements"]]
    return [reason for reason in each if reason]


def _explain(result: dict[str, Any]) -> str:
    """The verdicts in words, one sentence per pair and measure."""
    threshold, sentences = result["threshold"], []
    for pair in result["pairs"]:
        for key, label in (("quality", "quality"), ("reference_logprob", "reference log-probability")):
            entry = pair[key]
            text = f"{pair['a']} against {pair['b']}, by {label}: {entry['verdict']}"
            if entry["spearman"] is None and entry["verdict"] != WITHHELD:
                sentences.append(f"{text}; on one side all blocks cost the same, or images are too few: no order.")
                continue
            if entry["verdict"] == WITHHELD:
                sentences.append(f"{text}.")
                continue
            low, high = entry["ci"]
            text += f" (Spearman {entry['spearman']:.3f}, free of noise in [{low:.3f}, {high:.3f}])."
            needed = entry["samples_needed"]
            if entry["verdict"] == "not shown" and needed:
                text += f" At least about {needed[0]} and {needed[1]} samples are needed to show {threshold:g}."
            elif entry["verdict"] == "not shown":
                text += f" No number of samples up to 1024 times these is likely to show {threshold:g}."
            sentences.append(text)
    return "\n\n".join(sentences)


def _summary(result: dict[str, Any], folder: Path) -> str:
    lines = ["", *_refusals(result), *(headline(entry, result) for entry in result["measurements"]), ""]
    lines += [AGREEMENT.format(threshold=result["threshold"]), ""]
    lines += [format_table(agreement_rows(result["pairs"]), AGREEMENT_HEADERS), "", _explain(result), ""]
    paths = [folder / RESULT, *sorted((folder / "figures").glob("*.png")), folder / "report.html"]
    return "\n".join([*lines, "written:", *(f"  {path}" for path in paths)])
