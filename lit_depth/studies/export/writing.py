"""Write the folder: checkpoint, proof, model card and files for other tools; all of it, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from torch import Tensor
from transformers import PreTrainedModel

from lit_depth.functional import find_blocks
from lit_depth.functional.masks import MaskSet
from lit_depth.models import handoff
from lit_depth.models.export import (
    BLOCK_PATHS,
    CONFIG,
    check_cuttable,
    new_folder,
    prune_checkpoint,
)
from lit_depth.models.quantization import is_quantized
from lit_depth.models.settings import checkpoint_files
from lit_depth.models.weight_files import HeldWeights, floating
from lit_depth.module import DepthModule, model_inputs
from lit_depth.results.store import current_versions, write_json, write_text
from lit_depth.studies.export.arguments import Choice, whole_blocks
from lit_depth.studies.export.card import card, evaluation_results
from lit_depth.studies.export.certificate import CERTIFICATE, NotCertifiedError, failure, hold, sha256_of, watch
from lit_depth.studies.export.healing import Healing
from lit_depth.studies.shared.run_folder import Run

CARD, HANDOFF = "README.md", "handoff"


class Written(NamedTuple):
    """What stands in the new folder."""

    certificate: dict[str, Any] | None
    num_parameters: tuple[int, int]  # of the whole model, and of the new one
    files: tuple[str, ...]


def check_exportable(trainer: Trainer, model: DepthModule, masks: MaskSet, weights: bool) -> None:
    """Raise ValueError for masks that no plain checkpoint can hold, and models that transformers alone cannot load."""
    phase = model.hparams["phase"]
    if phase != "both":
        raise ValueError(f"a checkpoint has one depth for prompt and answer: expected --model.phase both, got {phase}")
    if weights and whole_blocks(masks) is None:
        raise ValueError(
            "a standard checkpoint has no place for half of a block, and this mask skips some: give --weights false "
            f"for {HANDOFF}/block_configs.json alone, from which engines that know it leave out attentions and MLPs"
        )
    if weights and model.hparams["trust_remote_code"]:
        raise ValueError(
            "the proof runs no code that comes with a checkpoint: expected --model.trust_remote_code false, and one of "
            f"{', '.join(sorted(BLOCK_PATHS))}"
        )
    asked = [name for name in ("experts_per_token", "max_crops") if model.hparams[name] is not None]
    if weights and asked:
        raise ValueError(
            f"export copies the checkpoint's own settings: expected no --model.{asked[0]}, got "
            f"{model.hparams[asked[0]]}; write it into the files of a copy of the checkpoint, and export that"
        )
    if weights and is_quantized(model.model):
        raise ValueError(
            "cannot export a quantised model: its weights are packed, and what was lost by that would be lost twice; "
            "export the unquantised checkpoint, and quantise the smaller one when it is loaded (--model.quantization)"
        )
    if weights and any(weight.is_meta for weight in model.model.parameters()):
        raise ValueError(
            "cannot export a model whose weights are not in memory (offloaded?): give another --model.device_map"
        )
    if str(trainer.precision) != "32-true":
        raise ValueError(
            f"export compares weights as they are: expected --trainer.precision 32-true, got {trainer.precision}; "
            "--model.dtype converts them"
        )
    whole = whole_blocks(masks)
    if weights and whole is not None:
        check_cuttable(model.model.config, whole.active[0])


def check_beside(out: Path, run_folder: Path) -> None:
    """Raise ValueError for a new folder that is, or would hold, the folder of the run, where the report goes."""
    if run_folder.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"expected another folder than that of the run's report, {run_folder}, or one around it, got --out {out}: "
            f"give --out {run_folder / 'checkpoint'}, or another --name or --output_dir"
        )


def write(
    run: Run,
    choice: Choice,
    out: Path,
    weights: bool,
    in_memory: bool,
    num_questions: int,
    healing: Healing | None = None,
) -> Written:
    """Write everything into a hidden folder, which becomes ``out`` once it is certified.

    Args:
        healing: How the model in memory was healed; then there are no files for other tools, which would read the
            weights of the source.

    Raises:
        NotCertifiedError: If it is not the masked model.
    """
    model, whole = run.model, whole_blocks(choice.masks)
    source = source_folder(model)
    with new_folder(out) as folder:
        handed = write_handoff(model, choice.masks, folder / HANDOFF) if healing is None else []
        certificate, counts = None, count_parameters(model, whole)
        if weights and whole is not None:
            model.to(run.trainer.strategy.root_device)
            held = healing is not None or in_memory or model.hparams["dtype"] != "auto" or model.hparams["from_scratch"]
            prune_checkpoint(source, whole, folder, HeldWeights(model.model) if held else None)
            certificate = certify(run, whole, folder, source, num_questions)
            if healing is not None:
                certificate["healing"] = {key: value for key, value in healing.entry().items() if key != "quality"}
            write_json(folder / CERTIFICATE, certificate)
            files = {CARD: card(run, choice, certificate, counts, out.name, source, handed, healing)}
            files |= evaluation_results(run, choice)
            for name, text in files.items():
                write_text(folder / name, text)
        names = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    return Written(certificate, counts, names)


def source_folder(model: DepthModule) -> Path:
    """Where the files of a module's checkpoint lie."""
    return checkpoint_files(model.hparams["checkpoint"], model.hparams["revision"])[CONFIG].parent


