"""Weights of few bits: which ones can be loaded here, and which are refused by name."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer

from lit_depth.models.weight_files import entries_of

Quantization = Literal["none", "int8", "nf4"]

# names that safetensors has for formats of which a weight is made without scales beside it
FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# places beside devices, and ways to share a model out
_PLACES = ("auto", "balanced", "balanced_low_0", "sequential", "disk")


def on_loading(kind: Quantization, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What transformers is told to quantise the weights by while it loads them; None = they stay as they are.

    ``int8`` is LLM.int8() (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339), ``nf4`` the 4-bit NormalFloat of
    QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314), without its second quantisation.

    Args:
        kind: By name.
        compute_dtype: Number format in which 4-bit weights are multiplied.
    """
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if kind == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)
    return None


def stored_method(config: PretrainedConfig) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of a checkpoint's configuration, or of its text model's; None where there is none.

    Raises:
        ValueError: If it is empty.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    if found is None:
        return None
    told: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    if not told:
        raise ValueError(
            "expected a quantization_config in config.json that names a quant_method, got an empty one: take the "
            "checkpoint's original config.json, or remove the field if its weights are not quantised"
        )
    return told


def method_name(told: Mapping[str, Any]) -> str:
    """Name of a method of quantisation, with its bits where the name says nothing of them.

    >>> method_name({"quant_method": "bitsandbytes", "load_in_4bit": True})
    'bitsandbytes_4bit'
    """
    name = told.get("quant_method")
    name = "an unnamed method" if name is None else str(getattr(name, "value", name))
    if told.get("load_in_8bit") or told.get("load_in_4bit"):
        return f"bitsandbytes_{'4' if told.get('load_in_4bit') else '8'}bit"
    return name


def check_method(source: str, config: PretrainedConfig, kind: Quantization, device_map: Any) -> None:
    """Refuse weights that are, or are to be, quantised by what this machine cannot run.

    Weights of fp8 and mxfp4 are unpacked by transformers where there are no kernels for them: that is warned of.

    Args:
        source: Of the checkpoint, to be named.
        config: As it is stored.
        kind: To be done on loading.
        device_map: Where the weights are put.

    Raises:
        ValueError: If a package or device is missing, or transformers does not know the method.
    """
    stored = stored_method(config)
    if stored is None and kind == "none":
        return
    if stored is not None and kind != "none":
        raise ValueError(
            f"expected --model.quantization none, got {kind}: the weights of {source} are quantised already "
            f"({method_name(stored)})"
        )
    told = stored or on_loading(kind, torch.float32).to_dict()  # type: ignore[union-attr]  # one of them is there
    name = method_name(told) if stored is not None else f"bitsandbytes ({kind})"
    what = f"the weights of {source} are quantised by {name}" if stored is not None else f"--model.quantization {kind}"
    if method_name(told) not in AUTO_QUANTIZER_MAPPING:
        raise ValueError(f"{what}: expected one of {', '.join(sorted(AUTO_QUANTIZER_MAPPING))}")
    places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    if method_name(told) == "bitsandbytes_4bit" and (
        not torch.cuda.is_available() or any(place in ("cpu", "disk") for place in places)
    ):
        raise ValueError(
            f"{what}: expected them on a CUDA device, because reading 4-bit weights on a CPU changes them "
            "(bitsandbytes 0.50): --model.quantization int8 of an unquantised checkpoint runs there"
        )
    try:
        quantizer = AutoHfQuantizer.from_config(dict(told), pre_quantized=stored is not None)
        quantizer.validate_environment(device_map=device_map, weights_only=True)
    # packages say what is missing as they like
    except Exception as error:
        why = " ".join(str(error).split())
        hint = "; pip install 'lit_depth[quantized]'" if "bitsandbytes" in name else ""
        raise ValueError(f"{what}, which cannot run here: {why or type(error).__name__}{hint}") from error
    if getattr(quantizer.quantization_config, "dequantize", False) and not told.get("dequantize"):
        warnings.warn(
            f"{what}, for which there are no kernels here: they are unpacked, and take the memory of 16-bit weights",
            stacklevel=4,
        )


