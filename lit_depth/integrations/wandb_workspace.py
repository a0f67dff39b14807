"""Put runs that were logged before side by side on a server of Weights & Biases: charts, a workspace and a report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import CommError, UsageError

from lit_depth.integrations.run_notes import LoggedChart, RunNote, read_note
from lit_depth.integrations.wandb_panels import build_report, build_workspace, preset_name, several_runs

# curves and summaries by how their names begin, and what of the full model stands for each
_OF_FULL = {
    **dict.fromkeys(("quality/", "area/", "half_depth/quality", "full/quality"), "quality"),
    **{"low/": "low", "high/": "high"},
    **dict.fromkeys(("latency_ms/total/", "full/latency_ms/total"), "latency_ms"),
}
_NO_DIFFERENCE = ("drop/", "drop_low/", "drop_high/")


@dataclass(frozen=True)
class Published:
    """Where to look, and what is still missing there.

    Args:
        workspace: Address of the saved view.
        report: Address of the report.
        waiting: How to bring each run there that is not.
    """

    workspace: str
    report: str
    waiting: Sequence[str] = ()

    def lines(self) -> list[str]:
        """For the terminal, the command for what is missing included.

        >>> Published("https://a/w", "https://a/r", ["wandb sync out/wandb/offline-run-1"]).lines()[-1]
        'not on the server yet, so its panels are empty: wandb sync out/wandb/offline-run-1'
        """
        waiting = [f"not on the server yet, so its panels are empty: {each}" for each in self.waiting]
        return [f"workspace: {self.workspace}", f"report: {self.report}", *waiting]


def publish_workspace(
    folders: Sequence[Path],
    entity: str | None = None,
    project: str | None = None,
    name: str | None = None,
    api: Any = None,
) -> Published:
    """Upload the charts of the folders' runs, and save a workspace and a report that show them.

    A run is known by the id in its folder's note; one that was synced under another id, by the fingerprint of its
    arguments, model and data. The full model of each quality gets a run of its own, the baseline of the workspace.

    Args:
        folders: Of results that were logged with ``WandbLogger``, online or offline.
        entity: Owner of the project, a user or a team; None = that of the runs, or yours.
        project: None = that of the first run.
        name: Of workspace and report; None = by models and tasks.
        api: A ``wandb.Api``; None = that of your account, by ``wandb login``.

    Raises:
        ValueError: If a folder was logged nowhere, nobody is logged in, or the server refuses.
    """
    folders = list(dict.fromkeys(folders))
    notes = [read_note(folder) for folder in folders]
    with _readable():
        api = wandb.Api() if api is None else api
        entity = entity or next((note.entity for note in notes if note.entity), "") or api.default_entity
        if not entity:
            raise ValueError("expected --entity NAME, a user or a team: none of the runs has one, and neither have you")
        project = project or notes[0].project
        upload_charts([chart for note in notes for chart in note.charts.values()], entity, api)
        baselines: dict[str, list[RunNote]] = {}
        for note in (each for each in notes if each.full):
            baselines.setdefault(baseline_id(note), []).append(note)
        for run, group in baselines.items():
            if not _on_server([run], "", f"{entity}/{project}", api):
                log_full_model(group, entity, project)
        found = [_find(note, f"{entity}/{project}", api) for note in notes]
        there = zip(folders, notes, found)
        waiting = [_how_to_bring(folder, note, entity, project) for folder, note, run in there if run is None]
        notes = [note if run is None else replace(note, id=run) for note, run in zip(notes, found)]
        name = name or _name(notes)
        workspace = build_workspace(notes, entity, project, name, list(baselines))
        report = build_report(notes, entity, project, name)
        return Published(workspace.save().url, report.save().url, waiting)


def upload_charts(charts: Sequence[LoggedChart], entity: str, api: Any) -> None:
    """Give the specifications to the server, each once; it may have one of this name, which is the same one."""
    for name, chart in {preset_name(chart): chart for chart in charts}.items():
        try:
            api.create_custom_chart(
                entity=entity,
                name=name,
                display_name=f"lit_depth: {chart.kind.replace('_', ' ')}",
                spec_type="vega2",
                access="private",
                spec=several_runs(chart.spec),
            )
        except wandb.Error as error:
            # a name holds the digest of its content
            if not any(word in str(error).lower() for word in ("already exists", "duplicate", "already in use")):
                raise


def baseline_id(note: RunNote) -> str:
    """Of the run of a full model: one for each model, task and quality."""
    known = repr((note.model, note.task, sorted(note.full.items())))
    return f"full-{hashlib.sha256(known.encode()).hexdigest()[:12]}"


def full_values(note: RunNote, names: Sequence[str]) -> dict[str, float]:
    """What the full model has under the names of curves and summaries: the same at every number of blocks.

    >>> note = RunNote("id", "p", full={"quality": 0.75, "low": 0.5, "high": 1.0})
    >>> full_values(note, ["quality/prefix", "low/prefix", "drop/search", "blocks_for_99/prefix"])
    {'quality/prefix': 0.75, 'low/prefix': 0.5, 'drop/search': 0.0}
    """
    found = {}
    for name in names:
        kinds = [kind for begin, kind in _OF_FULL.items() if name.startswith(begin)]
        if kinds and kinds[0] in note.full:
            found[name] = note.full[kinds[0]]
        elif name.startswith(_NO_DIFFERENCE):
            found[name] = 0.0
    return found


def log_full_model(notes: Sequence[RunNote], entity: str, project: str, **options: Any) -> None:
    """Log the full model as a run of its own, flat along the axes of the runs that have it.

    Args:
        notes: Of runs with one full model.
        entity: Owner of the project.
        project: That the run goes to.
        options: Of ``wandb.init``, such as its mode or folder.
    """
    first = notes[0]
    with wandb.init(
        entity=entity,
        project=project,
        id=baseline_id(first),
        name=", ".join(["full model", *filter(None, [first.model, first.task])]),
        group="full model",
        job_type="full model",
        tags=["full model", *filter(None, [first.task[:64]])],
        config={"model": first.model, "task": first.task},
        reinit="create_new",
        **{"mode": "online", "settings": wandb.Settings(silent=True), **options},
    ) as run:
        for note in notes:
            values = full_values(note, note.curves)
            if not values:
                continue
            run.define_metric(note.step, hidden=True)
            for key in values:
                run.define_metric(key, step_metric=note.step)
            for step in note.steps:
                run.log({note.step: step, **values})
            run.summary.update(full_values(note, note.scalars))


def _find(note: RunNote, path: str, api: Any) -> str | None:
    """Id of a note's run on the server; None where it is not there."""
    return _on_server([note.id], note.fingerprint, path, api)