def write_handoff(model: DepthModule, masks: MaskSet, folder: Path) -> list[str]:
    """Write files for other tools, as far as they know the family and the kind of mask; their names."""
    found = handoff.texts(
        model.hparams["checkpoint"], model.model.config, whole_blocks(masks) or masks, floating(model.model.dtype)
    )
    for name, text in found.items():
        write_text(folder / name, text)
    return list(found)


def certify(run: Run, masks: MaskSet, folder: Path, source: Path, num_questions: int) -> dict[str, Any]:
    """The content of ``certificate.json``.

    Raises:
        NotCertifiedError: If the checkpoint in the folder is not the masked model.
    """
    model, task = run.model, run.datamodule.task
    model.use_task(task.max_new_tokens)
    generation = {
        "max_new_tokens": model.max_new_tokens,
        "eos_token_id": model.end_token_ids,
        "pad_token_id": model.pad_token_id,
    }
    batches = questions(run, num_questions)
    given = [(name, inputs) for name, _, inputs in batches]
    attention, blocks = model.hparams["attn_implementation"], model.hparams["blocks"]
    held: PreTrainedModel = model.model
    evidence = watch(held, masks[0], given, generation, folder, attention, blocks, source)
    (verdict,) = hold([evidence])
    wrong = failure(verdict)
    if wrong is not None:
        raise NotCertifiedError(
            f"the exported checkpoint is not the masked model, nothing of it is left: {wrong}. A model that was "
            "changed since it was loaded needs --in_memory true"
        )
    return {
        **verdict,
        "mask_id": masks.ids[0],
        "blocks": {"source": masks.num_units, "export": masks.counts[0]},
        "sha256": {
            "source": sha256_of(checkpoint_files(str(source))),
            "export": sha256_of(checkpoint_files(str(folder))),
            "weights": evidence.settings["weights"],
        },
        "questions": {"task": task.name, "split": "validation", "ids": batches[0][1]},
        "held_to": {key: evidence.settings[key] for key in ("auto_class", "dtype", "device", "generation", "fields")},
        "versions": current_versions(),
    }


def questions(run: Run, number: int) -> list[tuple[str, list[str], Mapping[str, Tensor]]]:
    """Batches of some questions: all of them padded on the left, then each alone; name, samples and inputs of each.

    Raises:
        ValueError: If none can be read.
    """
    found: list[tuple[str, list[str], Mapping[str, Tensor]]] = []
    total = min(number, len(run.datamodule.eval_dataset("validation")))
    for size in (total, 1):
        data = copy.copy(run.datamodule)
        data.batch_size = size
        for batch in data.eval_dataloader("validation", positions=range(total)):
            names: Sequence[str] = batch["sample_ids"]
            if names:
                name = f"batch 1, {names[0]}" if size == 1 else f"left-padded batch of {len(names)}"
                found.append((name, list(names), model_inputs(batch)))
    if not found:
        raise ValueError(f"expected questions that can be read, got none in the first {total} of the validation split")
    return found


def count_parameters(model: DepthModule, whole: MaskSet | None) -> tuple[int, int]:
    """Parameters of the whole model, and without the skipped blocks; a head that shares its weight counts once."""
    before = sum(weight.numel() for weight in model.model.parameters())
    if whole is None:
        return before, before
    blocks = find_blocks(model.model, model.hparams["blocks"])
    skipped = [block for block, runs in zip(blocks, whole[0].tolist()) if not runs]
    return before, before - sum(weight.numel() for block in skipped for weight in block.parameters())
