"""A fresh process that loads exported checkpoints with plain transformers and holds them to what was seen before.

``python -m lit_depth.models.certify FOLDER...``: each folder holds `REFERENCES` and `TENSORS`, which the masked model
wrote, and gets a `VERDICT`. Nothing of this package takes part, but for families that plain transformers lacks
(`NEEDS`).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

REFERENCES, TENSORS, VERDICT = "references.json", "references.safetensors", "verdict.json"
# what plain transformers lacks: Molmo of the first release, and the attention of a vision tower that is set right
NEEDS = {"molmo": "lit_depth.models.molmo", "phi4_multimodal": "lit_depth.models.vision_tower"}
# of each row, from the end: the logits of thousands of positions do not fit beside a large model
POSITIONS = 16
# of the largest logit; in other formats one rounding of a number as large as it
FLOAT32_TOLERANCE = 1e-6

# of a configuration, what says nothing of the model
_NO_SETTINGS = ("transformers_version", "_name_or_path")


class Case(NamedTuple):
    """Inputs of a model, and what it made of them."""

    name: str
    inputs: dict[str, Tensor]
    logits: Tensor  # [batch, positions, vocabulary], of the last positions of the prompt
    tokens: Tensor  # [batch, new], greedy, with a KV cache


def tolerance_of(dtype: str) -> float:
    """Largest difference of logits, as a share of the largest logit.

    >>> tolerance_of("float32"), tolerance_of("bfloat16")
    (1e-06, 0.0078125)
    """
    return FLOAT32_TOLERANCE if dtype == "float32" else torch.finfo(getattr(torch, dtype)).eps


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, number formats and all values: of a weight too that no question reaches.

    >>> digest({"a": torch.zeros(2), "b": torch.ones(1)}) == digest({"b": torch.ones(1), "a": torch.zeros(2)})
    True
    """
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