def _on_server(ids: Sequence[str], fingerprint: str, path: str, api: Any) -> str | None:
    """The newest run with one of the ids, else with the fingerprint."""
    filters: list[dict[str, Any]] = [{"name": {"$in": list(ids)}}]
    filters += [{"config.run": fingerprint}] if fingerprint else []
    for each in filters:
        try:
            found = next(iter(api.runs(path, filters=each, order="-created_at")), None)
        except (ValueError, CommError) as error:
            if "not find" not in str(error).lower() and "not found" not in str(error).lower():
                raise
            return None  # there is no such project yet
        if found is not None:
            return str(found.id)
    return None


def _how_to_bring(folder: Path, note: RunNote, entity: str, project: str) -> str:
    """The command that syncs an offline run to the project; where an online one is instead."""
    if not note.offline:
        return f"{folder} was logged to {note.entity}/{note.project}; choose it by --entity and --project"
    # a run goes to the project that it was logged to, unless told otherwise
    other = f"--project {project} " if note.project != project else ""
    return f"wandb sync --entity {entity} {other}{folder / note.files}"


def _name(notes: Sequence[RunNote]) -> str:
    models = ", ".join(dict.fromkeys(note.model for note in notes if note.model))
    tasks = ", ".join(dict.fromkeys(note.task for note in notes if note.task))
    return " on ".join(filter(None, [f"lit_depth {models}".strip(), tasks]))


@contextmanager
def _readable() -> Iterator[None]:
    """What the server or its client says, as an error of the user's."""
    try:
        yield
    except UsageError as error:
        raise ValueError(f"--wandb: {error} (expected to be logged in: wandb login)") from error
    except wandb.Error as error:
        raise ValueError(f"--wandb: the server did not do it: {error}") from error
