"""What makes two runs the same: arguments, model and data, down to the files and weights that an answer depends on."""

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lit_depth.data import DepthDataModule
from lit_depth.functional.fingerprints import weights_digest
from lit_depth.functional.shards import holders_of
from lit_depth.metrics.base import resolve
from lit_depth.models.settings import checkpoint_files, model_settings, processor_settings
from lit_depth.module import DepthModule
from lit_depth.results.file_digests import file_digests
from lit_depth.results.store import MANIFEST, current_versions

# arguments of the model that change an answer; the others are about training or speed
_MODEL_ARGUMENTS = (
    *("checkpoint", "revision", "dtype", "quantization", "tp_plan", "attn_implementation"),
    *("blocks", "granularity", "phase", "decode_without_prompt", "skip_tokens"),
    *("processor_kwargs", "experts_per_token", "max_crops", "chat_template_kwargs", "answer_after"),
)
# files of a run's folder that hold what was measured
_MEASURED = ("**/*.jsonl", "**/batch_size.json", "proxy_scores.json", "records/*.json", "records/*.parquet")
# of these packages versions stand in the manifest
_VERSIONED_CODE = {"builtins", "abc", "typing", "lit_depth", "torch", "torchmetrics", "lightning", "datasets"}
_START_OVER = "Give another --name, or delete the folder to start over."


def identify(
    trainer: Trainer,
    model: DepthModule,
    datamodule: DepthDataModule,
    splits: Sequence[str],
    arguments: Mapping[str, Any],
    constant: bool = True,
) -> dict[str, Any]:
    """Everything that an answer of a run depends on, as JSON.

    That is the command's arguments as far as they change its result, a fingerprint of the chosen samples of every
    split, and the `model_identity`; ``constant``: the result stands beside the best constant answer.
    """
    found = {
        "arguments": {
            **arguments,
            **model_arguments(trainer, model),
            "max_new_tokens": [model.hparams["max_new_tokens"] or task.max_new_tokens for task in datamodule.tasks],
            "data.tasks": [task.name for task in datamodule.tasks],
            "data.metrics": [task.metric for task in datamodule.tasks],
            "data.path": datamodule.path,
            "data.repositories": {
                task.name: [getattr(task, key) for key in ("repository", "config", "revision")]
                for task in datamodule.tasks
                if hasattr(task, "repository") and datamodule.path is None
            },
            **{f"version of {task.name}": task.version for task in datamodule.tasks if hasattr(task, "version")},
            "data.seed": datamodule.seed,
            "data.max_prompt_tokens": datamodule.max_prompt_tokens,
            "data.drop_images": datamodule.drop_images,
            "prompter": _of_prompter(datamodule.prompter),
            **{
                f"data fingerprint, {each.task.name}, {split}": each.eval_dataset(split).fingerprint()
                for each in datamodule.for_each_task()
                for split in splits
            },
            **(_of_constant(datamodule) if constant else {}),
            **_own_code(datamodule),
        },
        "model": model_identity(model, getattr(datamodule.prompter, "processor", None)),
    }
    return as_json(found)


def _of_prompter(prompter: Any) -> dict[str, Any]:
    """How questions are put; one of somebody's own may say no more than its class."""
    settings = getattr(prompter, "settings", None)
    return {"class": type(prompter).__name__} if settings is None else settings()


def _of_constant(datamodule: DepthDataModule) -> dict[str, str]:
    """Digests of the calibration samples on which each constant answer is found."""
    found = {}
    for each in datamodule.for_each_task():
        try:
            samples = each.eval_dataset("calibration").without_images()
        except ValueError:  # then it is found on the split that is reported on
            continue
        asked = repr([(sample.references, sample.options) for sample in samples])
        digest = hashlib.sha256(asked.encode(errors="surrogatepass")).hexdigest()[:16]
        found[f"constant answer's references, {each.task.name}"] = f"{len(samples)} samples, {digest}"
    return found


def _own_code(datamodule: DepthDataModule) -> dict[str, Any]:
    """Digests of the code of tasks and metrics that no version of a package tells; nothing without any."""
    tasks = [type(task) for task in datamodule.tasks]
    metrics = [resolve(task.metric) for task in datamodule.tasks]
    found: dict[str, list[Any]] = {"data.tasks, code": tasks, "data.metrics, code": metrics}
    codes = {name: [code for kind in kinds if (code := source_digests(kind))] for name, kinds in found.items()}
    return {name: code for name, code in codes.items() if code}


def source_digests(kind: Any) -> dict[str, str]:
    """Digests of the source of a class and of its bases, by name, apart from those of installed packages.

    >>> from lit_depth.metrics import ExactMatch
    >>> source_digests(ExactMatch)
    {}
    """
    found = {}
    for base in getattr(kind, "__mro__", ()):
        if base.__module__.partition(".")[0] in _VERSIONED_CODE:
            continue
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):  # typed at a prompt: known by name
            source = ""
        found[f"{base.__module__}.{base.__qualname__}"] = hashlib.sha256(source.encode()).hexdigest()[:16]
    return found


def _remote_code(model: DepthModule) -> dict[str, Path]:
    """Files of the modules that a checkpoint's own code was loaded from: they may lie in another repository."""
    if not model.hparams["trust_remote_code"]:
        return {}
    processor = model.processor
    parts = [model.model, getattr(model.model, "config", None), processor, model.tokenizer]
    parts.append(getattr(processor, "image_processor", None))
    modules = {base.__module__ for part in parts for base in type(part).__mro__}
    # a copy of each, with what these import, under the name of the repository
    packages = {name.rpartition(".")[0] for name in modules if name.startswith("transformers_modules.")}
    loaded = {name: module for name, module in sys.modules.items() if name.rpartition(".")[0] in packages}
    files = {name: getattr(module, "__file__", None) for name, module in sorted(loaded.items())}
    # named without the commit's folder, which is the content's
    return {f"code, {name.rpartition('.')[2]}": Path(file) for name, file in files.items() if file}