def check_devices(device_map: str | Mapping[str, Any] | None) -> None:
    """Refuse a map that names no device, or devices that are not there; integers are GPUs.

    Raises:
        ValueError: As `check_places`, or GPUs without CUDA.
    """
    wanted = check_places(device_map)
    gpus = [each for each in wanted if isinstance(each, int) or str(each).startswith("cuda")]
    if gpus and not torch.cuda.is_available():
        raise ValueError(
            f"--model.device_map: expected devices of this machine, got {gpus[0]}, and it has no CUDA device: give "
            "cpu, auto or null"
        )


def check_places(device_map: str | Mapping[str, Any] | None) -> list[Any]:
    """The places that a map names, whether this machine has them or not.

    Raises:
        ValueError: An empty map, the meta device (which holds no numbers), or no device at all.
    """
    wanted = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    if device_map is not None and (not wanted or not all(_is_place(each) for each in wanted)):
        raise ValueError(
            f"--model.device_map: expected auto, balanced, sequential, a device such as cpu or cuda:0, or devices by "
            f"names of modules, got {device_map!r}"
        )
    _check_beside_one_another(device_map)
    return wanted


def _check_beside_one_another(device_map: str | Mapping[str, Any] | None) -> None:
    """Refuse a module around one on the disk: weights of the outer one would be looked for in memory."""
    if not isinstance(device_map, Mapping):
        return
    for inner in (name for name, place in device_map.items() if place == "disk"):
        for outer in device_map:
            if outer != inner and (outer == "" or inner.startswith(f"{outer}.")):
                raise ValueError(
                    f"--model.device_map: expected modules beside one another, got {outer!r} around {inner!r} on the "
                    f"disk: name the other parts of {outer!r} one by one"
                )


def new_offload_folder(parent: str, device_map: str | Mapping[str, Any] | None) -> tempfile.TemporaryDirectory[str]:
    """A new folder for weights on the disk, which goes when what is returned goes.

    Two runs that share ``parent`` do not overwrite each other's.

    Raises:
        ValueError: If there is no ``device_map`` that could put weights there, or the folder cannot be made.
    """
    if device_map is None:
        raise ValueError(
            "--model.offload_folder is for weights that --model.device_map puts on the disk: give that too, or leave "
            "it out"
        )
    try:
        Path(parent).expanduser().mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="lit_depth_", dir=Path(parent).expanduser())
    except OSError as error:
        raise ValueError(
            f"--model.offload_folder: expected a folder that can be written to, got {parent} ({error.strerror})"
        ) from error


def _is_place(place: Any) -> bool:
    if place in _PLACES or (isinstance(place, int) and place >= 0):
        return True
    try:
        return torch.device(place).type != "meta"
    except (RuntimeError, TypeError):  # torch knows no such device
        return False


def check_placed(model: nn.Module, device_map: str | Mapping[str, Any] | None) -> None:
    """Raise ValueError for names of modules in a map that a model does not have: they would place nothing."""
    if not isinstance(device_map, Mapping):
        return
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    strange = [name for name in device_map if name not in known]
    if strange:
        parts = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"--model.device_map: expected names of modules of the model, got {', '.join(map(repr, strange))}; it is "
            f"made of {parts}, and '' is all of it"
        )


def check_stored(folder: Path) -> None:
    """Refuse safetensors files with weights of integers or of eight bits, where no configuration says how to read them.

    transformers would take such numbers as they are, without the scales that belong to them.

    Raises:
        ValueError: Naming the first such weight; if a file is damaged.
    """
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in entries_of(path).items():
            kind = str(entry["dtype"])
            # buffers may hold counts and positions; formats of a few bits are weights wherever they stand, and so
            # are matrices of integers in which several weights are packed
            few_bits = kind.startswith(("I8", "I4", "F8", "F6_", "F4"))
            packed = kind in ("U8", "I16", "U16", "I32", "U32") and len(entry["shape"]) > 1
            if few_bits or packed or (kind not in FLOATING and name.endswith("weight")):
                raise ValueError(
                    f"expected weights in {', '.join(FLOATING)}, got {name} in {kind} ({path.name}), and no "
                    "quantization_config in config.json that says how it was quantised: take the checkpoint's original "
                    "config.json, or an unquantised checkpoint"
                )


