"""The page of one run, from what its folder holds: result, records, and the samples that were kept when it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.data.task import Sample
from lit_depth.results.changed_samples import MOST, MaskChanges, find_changes
from lit_depth.results.model_names import model_changes, model_name
from lit_depth.results.page import RunPart
from lit_depth.results.reading import read_object
from lit_depth.results.report import Report
from lit_depth.results.run_records import REPORTED, scored_records
from lit_depth.results.shown_samples import Kept, ShownSamples, read_kept, show_samples, write_kept
from lit_depth.results.store import MANIFEST
from lit_depth.studies.shared.time_masks import clock_settings

if TYPE_CHECKING:
    from lit_depth.studies.shared.run_folder import Run

Changes = dict[str, tuple[str, list[MaskChanges]]]
_VERSIONS = ("lit_depth", "torch", "transformers", "python")


def run_part(
    folder: Path,
    report: Report,
    figures: Mapping[str, Path],
    result: Mapping[str, Any],
    most: int = MOST,
    link: str | None = None,
    changes: Changes | None = None,
) -> RunPart:
    """What a page shows of a run.

    Args:
        folder: Of the run.
        report: Of its result.
        figures: PNG files by name.
        result: Content of the result's file.
        most: Changed samples of each mask; 0 = none.
        link: The run's own page, from where the page lies.
        changes: As `find_run_changes` gives them; None = they are read.

    Raises:
        ValueError: If a file of the folder is damaged.
    """
    path = folder / MANIFEST
    manifest = {"arguments": {}, **(read_object(path) if path.is_file() else {})}
    arguments, kept = manifest["arguments"], read_kept(folder)
    found = find_run_changes(folder, arguments, most) if changes is None else changes
    return RunPart(
        report=report,
        figures=figures,
        arguments=arguments,
        facts=_facts(folder, manifest, result, kept),
        link=link,
        changes={task: each for task, (_, each) in found.items()},
        splits={task: split for task, (split, _) in found.items()},
        kept=kept,
    )


def find_run_changes(folder: Path, arguments: Mapping[str, Any], most: int = MOST) -> Changes:
    """By task: a split, and what every mask changes on it. The split is the reported one where there are records of it.

    Raises:
        ValueError: If a file of records is damaged.
    """
    found: Changes = {}
    for task, frame in scored_records(folder, arguments).items():
        split = min(frame["role"].unique(), key=lambda role: (role != REPORTED, role))
        found[task] = str(split), find_changes(frame[frame["role"] == split], most)
    return found


def keep_samples(run: Run, changes: Changes) -> None:
    """Keep what the page shows of samples, and when and where the run first ended.

    Raises:
        ValueError: If the file cannot be written.
    """
    tasks = {}
    for each in run.for_each_task() if changes else ():
        split, masks = changes.get(each.datamodule.task.name, ("", []))
        wanted = {change.sample for mask in masks for change in mask.shown}
        tasks[each.datamodule.task.name] = show_samples(_find(each, split, wanted)) if wanted else ShownSamples({}, {})
    device = run.trainer.strategy.root_device
    finished = _first_end(run.folder) or datetime.now(UTC).isoformat(timespec="seconds")
    named = clock_settings(device)["device"]
    write_kept(run.folder, Kept(finished, named if named == str(device) else f"{device}: {named}", tasks))


def _first_end(folder: Path) -> str | None:
    """When the run ended before: the same command again measures nothing, and says the same."""
    with suppress(ValueError):  # a damaged file is about to be written anew
        return read_kept(folder).finished
    return None


def _find(run: Run, split: str, wanted: set[str]) -> Iterator[Sample]:
    """Some samples of a split, with their pictures; one that cannot be read any more is left out."""
    dataset = run.datamodule.eval_dataset(split)
    places = [place for place, (sample, _) in enumerate(dataset.recorded_ids()) if sample in wanted]
    for place in places:
        sample = dataset[place]
        if isinstance(sample, Sample):
            yield sample


def _facts(folder: Path, manifest: Mapping[str, Any], result: Mapping[str, Any], kept: Kept) -> dict[str, str]:
    arguments, versions = manifest["arguments"], manifest.get("versions", {})
    device = kept.device or result.get("device") or result.get("latency_device") or "not recorded"
    tasks = arguments.get("data.tasks") or [str(result.get("task", "-"))]
    requests = result.get("num_requests", result.get("latency_requests"))
    known = [f"{package} {versions[package]}" for package in _VERSIONS if versions.get(package)]
    return {
        "run": f"{manifest.get('command', folder.parent.name)}/{folder.name}",
        "model": ", ".join([model_name(arguments), *model_changes(arguments)]),
        "tasks": ", ".join(map(str, tasks)),
        "samples": _samples(result),
        "requests": "-" if requests is None else str(requests),
        "device": str(device),
        "versions": ", ".join(known) or "not recorded",
        "finished": kept.finished or "not recorded",
    }


def _samples(result: Mapping[str, Any]) -> str:
    """Numbers of samples of a result: of each task, or of each split."""
    entries = result.get("tasks") or result.get("measurements") or [result.get("report") or result]
    counts = [each.get("num_samples") for each in entries if isinstance(each, Mapping)]
    return ", ".join(str(count) for count in counts if count is not None) or "-"