@torch.no_grad()
def observe(model: Any, inputs: Mapping[str, Tensor], generation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits of the last positions and greedy tokens of a batch.

    Args:
        generation: What ``generate`` is given besides.
    """
    keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters
    kept = {"logits_to_keep": POSITIONS} if keeps else {}
    logits = model(**inputs, use_cache=False, **kept).logits[:, -POSITIONS:]
    tokens = model.generate(**inputs, do_sample=False, num_beams=1, use_cache=True, **generation)
    return logits.cpu(), tokens[:, inputs["input_ids"].shape[1] :].cpu()


def write_references(folder: Path, settings: Mapping[str, Any], cases: Sequence[Case]) -> None:
    """Write what a checkpoint is held to.

    Args:
        settings: ``checkpoint`` (its folder), ``auto_class`` of transformers, ``dtype``, ``device``,
            ``attn_implementation`` (null = the model's default), what ``generate`` is given (``generation``), fields of
            the text model's configuration (``fields``), the `digest` of all weights (``weights``), and, where they are
            held too, all `other_settings` (``other_settings``) and the SHA-256 of files that are the source's
            (``files``; null = there is no such file).
    """
    tensors: dict[str, Tensor] = {}
    for number, case in enumerate(cases):
        of_case = {"logits": case.logits, "tokens": case.tokens, **{f"in.{key}": v for key, v in case.inputs.items()}}
        tensors |= {f"{number}.{key}": value.cpu().contiguous() for key, value in of_case.items()}
    save_file(tensors, folder / TENSORS)
    content = {**settings, "threads": torch.get_num_threads(), "cases": [case.name for case in cases]}
    (folder / REFERENCES).write_text(json.dumps(content), encoding="utf-8")


def _read_references(folder: Path) -> tuple[dict[str, Any], list[Case]]:
    settings = json.loads((folder / REFERENCES).read_text(encoding="utf-8"))
    tensors = load_file(folder / TENSORS)
    cases = []
    for number, name in enumerate(settings["cases"]):
        prefix = f"{number}.in."
        inputs = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        cases.append(Case(name, inputs, tensors[f"{number}.logits"], tensors[f"{number}.tokens"]))
    return settings, cases


def compare(case: Case, logits: Tensor, tokens: Tensor, tolerance: float) -> dict[str, Any]:
    """What a case's logits and tokens are beside those of another model.

    >>> case = Case("one", {"input_ids": torch.ones(1, 2)}, torch.tensor([[[1.0, 2.0]]]), torch.tensor([[5, 6]]))
    >>> found = compare(case, torch.tensor([[[1.0, 2.5]]]), torch.tensor([[5, 7]]), 0.1)
    >>> found["ratio"], found["logits_equal"], found["tokens_differ"]
    (0.25, False, 1)
    """
    if logits.shape != case.logits.shape:
        raise ValueError(f"expected logits of shape {list(case.logits.shape)}, got {list(logits.shape)}")
    largest = float(case.logits.abs().max())
    difference = float((logits.double() - case.logits.double()).abs().max())
    mask = case.inputs.get("attention_mask")
    width = max(tokens.shape[1], case.tokens.shape[1])
    padded = [torch.nn.functional.pad(each, (0, width - each.shape[1]), value=-1) for each in (tokens, case.tokens)]
    return {
        "name": case.name,
        "rows": len(tokens),
        "padded_positions": 0 if mask is None else int((mask == 0).sum()),
        "largest_logit": largest,
        "largest_difference": difference,
        "ratio": difference / largest if largest else difference,
        "logits_equal": difference <= tolerance * largest,  # false of NaN too
        "num_tokens": case.tokens.numel(),
        "tokens_differ": int((padded[0] != padded[1]).sum()),
    }


def certify(folder: Path) -> dict[str, Any]:
    """The verdict on the checkpoint of a folder of references."""
    settings, cases = _read_references(folder)
    torch.set_num_threads(settings["threads"])
    kind = json.loads(Path(settings["checkpoint"], "config.json").read_text(encoding="utf-8"))["model_type"]
    needed = importlib.import_module(NEEDS[kind]) if kind in NEEDS else None
    model, report = getattr(transformers, settings["auto_class"]).from_pretrained(
        settings["checkpoint"],
        dtype="auto",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    check_loaded(settings, model, report)
    if settings["attn_implementation"] is not None:
        model.set_attn_implementation(settings["attn_implementation"])
    getattr(needed, "attend_both_ways", lambda _: None)(model)
    model = model.eval().to(settings["device"])
    tolerance = tolerance_of(settings["dtype"])
    found = []
    for case in cases:
        inputs = {name: value.to(model.device) for name, value in case.inputs.items()}
        found.append(compare(case, *observe(model, inputs, settings["generation"]), tolerance))
    return {
        "passed": all(each["logits_equal"] and not each["tokens_differ"] for each in found),
        "tolerance": tolerance,
        "cases": found,
        "needs": NEEDS.get(kind),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__},
    }


def check_loaded(settings: Mapping[str, Any], model: Any, report: Mapping[str, Any]) -> None:
    """Raise ValueError for a model that was loaded with other weights or settings than those it is held to.

    Logits alone would not tell: questions may be shorter than a window of attention, and call few of the experts.
    """
    for name in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(name):
            raise ValueError(f"{name.replace('_', ' ')}: {sorted(map(str, report[name]))[:3]}")
    text = model.config.get_text_config(decoder=True)
    for name, expected in settings["fields"].items():
        if getattr(text, name) != expected:
            raise ValueError(f"expected {name} {expected} in config.json, got {getattr(text, name)}")
    check_settings(settings, Path(settings["checkpoint"]))
    if str(model.dtype) != f"torch.{settings['dtype']}":
        raise ValueError(f"expected weights of {settings['dtype']}, got {model.dtype}")
    if digest(model.state_dict()) != settings["weights"]:
        raise ValueError("expected the weights of the masked model, got others")


def other_settings(config: Any, fields: Sequence[str]) -> dict[str, Any]:
    """All settings of a configuration but number formats, versions, and some fields of the text model.

    Args:
        config: Of transformers.
        fields: Names that are left out; of the text model, not of a vision tower.

    >>> config = transformers.LlamaConfig(num_hidden_layers=3, rope_parameters={"rope_theta": 9.0})
    >>> found = other_settings(config, ["num_hidden_layers"])
    >>> "num_hidden_layers" in found, found["rope_parameters"]
    (False, {'rope_theta': 9.0, 'rope_type': 'default'})
    """
    found = _without(json.loads(config.to_json_string(use_diff=False)), ("dtype", "torch_dtype", *_NO_SETTINGS))
    parts = [found, *(found[name] for name in ("text_config",) if isinstance(found.get(name), dict))]
    for part in parts:
        for name in fields:
            part.pop(name, None)
    return found


def _without(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Settings without some names, in their parts too."""
    kept = {name: value for name, value in settings.items() if name not in names}
    return {name: _without(value, names) if isinstance(value, dict) else value for name, value in kept.items()}


def check_settings(settings: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError for settings that no short question shows: of long prompts, of generation, of the tokenizer."""
    expected = settings.get("other_settings")
    if expected is not None:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        found = other_settings(config, settings["cut"])
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ValueError(
                    f"expected {name} {expected.get(name)} in config.json, as in the source, got {found.get(name)}"
                )
    for name, wanted in settings.get("files", {}).items():
        path = folder / name
        if (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None) != wanted:
            raise ValueError(f"expected {name} as in the source, got {'another' if path.is_file() else 'none'}")


def main(folders: Sequence[str]) -> None:
    """Certify the checkpoint of each folder, one after another."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for folder in map(Path, folders):
        try:
            verdict = certify(folder)
        # whatever is wrong with a checkpoint is a verdict on it
        except Exception as error:
            verdict = {"passed": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        (folder / VERDICT).write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
