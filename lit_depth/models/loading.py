"""Load a model and its processor from a folder or a hub id, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

import lit_depth.models.molmo  # noqa: F401  (registers Molmo with the Auto classes)

DTYPES = ("auto", "float32", "bfloat16", "float16")
BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "molmoe_shapes"


def load_bundled() -> tuple[PreTrainedModel, Any]:
    """The small trained MolmoE that comes with the package, and its processor.

    Example:
        >>> model, processor = load_bundled()
        >>> model.config.text_config.num_hidden_layers
        16
    """
    return load_checkpoint("bundled")


def load_checkpoint(
    checkpoint: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load a model in evaluation mode and its processor (a tokenizer, for a text model).

    Args:
        checkpoint: ``"bundled"``, a folder, or an id on the hub.
        revision: Branch, tag or commit on the hub.
        dtype: ``"auto"`` (as stored), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``...; None = the model's default.
        trust_remote_code: Run code that comes with the checkpoint. Molmo does not need it.

    Raises:
        ValueError: If the folder does not exist, is not a checkpoint, or lacks weights or has unexpected ones.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    source = str(BUNDLED if checkpoint == "bundled" else Path(checkpoint).expanduser())
    _check_source(source)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(source, **common)
    sees_images = type(config) in AutoModelForImageTextToText._model_mapping
    model_class: Any = AutoModelForImageTextToText if sees_images else AutoModelForCausalLM
    try:
        model, report = model_class.from_pretrained(
            source,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **common,
        )
    except SafetensorError as error:
        raise ValueError(f"checkpoint {source} is damaged: {error}") from error
    _check_report(source, report)
    _set_attention(model, attn_implementation)
    processor = (AutoProcessor if sees_images else AutoTokenizer).from_pretrained(source, **common)
    return model.eval(), processor


def new_model(folder: str, *, attn_implementation: str | None = None) -> tuple[PreTrainedModel, Any]:
    """A randomly initialised model from a folder with ``config.json`` and processor files, for training."""
    _check_source(folder)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config)
    _set_attention(model, attn_implementation)
    return model, AutoProcessor.from_pretrained(folder)


def _set_attention(model: PreTrainedModel, name: str | None) -> None:
    # not given to from_pretrained, where a configuration that makes its parts itself may lose it
    try:
        if name is not None:
            model.set_attn_implementation(name)
    except ImportError as error:
        raise ValueError(f"attn_implementation {name!r} is not available: {error}") from error


def _check_source(source: str) -> None:
    folder = Path(source)
    # organisation/name is a hub id, unless the organisation is a folder here
    looks_like_a_path = folder.is_absolute() or source.count("/") != 1 or folder.parent.is_dir()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"expected a checkpoint folder with config.json, got {source} without one")
    elif looks_like_a_path:
        raise ValueError(f"checkpoint folder {source!r} does not exist (a hub id looks like 'organisation/name')")


def _check_report(source: str, report: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(kind) or ())
        if keys:
            shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
            raise ValueError(
                f"checkpoint {source} does not fit its config.json: {len(keys)} {kind.replace('_', ' ')}: {shown}"
            )
