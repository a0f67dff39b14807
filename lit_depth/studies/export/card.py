"""The model card of an exported checkpoint, and its results in the hub's format."""

from __future__ import annotations

import math
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard import metadata_load

from lit_depth.data import DepthDataModule
from lit_depth.models.handoff import FILES, NONE_WHEN_HEALED
from lit_depth.module import DepthModule
from lit_depth.results.measures import metric_label
from lit_depth.studies.export.arguments import Choice
from lit_depth.studies.export.healing import SPLIT, Healing
from lit_depth.studies.export.report import how_healed
from lit_depth.studies.export.training import Training
from lit_depth.studies.shared.run_folder import Run

# what a card says of the terms of use, in the words of the source's card
_TERMS = ("license", "license_name", "license_link", "language")
# of a class of transformers, by the hub's name for what it does
_PIPELINES = {"AutoModelForImageTextToText": "image-text-to-text", "AutoModelForCausalLM": "text-generation"}
# what a training leaves of the other weights
_TRAINED = {
    "lora": "All other weights but linear layers and experts of the other blocks are unchanged",
    "full": "The other weights were trained",
}


def card(
    run: Run,
    choice: Choice,
    certificate: Mapping[str, Any],
    parameters: tuple[int, int],
    name: str,
    source: Path,
    handed: Sequence[str] = (),
    healing: Healing | None = None,
) -> str:
    """The text of ``README.md``: what was removed and why, what is known of the quality, the proof, how to use it.

    Args:
        parameters: Of the whole model, and of this one.
        source: Folder of the whole model.
        handed: Names of the files for other tools.
        healing: How the weights were healed; the quality that the choice expects is then that of the healed model.
    """
    checkpoint = run.model.hparams["checkpoint"]
    parts = [
        f"---\n{yaml.safe_dump(_metadata(checkpoint, certificate, source), sort_keys=False)}---",
        f"# {' '.join(name.split())}",
        _removed(checkpoint, choice, certificate, parameters, healing),
        _healed(healing),
        _expected(choice),
        _regained(healing),
        _proof(certificate, healing),
        _use(certificate, handed),
        _reproduce(run, certificate, healing),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(checkpoint: str, certificate: Mapping[str, Any], source: Path) -> dict[str, Any]:
    found = {key: value for key, value in _metadata_of(source / "README.md").items() if key in _TERMS}
    if _is_on_the_hub(checkpoint):
        found["base_model"] = checkpoint
    pipeline = _PIPELINES[certificate["held_to"]["auto_class"]]
    return {**found, "library_name": "transformers", "pipeline_tag": pipeline, "tags": ["lit_depth", "depth-pruned"]}


def _metadata_of(path: Path) -> Mapping[str, Any]:
    """The data in front of a card; nothing where there is none, or none that can be read, which is warned of."""
    if not path.is_file():
        return {}
    try:
        there = metadata_load(str(path))
    except (ValueError, OSError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        warnings.warn(f"{path} cannot be read, so the new card does not repeat its licence: {why}", stacklevel=2)
        return {}
    return there if isinstance(there, Mapping) else {}


def _is_on_the_hub(checkpoint: str) -> bool:
    return checkpoint.count("/") == 1 and not Path(checkpoint).expanduser().is_dir()


def _removed(
    checkpoint: str,
    choice: Choice,
    certificate: Mapping[str, Any],
    parameters: tuple[int, int],
    healing: Healing | None,
) -> str:
    blocks, mask = certificate["blocks"], certificate["mask_id"]
    skipped = " ".join(str(block) for block, bit in enumerate(mask) if bit == "0") or "none"
    left = "All other weights are unchanged" if healing is None else "All other weights but those below are unchanged"
    if healing is not None and healing.training is not None:
        left = _TRAINED[healing.training.method]
    trained = " Nothing was trained." if healing is None else ""
    return (
        f"{checkpoint} without transformer blocks {skipped} (counted from 0): {blocks['export']} of {blocks['source']} "
        f"blocks, {parameters[1]:,} of {parameters[0]:,} parameters. {left}; blocks are "
        f"numbered anew.{trained}\n\nThe blocks were chosen by {choice.origin} (mask `{mask}`)."
    )


def _healed(healing: Healing | None) -> str:
    if healing is None:
        return ""
    if healing.patch is None or healing.training is not None:
        return f"## Healing\n\n{how_healed(healing.entry())}. The skipped blocks took no part in it."
    spans = "\n".join(
        f"- skipped {' '.join(map(str, span.skipped))}: "
        + (
            "nothing was better than no change, nothing changed"
            if math.isinf(span.ridge)
            else f"{', '.join(f'`{name}`' for name in span.weights)} (names of the whole model); "
            f"{span.unexplained:.0%} of the effect of skipping is left on held-out rows"
        )
        for span in healing.patch.spans
    )
    return (
        f"## Healing\n\nPatched in closed form on {healing.num_questions} questions of the {SPLIT} split of "
        f"{healing.task}, with their answers: weights of the blocks that are left were fitted by ridge least squares "
        "to the answers of the whole model, or, where each span of skipped blocks has a line of its own, to its "
        f"states behind the span (after ReplaceMe, arXiv:2505.02819).\n\n{spans}"
    )


def _regained(healing: Healing | None) -> str:
    if healing is None:
        return ""
    known = healing.quality
    share = f"{known['confidence']:.0%} interval"
    return (
        f"Quality and loss are those of this healed checkpoint, on the {known['split']} split, of which it saw "
        f"nothing. The same blocks skipped without healing: {known['masked']['quality']:.3f} ({share} "
        f"{_interval(known['masked']['quality_ci'])}); healing gave back {known['regained']:+.3f} (paired {share} "
        f"{_interval(known['regained_ci'])}). The whole model: {known['whole']['quality']:.3f} ({share} "
        f"{_interval(known['whole']['quality_ci'])})."
    )


def _expected(choice: Choice) -> str:
    known, latency = choice.expected, choice.latency
    lines = []
    if known is not None:
        share = f"{known['confidence']:.0%} interval" if known["confidence"] else "interval"
        lines.append(
            f"- {metric_label(known['metric'])} on {known['num_samples'] or 'the'} questions of {known['task']}: "
            f"{known['quality']:.3f} ({share} {_interval(known['quality_ci'])})"
        )
        if known["drop"] is not None:
            lines.append(
                f"- lost against the whole model, on the same questions: {known['drop']:.3f} ({share} "
                f"{_interval(known['drop_ci'])})"
            )
    if latency is not None:
        whole = f", the whole model {latency['full_request_ms']:.1f} ms" if latency["full_request_ms"] else ""
        lines.append(f"- median time of a request on {latency['device']}: {latency['request_ms']:.1f} ms{whole}")
    return "\n".join(["## Expected quality", "", *lines]) if lines else ""


def _interval(limits: Any) -> str:
    return "not known" if limits is None else f"{limits[0]:.3f} to {limits[1]:.3f}"


def _proof(certificate: Mapping[str, Any], healing: Healing | None) -> str:
    cases, held, asked = certificate["cases"], certificate["held_to"], certificate["questions"]
    ratio = max(case["ratio"] for case in cases)
    model = "the whole model" if healing is None else "the healed model in memory"
    return (
        "## Proof\n\n"
        f"A fresh process loaded this folder with transformers {certificate['versions']['transformers']} in "
        f"{held['dtype']} and held it to {model} with these blocks masked, on {len(asked['ids'])} questions of "
        f"{asked['task']}: all weights are the same bit for bit, logits differ by at most {ratio:.1e} of the largest "
        f"(allowed: {certificate['tolerance']:.1e}), and "
        f"{sum(case['num_tokens'] for case in cases)} greedy tokens of {len(cases)} batches are the same. "
        "`certificate.json` has the numbers and the hashes of both sides."
    )


def _use(certificate: Mapping[str, Any], handed: Sequence[str]) -> str:
    files = "\n".join(f"- `{file}`: {FILES[file]}" for file in handed)
    others = f"`handoff/` has the same choice for other tools:\n\n{files}" if handed else NONE_WHEN_HEALED
    name = certificate["held_to"]["auto_class"]
    needed = f"import {certificate['needs']}  # pip install lit_depth\n" if certificate["needs"] else ""
    return (
        f"## Use\n\n```python\n{needed}from transformers import {name}\n\n"
        f'model = {name}.from_pretrained("<this folder>")\n```'
        f"\n\n{others}"
    )


def _reproduce(run: Run, certificate: Mapping[str, Any], healing: Healing | None) -> str:
    hparams = run.model.hparams
    revision = f" --model.revision {shlex.quote(hparams['revision'])}" if hparams["revision"] else ""
    dtype = f" --model.dtype {hparams['dtype']}" if hparams["dtype"] != "auto" else ""
    mask = f"--mask {certificate['mask_id']}{_healing_options(run, healing)}"
    return (
        "## Reproduce\n\n```bash\nlit-depth export "
        f"--model.checkpoint {shlex.quote(hparams['checkpoint'])}{revision}{dtype} {mask} --out DIR\n```"
    )


def _healing_options(run: Run, healing: Healing | None) -> str:
    if healing is None:
        return ""
    # a path is of this machine
    data, training = run.datamodule, healing.training
    options = [f"--data.task {healing.task}" if data.path is None else "--data.path QUESTIONS"]
    if healing.patch is not None:
        options.append(f"--data.calibration_samples {data.calibration_samples or healing.num_questions}")
    options.append(f"--data.seed {healing.seed}")
    method = "patch" if training is None else training.method
    if training is not None:
        rank = "" if training.lora_rank is None else f" --lora_rank {training.lora_rank}"
        steps = f"--heal_steps {training.num_steps} --heal_learning_rate {training.learning_rate:g}{rank}"
        options = [steps, *options, f"--data.train_batch_size {training.num_images // training.num_steps}"]
        options += _unlike_default(DepthModule, "model", training) + _unlike_default(DepthDataModule, "data", training)
    return " ".join([f" --heal {method}", *options])


def _unlike_default(of_class: type, group: str, training: Training) -> list[str]:
    """Options of a class that the training read and that are not the class's own."""
    names = set(training._fields) - {"learning_rate"}  # the command has its own
    defaults = {name: each.default for name, each in signature(of_class).parameters.items() if name in names}
    values = {name: getattr(training, name) for name in defaults}
    shown = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return [f"--{group}.{name} '{shown[name]}'" for name in sorted(names) if values.get(name) != defaults.get(name)]


def evaluation_results(run: Run, choice: Choice) -> dict[str, str]:
    """Files of ``.eval_results/`` by name: what the run knows of the quality on a dataset of the hub, in its format.

    The format is that of https://huggingface.co/docs/hub/eval-results, as written by huggingface_hub.
    """
    task, known = run.datamodule.task, choice.expected
    repository, revision = getattr(task, "repository", None), getattr(task, "revision", None)
    if known is None or repository is None or run.datamodule.path is not None or known["task"] != task.name:
        return {}
    metric, interval = metric_label(known["metric"]), _interval(known["quality_ci"])
    entry = EvalResultEntry(
        dataset_id=repository,
        task_id=task.name,
        value=known["quality"],
        dataset_revision=revision if re.fullmatch("[0-9a-f]{40}", revision or "") else None,  # a commit, no branch
        notes=f"{metric}, {known['num_samples']} questions, interval {interval}",
    )
    return {f".eval_results/{task.name}.yaml": yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)}