def model_arguments(trainer: Trainer, model: DepthModule) -> dict[str, Any]:
    """Arguments that decide how the model answers."""
    named = {f"model.{key}": model.hparams[key] for key in _MODEL_ARGUMENTS}
    if model.is_split:  # sums over other shares are rounded otherwise
        named["model.tp_plan"] = {"plan": model.hparams["tp_plan"], "processes": holders_of(model.model)}
    return {**named, "trainer.precision": str(trainer.precision)}


def model_identity(model: DepthModule, processor: Any = None) -> dict[str, Any]:
    """Which model it is: its settings and its processor's as they are in memory, its files, all of its weights.

    Files and memory say the same of a model that was loaded and left alone. One that was built or changed in Python is
    known by what is in memory; a checkpoint's code, and what a processor keeps to itself, by the files.

    ``processor`` prepares the model's inputs; None = the module's own.
    """
    files = checkpoint_files(model.hparams["checkpoint"], model.hparams["revision"]) | _remote_code(model)
    decoding = model.decoding_configuration()
    del decoding["max_new_tokens"]  # the task's
    return {
        **model_settings(model.model),
        "processor": processor_settings(model.processor if processor is None else processor),
        "files": dict(zip(files, file_digests(files.values()))),
        "weights": weights_digest(model.model),
        "decoding": decoding,
    }


def run_id(identity: Mapping[str, Any]) -> str:
    """Name of a new run in all of its files: made by another version, the same arguments are another run."""
    text = json.dumps([identity, current_versions()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run's folder; None where nothing was measured yet.

    Raises:
        ValueError: If it cannot be read, is that of an earlier version, or is missing beside what was measured.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not isinstance(manifest.get("arguments"), dict):
            raise ValueError("expected an object with arguments")
    except FileNotFoundError:
        measured = next((file for pattern in _MEASURED for file in sorted(folder.glob(pattern))), None)
        if measured is not None:
            raise ValueError(
                f"{folder} has no {MANIFEST} that says whose {measured.relative_to(folder)} is. {_START_OVER}"
            ) from None
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {_START_OVER}") from error
    if not isinstance(manifest.get("model"), dict) or not isinstance(manifest.get("run"), str):
        raise ValueError(f"{path} was written by an earlier version, which did not record the model. {_START_OVER}")
    return manifest


def refuse_other_run(folder: Path, there: Mapping[str, Any], identity: Mapping[str, Any], versions: str) -> None:
    """Refuse to continue a run with another identity, or under other versions of packages.

    Other versions (``any``) may describe a model in other words: then its files and weights have to be the same.

    Raises:
        ValueError: Naming the first thing that differs.
    """
    then, now = there.get("versions", {}), current_versions()
    changed = [f"{name} {then.get(name)} (now {now[name]})" for name in now if then.get(name) != now[name]]
    if changed and versions != "any":
        raise ValueError(
            f"{folder} holds a run made with {', '.join(changed)}, which may answer otherwise. Give another --name, or "
            "--trainer.resume_versions any to go on with it; the manifest then names both"
        )
    for name, before, after in differences(there, identity):
        if not changed or not name.startswith("model.") or name.startswith(("model.files.", "model.weights")):
            raise ValueError(
                f"{folder} holds a run with another {name}: there {_short(before)}, now {_short(after)}. {_START_OVER}"
            )


def check_same_model(file: str | Path, name: str, model: DepthModule, arguments: Mapping[str, Any]) -> None:
    """Refuse the result file of another run that was made with another model, as its manifest beside it says.

    A file that was moved away from its run says nothing of it.

    Raises:
        ValueError: Naming the first thing that differs.
    """
    beside = Path(file).with_name(MANIFEST)
    if not beside.is_file():
        return
    try:
        there = read_manifest(beside.parent)
    except ValueError as error:
        raise ValueError(f"{name}: {file} does not say which model it was made with: {error}") from error
    assert there is not None
    known = {key: there["arguments"].get(key) for key in arguments}
    here = as_json({"arguments": arguments, "model": model_identity(model)})
    for key, then, now in differences({"arguments": known, "model": there["model"]}, here):
        raise ValueError(
            f"{name}: {file} was made with another {key}: there {_short(then)}, here {_short(now)}. Measure it with "
            "this model, or copy the file away from its run to use it all the same"
        )


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Names of the entries that two identities do not share, and both values.

    >>> list(differences({"arguments": {"seed": 1}, "model": {"files": {}}},
    ...                  {"arguments": {"seed": 2}, "model": {"files": {"a.json": "ab"}}}))
    [('seed', 1, 2), ('model.files.a.json', None, 'ab')]
    """
    yield from _differences(there.get("arguments"), now["arguments"], "", 1)
    yield from _differences(there.get("model"), now["model"], "model.", 99)


def _differences(there: Any, now: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any, Any]]:
    if depth and isinstance(there, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *there]):
            yield from _differences(there.get(key), now.get(key), f"{prefix}{key}.", depth - 1)
    elif there != now:
        yield prefix.removesuffix("."), there, now


def as_json(value: Any) -> Any:
    """The value as it is read back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
