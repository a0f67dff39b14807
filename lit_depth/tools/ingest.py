"""Put results of lm-eval, lmms-eval and Inspect into our paired tests: ``lit-depth ingest FILE...``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.functional.arguments import check_range, check_share
from lit_depth.integrations.log_files import read_logs
from lit_depth.integrations.sample_logs import SampleLog
from lit_depth.results.page import write_page
from lit_depth.results.run_records import RunRecords, read_run
from lit_depth.results.store import (
    check_name,
    locked_folder,
    prepare_folder,
    write_json,
    write_manifest,
    write_parquet,
)
from lit_depth.results.terminal import tell
from lit_depth.studies.confirm.analysis import describe
from lit_depth.studies.confirm.choosing import choose_metric, find_ours
from lit_depth.studies.confirm.exports import Export, exports_of, file_sha256, logs_of_whole
from lit_depth.studies.confirm.pairing import Pair, noted_differences, pair
from lit_depth.studies.confirm.report import report
from lit_depth.studies.shared.identity import as_json, read_manifest, refuse_other_run, run_id
from lit_depth.studies.shared.publish import as_text
from lit_depth.tool_options import parser_of

if TYPE_CHECKING:
    import pandas as pd

RESULT = "ingest.json"


def main(argv: Sequence[str]) -> None:
    """Test exported models that lm-eval, lmms-eval or Inspect evaluated against the whole model, and against our run.

    Raises:
        ValueError: If a file cannot be read, or samples cannot be paired; the message says why.
    """
    given = parser_of("ingest").parse_args(argv)
    check_name(given.name)
    check_share(confidence=given.confidence)
    check_range(0, 1, tolerance=given.tolerance)
    if given.whole is None and given.run is None:
        raise ValueError(
            "expected something to compare with: --whole FILE... (the whole model's, by the same harness) or --run "
            "DIR (our run that swept the mask), or both"
        )
    if given.task is not None and given.run is None:
        raise ValueError("--task names a task of our run: give --run DIR too")
    logs, remarks = read_logs(given.files)
    whole, more = read_logs(given.whole or [])
    run = None if given.run is None else read_run(given.run)
    exports = exports_of(logs, given.mask, given.skip, given.checkpoint, run)
    pairs, names, entries, told = _pairs(exports, logs_of_whole(whole, logs), run, given)
    files = [_file(log, "exported") for log in logs] + [_file(log, "whole") for log in whole]
    result = describe(pairs, names, entries, given.confidence, given.tolerance)
    result |= {"remarks": list(dict.fromkeys([*remarks, *more, *told])), "files": files}
    _publish(given, result, _records(pairs, names), {"run": run and dict(run.model)})


def _pairs(
    exports: Sequence[Export],
    whole: Mapping[tuple[str, str], SampleLog],
    run: RunRecords | None,
    given: argparse.Namespace,
) -> tuple[list[Pair], list[str], list[Mapping[str, Any]], list[str]]:
    """Pairs of each model and task, the model's name and our result's entry of each, and what is told of them."""
    pairs, names, entries, told = [], [], [], []
    for export in exports:
        for log in export.logs:
            other = whole.get((log.harness, log.task))
            ours = find_ours(log, run, given.task)
            _check_partner(log, other, ours, whole, run)
            metric, why = choose_metric(log, given.metric, given.filter, ours)
            told.append(why)
            if not log.means_over_samples(metric):
                told.append(
                    f"{log.task}: the harness's own {metric} is no mean over samples ({log.means[metric]:.4g}); here "
                    "it is the mean of what it notes for each."
                )
            if export.is_healed and ours is not None:
                told.append(f"{export.name} was healed: our records of the mask are of the unhealed model.")
            pairs.append(pair(log, other, metric, export.mask, ours, not export.is_healed))
            names.append(export.name)
            entries.append({} if ours is None else ours.entry)
            told += pairs[-1].remarks
            if other is not None:
                told += [f"{log.task}, {export.name}: {each}." for each in noted_differences(log, other)]
    return pairs, names, entries, told


def _check_partner(
    log: SampleLog,
    other: SampleLog | None,
    ours: Any,
    whole: Mapping[tuple[str, str], SampleLog],
    run: RunRecords | None,
) -> None:
    if other is not None:
        return
    if whole:
        tasks = ", ".join(f"{harness} {task}" for harness, task in whole)
        raise ValueError(f"{log.path}: expected {log.harness} {log.task} of the whole model too, --whole has {tasks}")
    if ours is None and run is not None:
        raise ValueError(
            f"{log.path}: expected {log.harness} {log.task} among the tasks of {run.folder} ({', '.join(run.tasks)}): "
            "give --task where it has another name, or --whole"
        )


def _file(log: SampleLog, of: str) -> dict[str, Any]:
    about = {"of": of, "model": log.model, "harness": log.harness, "task": log.task}
    return {**about, "path": str(log.path), "sha256": file_sha256(log), "settings": {**log.binding, **log.noted}}


def _records(pairs: Sequence[Pair], names: Sequence[str]) -> pd.DataFrame:
    """Scores of all pairs as records: of the exported models, and of the whole one where its log was given."""
    import pandas as pd

    frames = []
    for each, name in zip(pairs, names):
        about = {"task": each.log.task, "harness": each.log.harness, "metric": each.metric}
        split = f"{each.log.split}/" if each.log.split else ""
        samples = [f"{split}{sample}" for sample in each.samples]
        known = {"sample": samples, "image": each.clusters, "reference_logprob": float("nan"), **about}
        answers = [each.log.samples[sample].answer for sample in each.samples]
        mask = each.mask or name
        frames.append(
            pd.DataFrame({"mask": mask, "score": each.exported, "prediction": answers, "model": name, **known})
        )
        if not each.whole_is_ours:
            full = "1" * len(each.mask) if each.mask else "whole"
            frames.append(
                pd.DataFrame({"mask": full, "score": each.whole, "prediction": None, "model": "whole", **known})
            )
    columns = [
        "mask",
        "sample",
        "image",
        "score",
        "prediction",
        "reference_logprob",
        "task",
        "model",
        "harness",
        "metric",
    ]
    return pd.concat(frames, ignore_index=True)[columns].drop_duplicates(
        ["mask", "sample", "task", "model", "harness", "metric"]
    )


def _publish(
    given: argparse.Namespace, result: Mapping[str, Any], records: pd.DataFrame, model: Mapping[str, Any]
) -> None:
    """Write the folder of the result, its file last; the same files and options write it anew."""
    folder = prepare_folder(Path(given.output_dir) / "ingest" / given.name)
    arguments = {key: value for key, value in vars(given).items() if key not in ("output_dir", "name")}
    hashes = {file["path"]: file["sha256"] for file in result["files"]}
    identity = as_json({"arguments": {**arguments, "sha256": hashes}, "model": model})
    with locked_folder(folder):
        there = read_manifest(folder)
        if there is not None:
            refuse_other_run(folder, there, identity, "any")
        write_manifest(folder, identity["arguments"], command="ingest", run=run_id(identity), model=identity["model"])
        write_parquet(folder / "records.parquet", records)
        told = report(result)
        page = write_page(folder, told, {}, identity["arguments"])
        write_json(folder / RESULT, result)
    written = [folder / RESULT, folder / "records.parquet", page]
    tell("\n".join([as_text(told), "", "written:", *(f"  {path}" for path in written)]), result)
