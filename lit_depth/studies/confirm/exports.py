"""Which models some logs are of: exported ones with their masks, and the whole one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_depth.functional.masks import MaskSet
from lit_depth.integrations.sample_logs import SampleLog, as_mapping
from lit_depth.results.reading import read_object
from lit_depth.results.run_records import RunRecords
from lit_depth.studies.export.certificate import CERTIFICATE, sha256_of


class Export(NamedTuple):
    """An exported model.

    Attributes:
        mask: Id of its mask; None where it is not known.
        is_healed: Whether its weights are others than the masked model's.
    """

    name: str
    mask: str | None
    is_healed: bool
    logs: list[SampleLog]


def exports_of(
    logs: Sequence[SampleLog],
    masks: Sequence[str] | None,
    skipped: Sequence[Sequence[int]] | None,
    checkpoints: Sequence[str] | None,
    run: RunRecords | None,
) -> list[Export]:
    """The exported models of some logs, in their order.

    Args:
        logs: Of all of them.
        masks: Their masks as bits; None = as ``certificate.json`` in the folder says that the log names.
        skipped: The same as skipped blocks.
        checkpoints: The same as the folders of the checkpoints.
        run: Our run, which says how many blocks there are.

    Raises:
        ValueError: If there are not as many masks as models, or one is needed and not known.
    """
    by_model = _by_model(logs)
    given = {"--mask": masks, "--skip": skipped, "--checkpoint": checkpoints}
    options = {option: values for option, values in given.items() if values is not None}
    if len(options) > 1:
        raise ValueError(f"expected one of {', '.join(given)}, got {' and '.join(options)}")
    for option, values in options.items():
        if len(values) != len(by_model):
            raise ValueError(
                f"expected {option} once for each of {len(by_model)} exported models ({', '.join(by_model)}), got "
                f"{len(values)}"
            )
    folders = [Path(folder).expanduser() for folder in checkpoints or by_model]
    certificates = [read_certificate(folder, "--checkpoint" if checkpoints else None) for folder in folders]
    if masks is not None:
        known: Sequence[str | None] = [MaskSet.of([mask]).ids[0] for mask in masks]
    elif skipped is not None:
        known = [_without(blocks, run) for blocks in skipped]
    else:
        known = [certificate.get("mask_id") for certificate in certificates]
    if run is not None:
        for folder, certificate, mask in zip(folders, certificates, known):
            _check_source(certificate, run)
            if mask is None:
                raise ValueError(
                    f"expected the blocks that were removed, {folder} has no {CERTIFICATE}: give --mask, --skip or "
                    "--checkpoint DIR"
                )
    return [
        Export(name, mask, "healing" in certificate, own)
        for name, mask, certificate, own in zip(_names(by_model), known, certificates, by_model.values())
    ]


def _by_model(logs: Sequence[SampleLog]) -> dict[str, list[SampleLog]]:
    found: dict[str, list[SampleLog]] = {}
    for log in logs:
        own = found.setdefault(log.model, [])
        twice = next((other for other in own if (other.harness, other.task) == (log.harness, log.task)), None)
        if twice is not None:
            raise ValueError(
                f"expected one file of {log.task} for the model {log.model}, got {twice.path} and {log.path}"
            )
        own.append(log)
    return found


def _names(models: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The last part of each path or repository, where that tells them apart.

    >>> _names(["/a/smaller", "organisation/whole"]), _names(["/a/checkpoint", "/b/checkpoint"])
    (['smaller', 'whole'], ['/a/checkpoint', '/b/checkpoint'])
    """
    short = [Path(model).name or model for model in models]
    return short if len(set(short)) == len(short) else list(models)


def read_certificate(folder: Path, option: str | None = None) -> dict[str, Any]:
    """What `lit-depth export` wrote into a folder; empty where there is nothing, unless an option names the folder."""
    path = folder / CERTIFICATE
    if not path.is_file():
        if option:
            raise ValueError(f"{option}: expected a folder that lit-depth export wrote, {folder} has no {CERTIFICATE}")
        return {}
    try:
        found = read_object(path)
        MaskSet.of([str(found.get("mask_id"))])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found


def _without(blocks: Sequence[int], run: RunRecords | None) -> str:
    if run is None:
        raise ValueError("--skip: the number of blocks is not known without --run: give --mask instead")
    number = len(next(iter(run.tasks.values())).full_id)
    wrong = [block for block in blocks if not 0 <= block < number]
    if wrong:
        raise ValueError(f"--skip: expected blocks from 0 to {number - 1}, got {', '.join(map(str, wrong))}")
    return MaskSet.of(["".join("0" if block in blocks else "1" for block in range(number))]).ids[0]


def _check_source(certificate: Mapping[str, Any], run: RunRecords) -> None:
    """Refuse an export of another model than the run's, as far as the digests of small files tell."""
    source, ours = as_mapping(as_mapping(certificate.get("sha256")).get("source")), as_mapping(run.model.get("files"))
    for name in sorted(source.keys() & ours.keys()):
        # a digest of weights is made in another way
        if name.endswith(".json") and not str(source[name]).startswith(str(ours[name])):
            raise ValueError(
                f"--run: {run.folder} is of another model than the exported one was made of: {name} differs"
            )


def logs_of_whole(whole: Sequence[SampleLog], logs: Sequence[SampleLog]) -> dict[tuple[str, str], SampleLog]:
    """Logs of the whole model by harness and task.

    Raises:
        ValueError: If they are of several models, of an exported one, or the same as those of the exported ones.
    """
    models = list(dict.fromkeys(log.model for log in whole))
    if len(models) > 1:
        raise ValueError(f"--whole: expected files of one model, got those of {' and '.join(models)}")
    (own,) = _by_model(whole).values() if whole else ([],)
    found = {(log.harness, log.task): log for log in own}
    for log in logs:
        other = found.get((log.harness, log.task))
        if other is None or (other.model != log.model and log.binding):
            continue  # two models may answer alike; a copied file has lost its file of results
        if file_sha256(other) == file_sha256(log):
            raise ValueError(f"--whole: {other.path} holds the same as {log.path}: expected the whole model's results")
    if models and read_certificate(Path(models[0]).expanduser()):
        raise ValueError(
            f"--whole: {models[0]} is an exported model, it has a {CERTIFICATE}: give the whole model's files there"
        )
    return found


def file_sha256(log: SampleLog) -> str:
    """Of the file of a log."""
    return sha256_of({"": log.path})[""]