def is_quantized(model: nn.Module) -> bool:
    """Whether weights of a loaded model are of few bits."""
    told = getattr(getattr(model, "config", None), "quantization_config", None)
    told = told if told is None or isinstance(told, Mapping) else told.to_dict()
    # the default of a method says that weights were unpacked when they were loaded
    return told is not None and not told.get("dequantize")


def planned_bytes(model: nn.Module, kind: Quantization) -> dict[str, int]:
    """About how many bytes the weights take that are, or will be, quantised, by name; nothing where none are.

    Counted are the weights of linear maps apart from the head (of a method for experts, these), and scales of the
    method's usual groups; which ones a checkpoint left out is taken from its ``quantization_config``.

    Args:
        model: On the meta device.
        kind: To be done on loading.

    Raises:
        ValueError: If the method's bits are not known.
    """
    told = stored_method(model.config) if isinstance(model.config, PretrainedConfig) else None
    if told is None and kind == "none":
        return {}
    told = told or on_loading(kind, torch.float32).to_dict()  # type: ignore[union-attr]  # one of them is there
    bits, of_scales = _bits(told)
    left_out = [
        *(told.get("modules_to_not_convert") or told.get("llm_int8_skip_modules") or told.get("ignore") or ()),
        *((name for name, module in model.named_modules() if module is model.get_output_embeddings())),  # type: ignore[operator]
    ]
    name_of = method_name(told)
    found = {}
    for name, module in model.named_modules():
        for own, weight in module.named_parameters(recurse=False):
            whole = f"{name}.{own}"
            is_map = isinstance(module, nn.Linear) and weight.ndim == 2 and not name_of.startswith("mxfp4")
            is_experts = weight.ndim == 3 and "experts" in name and not name_of.startswith("bitsandbytes")
            if (is_map or is_experts) and not any(part in whole for part in left_out):
                rows = weight.shape[0] if is_map else weight.shape[0] * weight.shape[1]
                per_row = 4 * rows if name_of == "bitsandbytes_8bit" else 0
                found[whole] = round(weight.numel() * (bits + of_scales) / 8) + per_row
    return found


def _bits(told: Mapping[str, Any]) -> tuple[float, float]:
    """Bits of a quantised weight, and its part of the scales."""
    name, group = method_name(told), told.get("group_size") or 128
    if name == "bitsandbytes_4bit":  # a scale of 32 bits for 64 weights, or of 8 and a second one for 256 of these
        return 4, (8 + 32 / 256) / 64 if told.get("bnb_4bit_use_double_quant") else 32 / 64
    if name == "bitsandbytes_8bit":  # a scale for each row
        return 8, 0
    if name in ("mxfp4", "mxfp8"):
        return (4 if name == "mxfp4" else 8), 8 / 32
    if name == "nvfp4":
        return 4, 8 / 16
    if "fp8" in name:
        return 8, 32 / 128**2
    groups = (told.get("config_groups") or {}).values()
    named = [told.get(key) for key in ("bits", "nbits", "w_bit")]
    named += [(each.get("weights") or {}).get("num_bits") for each in groups if isinstance(each, Mapping)]
    named += [{"int8": 8, "float8": 8, "int4": 4, "int2": 2}.get(str(told.get("weights")))]
    known = [each for each in named if isinstance(each, (int, float))]
    if not known:
        raise ValueError(f"cannot plan for weights quantised by {name}: its quantization_config names no bits")
    bits = float(known[0])
    return bits, (16 + bits) / group
