"""Whether a folder on disk is the masked model: seen here, held to it by a fresh process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

import lit_depth
from lit_depth.functional import find_blocks, masked
from lit_depth.models.certify import VERDICT, Case, digest, observe, other_settings, write_references
from lit_depth.models.export import cut_fields, fields_without, files_to_copy, read_config, state_without
from lit_depth.models.loading import auto_class
from lit_depth.models.weight_files import floating

CERTIFICATE, GENERATION = "certificate.json", "generation_config.json"


class NotCertifiedError(RuntimeError):
    """A written checkpoint is not the masked model; nothing of it is left."""


class Evidence(NamedTuple):
    """What a checkpoint in a folder is held to."""

    folder: Path
    settings: Mapping[str, Any]
    cases: Sequence[Case]


def watch(
    model: PreTrainedModel,
    mask: Tensor,
    batches: Iterable[tuple[str, Mapping[str, Tensor]]],
    generation: Mapping[str, Any],
    folder: Path,
    attn_implementation: str | None = None,
    blocks: str | None = None,
    source: Path | None = None,
) -> Evidence:
    """What the masked model makes of some batches.

    Args:
        model: In memory, with all of its blocks.
        mask: Bool ``[num_blocks]``, True = the block runs.
        batches: Name and inputs of each.
        generation: What ``generate`` is given: ``max_new_tokens``, ``eos_token_id``, ``pad_token_id``.
        folder: Of the checkpoint that is to be the same.
        attn_implementation: How attention is computed; None = the model's default.
        blocks: Dotted path of the blocks, where they cannot be found.
        source: Folder of the whole checkpoint, whose other settings and files the new one has to have; None = they are
            not held.

    Raises:
        ValueError: If the model's logits are not finite: then there is nothing to hold a checkpoint to.
    """
    cases = []
    with masked(model, mask, blocks=blocks):
        for name, inputs in batches:
            given = {key: value.to(model.device) for key, value in inputs.items()}
            case = Case(name, dict(inputs), *observe(model, given, generation))
            if not torch.isfinite(case.logits).all():
                raise ValueError(
                    f"expected finite logits of the masked model, got others ({name}): nothing is exported"
                )
            cases.append(case)
    active = mask.nonzero().flatten().tolist()
    settings = {
        "fields": fields_without(model.config, active),
        "weights": digest(state_without(model, find_blocks(model, blocks), active)),
        "checkpoint": str(folder),
        "auto_class": auto_class(model.config).__name__,
        "dtype": floating(model.dtype),
        "device": str(model.device),
        "attn_implementation": attn_implementation,
        "generation": dict(generation),
        **({} if source is None else _of_source(source)),
    }
    return Evidence(folder, settings, cases)


def _of_source(source: Path) -> dict[str, Any]:
    """What a checkpoint has to have as its source has it."""
    raw, config = read_config(source)
    cut = cut_fields(raw, config)
    files = {GENERATION: None, **sha256_of(files_to_copy(source))}
    return {"cut": cut, "other_settings": other_settings(config, cut), "files": files}


def hold(evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Verdicts of one fresh process on some checkpoints, see `lit_depth.models.certify`.

    Raises:
        RuntimeError: If the process ended before its last verdict.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(number)) for number in range(len(evidence))]
        for folder, each in zip(folders, evidence):
            folder.mkdir()
            write_references(folder, each.settings, each.cases)
        done = subprocess.run(
            [sys.executable, "-m", "lit_depth.models.certify", *map(str, folders)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": _search_path(), "HF_HUB_OFFLINE": "1"},
        )
        if done.returncode or not all((folder / VERDICT).is_file() for folder in folders):
            said = " ".join(done.stderr.split())[-400:]
            raise RuntimeError(f"the process that certifies ended with code {done.returncode}: {said}")
        return [json.loads((folder / VERDICT).read_text(encoding="utf-8")) for folder in folders]


def _search_path() -> str:
    """Where modules are found, this package first: whoever runs it may not have installed it."""
    home = str(Path(lit_depth.__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))


def failure(verdict: Mapping[str, Any]) -> str | None:
    """What a verdict says against a checkpoint; None = nothing.

    >>> failure({"passed": True})
    >>> failure({"passed": False, "error": "ValueError: missing keys"})
    'ValueError: missing keys'
    """
    if verdict["passed"]:
        return None
    if "error" in verdict:
        return str(verdict["error"])
    wrong = [case for case in verdict["cases"] if not case["logits_equal"] or case["tokens_differ"]]
    return "; ".join(
        f"{case['name']}: logits differ by {case['ratio']:.2g} of the largest (at most {verdict['tolerance']:.2g}), "
        f"{case['tokens_differ']} of {case['num_tokens']} answer tokens differ"
        for case in wrong
    )


def sha256_of(paths: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of files by name, as ``sha256sum`` prints it."""
    found = {}
    for name, path in sorted(paths.items()):
        with open(path, "rb", buffering=0) as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
