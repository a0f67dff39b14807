"""What a run of this package recorded of each sample, read from its folder alone: no model, no data."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_depth.results.measures import metric_label
from lit_depth.results.reading import read_json, read_object
from lit_depth.results.records import read_records
from lit_depth.results.store import MANIFEST

if TYPE_CHECKING:
    import pandas as pd

_MASK = re.compile("[01]+")
REPORTED = "validation"


@dataclass(frozen=True)
class TaskRecords:
    """Records of one task, of all masks.

    Args:
        task: Its name.
        metric: What gave the ``score``, without the path of its class.
        frame: Columns ``mask``, ``sample``, ``image``, ``score``, ``prediction``, ``role`` and those of other metrics.
        entry: What the result says of the task; empty where there is none.
    """

    task: str
    metric: str
    frame: pd.DataFrame
    entry: Mapping[str, Any]

    @property
    def masks(self) -> list[str]:
        """Ids of all masks."""
        return sorted(self.frame["mask"].unique())

    @property
    def full_id(self) -> str:
        """Id of the full model's mask."""
        return "1" * len(self.masks[0])

    def of_masks(self, masks: Sequence[str], wanted: Collection[str], column: str = "score") -> dict[str, pd.DataFrame]:
        """Records of some masks on the same samples, by sample.

        They are all that are reported on, or where none of these is wanted, those that masks were selected on; column
        ``role`` says which. They are none where no sample is wanted.

        Args:
            masks: Ids.
            wanted: Ids of samples.
            column: What has to be known of each.

        Raises:
            ValueError: If the run has no records of a mask.
        """
        for mask in masks:
            if mask not in self.masks:
                known = self.masks
                more = f" and {len(known) - 4} more" if len(known) > 4 else ""
                active = " ".join(str(block) for block, bit in enumerate(mask) if bit == "1")
                raise ValueError(
                    f"{self.task}: the run has no records of the mask {mask}, but of {', '.join(known[:4])}{more}: "
                    f"lit-depth compare --active_block_indices {active} makes them"
                )
        for role in sorted(self.frame["role"].unique(), key=lambda role: role != REPORTED):
            own = self.frame[(self.frame["role"] == role) & self.frame[column].notna()]
            of_mask = {mask: own[own["mask"] == mask].set_index("sample") for mask in masks}
            shared = sorted(set.intersection(*(set(each.index) for each in of_mask.values())))
            if not set(shared).isdisjoint(wanted):
                return {mask: each.loc[shared] for mask, each in of_mask.items()}
        return {mask: self.frame[:0].set_index("sample") for mask in masks}


@dataclass(frozen=True)
class RunRecords:
    """All that a run recorded, and the manifest's arguments and model."""

    folder: Path
    arguments: Mapping[str, Any]
    model: Mapping[str, Any]
    tasks: Mapping[str, TaskRecords]


def read_run(folder: str | Path) -> RunRecords:
    """The records of a run, from its folder.

    Raises:
        ValueError: If the folder is none of a run that scored answers, or is damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"--run: expected the folder of a run (such as results/compare/default), {folder} has no {MANIFEST}"
        )
    try:
        manifest = read_object(folder / MANIFEST)
        arguments, model = manifest.get("arguments"), manifest.get("model")
        if not isinstance(arguments, dict) or not isinstance(model, dict):
            raise ValueError("expected arguments and model of a run in it")
    except ValueError as error:
        raise ValueError(f"--run: {folder / MANIFEST}: {error}") from error
    entries = _entries(folder)
    metrics = dict(zip(arguments.get("data.tasks") or (), arguments.get("data.metrics") or ()))
    tasks = {
        name: TaskRecords(name, metric_label(str(metrics.get(name, "score"))), frame, entries.get(name, {}))
        for name, frame in scored_records(folder, arguments).items()
    }
    if not tasks:
        raise ValueError(
            f"--run: {folder} has no records of answers that were scored: give a run of compare, "
            "importance, search or select"
        )
    return RunRecords(folder, arguments, model, tasks)


def scored_records(folder: Path, arguments: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Records of answers by task, of every role.

    They are those appended while it ran (``records/<task>/<role>/``), else the table of the finished run.

    Raises:
        ValueError: If a file is damaged.
    """
    import pandas as pd

    found: dict[str, list[pd.DataFrame]] = {}
    for role in sorted((folder / "records").glob("*/*/")):
        files = sorted(role.rglob("rank*.jsonl"))
        if files:
            found.setdefault(role.parent.name, []).append(read_records(files, keep="last").assign(role=role.name))
    frames = {task: pd.concat(parts, ignore_index=True) for task, parts in found.items()}
    if not frames and (folder / "records.parquet").is_file():
        table = pd.read_parquet(folder / "records.parquet")
        named = table.get("task", (arguments.get("data.tasks") or ["task"])[0])
        table = table.assign(task=named, role=table.get("split", REPORTED))
        frames = {str(task): own.dropna(axis=1, how="all") for task, own in table.groupby("task")}
    scored = {task: _scored(frame) for task, frame in frames.items()}
    return {task: frame for task, frame in scored.items() if len(frame)}


def _scored(frame: pd.DataFrame) -> pd.DataFrame:
    """Records of answers, each sample once; what could not be asked has no mask."""
    if not {"mask", "sample", "score"} <= set(frame):
        return frame[:0]
    own = frame[frame["mask"].map(lambda mask: bool(_MASK.fullmatch(mask))) & frame["score"].notna()]
    return own.drop_duplicates(["mask", "sample", "role"])


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    """What the results of a run say of each of its tasks."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        if file.name == MANIFEST:
            continue
        try:
            result = read_json(file)
        except ValueError as error:
            raise ValueError(f"--run: {file}: {error}") from error
        several = result.get("tasks") if isinstance(result, dict) else None
        for entry in [result, *(several if isinstance(several, list) else ())]:
            if isinstance(entry, dict) and "baseline" in entry and isinstance(entry.get("task"), str):
                found[entry["task"]] = entry
    return found
