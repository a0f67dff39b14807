"""Load a model and its processor from a folder or a hub id, strictly."""

from __future__ import annotations

import copy
import inspect
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    dynamic_module_utils,
)
from transformers.utils import CONFIG_NAME, cached_file

import lit_depth.models.molmo  # noqa: F401  (registers Molmo with the Auto classes)
from lit_depth.functional.arguments import checked
from lit_depth.models.crops import crop_settings
from lit_depth.models.experts import set_experts_per_token
from lit_depth.models.processors import load_processor
from lit_depth.models.quantization import (
    FLOATING,
    Quantization,
    check_devices,
    check_method,
    check_placed,
    check_stored,
    new_offload_folder,
    on_loading,
    stored_method,
)
from lit_depth.models.tensor_parallel import TpPlan, check_alone, split_over_processes
from lit_depth.models.vision_tower import attend_both_ways
from lit_depth.models.weight_files import entries_of

DTYPES = ("auto", "float32", "bfloat16", "float16")
# a folder with none of these has no tokenizer
_TOKENIZERS = ("tokenizer*", "*.model", "vocab*", "processor_config.json", "preprocessor_config.json")
# what a call of an image processor takes that is no business of its user's
_NO_SETTINGS = ("data_format", "device", "disable_grouping", "input_data_format", "return_tensors")
BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "molmoe_shapes"


def load_bundled() -> tuple[PreTrainedModel, Any]:
    """The small trained MolmoE that comes with the package, and its processor.

    Example:
        >>> model, processor = load_bundled()
        >>> model.config.text_config.num_hidden_layers
        16
    """
    return load_checkpoint("bundled")


@checked
def load_checkpoint(
    checkpoint: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: Quantization = "none",
    device_map: str | Mapping[str, int | str] | None = None,
    offload_folder: str | None = None,
    tp_plan: TpPlan | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    processor_kwargs: Mapping[str, Any] | None = None,
    experts_per_token: int | None = None,
    max_crops: int | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load a model in evaluation mode and its processor (a tokenizer, for a text model).

    Args:
        checkpoint: ``"bundled"``, a folder, or an id on the hub.
        revision: Branch, tag or commit on the hub.
        dtype: ``"auto"`` (as stored), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        quantization: ``"int8"`` or ``"nf4"`` quantises the weights by bitsandbytes while they are loaded; ``"none"`` =
            they stay as stored.
        device_map: Where parts of the model go: ``"auto"`` (what fits on the GPUs, the rest in memory and on the disk),
            a device, or devices by the names of modules; None = to this process's GPU if weights are quantised, and
            else wherever the caller moves the model.
        offload_folder: With ``device_map``: where a folder is made for weights on the disk that the model holds in
            another form than its files (experts, fused weights); it goes with the model.
        tp_plan: Split the weights over all processes that torchrun has started: ``"auto"`` by the family's own plan, or
            rules by names of modules beside it (see `lit_depth.models.tensor_parallel.split_over_processes`); None =
            each process loads all.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``...; None = the model's default.
        trust_remote_code: Run code that comes with the checkpoint. Molmo does not need it.
        processor_kwargs: Settings of the processor in place of the checkpoint's own, such as
            ``{"max_pixels": 250_000}``.
        experts_per_token: Experts that each token goes to, in a mixture of experts; None = as the checkpoint says.
        max_crops: Largest number of crops of a picture, its overview not counted; None = as the checkpoint says.

    Raises:
        ValueError: If the folder does not exist, is not a checkpoint, or lacks weights or has unexpected ones; if its
            processor takes no images although its model does, or does not know one of ``processor_kwargs``; if weights
            are quantised by what cannot run here, or by nobody knows what; if the model has no experts, or fewer, or
            its processor no number of crops; if its weights cannot be split so.
    """
    if dtype not in DTYPES:
        raise ValueError(f"expected dtype as one of {', '.join(DTYPES)}, got {dtype!r}")
    source = _source(checkpoint)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _loading(source):
        config = AutoConfig.from_pretrained(source, **common)
    set_experts_per_token(config, experts_per_token)
    split = None
    if tp_plan is not None:
        is_quantized = quantization != "none" or stored_method(config) is not None
        check_alone(tp_plan, device_map=device_map, quantization=is_quantized or None)
        with _loading(source), torch.device("meta"):
            outline = auto_class(config).from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
        split = split_over_processes(outline, tp_plan)
    if device_map is None and (quantization != "none" or stored_method(config)) and torch.cuda.is_available():
        device_map = {"": int(os.environ.get("LOCAL_RANK", 0))}
    check_devices(device_map)
    resaved = None if offload_folder is None else new_offload_folder(offload_folder, device_map)
    check_method(source, config, quantization, device_map)
    numbers: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    quantize = on_loading(quantization, _computing(numbers, config))
    with _loading(source):
        if stored_method(config) is None and Path(source).is_dir():
            check_stored(Path(source))
        model, report = auto_class(config).from_pretrained(
            source,
            dtype=numbers,
            **({} if experts_per_token is None else {"config": config}),
            # None would take the place of the checkpoint's own
            **({} if quantization == "none" else {"quantization_config": quantize}),
            device_map=device_map,
            **({} if resaved is None else {"offload_folder": resaved.name}),
            **({} if split is None else {"distributed_config": split}),
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **common,
        )
        if stored_method(config) is None and not Path(source).is_dir():  # downloaded by now
            check_stored(Path(str(cached_file(source, CONFIG_NAME, revision=revision))).parent)
        processor = _load_processor(config, source, processor_kwargs or {}, max_crops, common)
    if resaved is not None:
        weakref.finalize(model, resaved.cleanup)
    _check_report(source, report)
    check_placed(model, device_map)
    _set_attention(model, attn_implementation)
    attend_both_ways(model)
    return model.eval(), processor


@checked
def new_model(
    checkpoint: str,
    *,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    processor_kwargs: Mapping[str, Any] | None = None,
    experts_per_token: int | None = None,
    max_crops: int | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A randomly initialised model from ``config.json`` and processor files, for training.

    Args:
        checkpoint: As for `load_checkpoint`, as are the other arguments; weights are not needed.
    """
    source = _source(checkpoint)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _loading(source):
        config = AutoConfig.from_pretrained(source, **common)
        set_experts_per_token(config, experts_per_token)
        model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
        processor = _load_processor(config, source, processor_kwargs or {}, max_crops, common)
    _set_attention(model, attn_implementation)
    attend_both_ways(model)
    return model, processor


@checked
def outline_model(
    checkpoint: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    processor_kwargs: Mapping[str, Any] | None = None,
    experts_per_token: int | None = None,
    max_crops: int | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A model on the meta device, which has shapes and no weights, from ``config.json``; and its processor.

    Args:
        checkpoint: As for `load_checkpoint`, as are the other arguments. Of a folder nothing but ``config.json`` is
            needed: without any file of a tokenizer the processor is None.
    """
    source = _source(checkpoint)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _loading(source):
        config = AutoConfig.from_pretrained(source, **common)
        set_experts_per_token(config, experts_per_token)
        with torch.device("meta"):
            model = auto_class(config).from_config(
                config, dtype=_stored_dtype(config, source, dtype), trust_remote_code=trust_remote_code
            )
        _keep_in_float32(model)
        has_tokenizer = not Path(source).is_dir() or any(any(Path(source).glob(name)) for name in _TOKENIZERS)
        processor = (
            _load_processor(config, source, processor_kwargs or {}, max_crops, common) if has_tokenizer else None
        )
    # kernels of a GPU cannot run there; like sdpa they keep no attention weights
    if attn_implementation in ("sdpa", "eager"):
        _set_attention(model, attn_implementation)
    return model.eval(), processor


def _keep_in_float32(model: PreTrainedModel) -> None:
    """Give modules float32 that a family keeps in it, as ``from_pretrained`` does: some in float16, some always."""
    kept = set(model._keep_in_fp32_modules_strict or ())
    kept |= set(model._keep_in_fp32_modules or ()) if model.dtype is torch.float16 else set()
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in kept and model.dtype is not torch.float32:
            module.float()


def _stored_dtype(config: Any, source: str, dtype: str) -> torch.dtype:
    """Number format that `load_checkpoint` gives the weights."""
    if dtype != "auto":
        return getattr(torch, dtype)
    first = (
        entry["dtype"]
        for path in sorted(Path(source).glob("*.safetensors"))
        for entry in entries_of(path).values()
        if entry["dtype"] in FLOATING
    )
    told = config.dtype or FLOATING.get(next(first, "")) or config.get_text_config(decoder=True).dtype
    return told if isinstance(told, torch.dtype) else torch.float32


def _load_processor(
    config: Any, source: str, own: Mapping[str, Any], max_crops: int | None, common: Mapping[str, Any]
) -> Any:
    processor = load_processor(config, source, **common)
    images = getattr(processor, "image_processor", None)
    if images is None and (_is_listed(config) or hasattr(config, "vision_config")):
        raise ValueError(
            f"expected a processor of images beside a {config.model_type} model, got a {type(processor).__name__} "
            "alone: the checkpoint lacks its preprocessor_config.json or processor_config.json"
        )
    known = set() if images is None else _settings_of(images)
    own = {**own, **crop_settings(images, known, own, max_crops)}
    if own:
        processor = _with_settings(processor, own)
    if images is not None and processor.tokenizer.pad_token is None:
        # a processor pads a batch itself; behind the attention mask it does not matter by what
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _with_settings(processor: Any, own: Mapping[str, Any]) -> Any:
    """A processor made anew, and its part for images too, with settings of one's own in place of the checkpoint's.

    Given to ``from_pretrained`` they would reach the tokenizer too, and some yield to the checkpoint's own.
    """
    given, images = copy.deepcopy(dict(own)), getattr(processor, "image_processor", None)
    if images is None:
        raise ValueError(f"expected no processor_kwargs for a model that takes text alone, got {', '.join(own)}")
    of_images, of_all = _settings_of(images), _settings_of(processor)
    unknown = sorted(own.keys() - of_images - of_all)
    if unknown:
        known = ", ".join(sorted(of_images | of_all))
        raise ValueError(
            f"expected settings of a {type(processor).__name__} as processor_kwargs, got {', '.join(unknown)}; "
            f"it has {known}"
        )
    changed = {name: value for name, value in given.items() if name in of_images}
    parts = {name: getattr(processor, name) for name in processor.get_attributes()}
    try:
        parts["image_processor"] = type(images).from_dict({**images.to_dict(), **changed})
        settings = processor.to_dict() | {name: given[name] for name in given.keys() & of_all}
        # made anew, because some read their settings only then
        made = type(processor).from_args_and_dict(list(parts.values()), settings, chat_template=processor.chat_template)
    # they are whatever was typed, and raise whatever comes of it
    except Exception as error:
        raise ValueError(f"processor_kwargs {dict(own)} are refused: {type(error).__name__}: {error}") from error
    # what a class of processors says at every call comes before what its part for images says
    said = getattr(made, "images_kwargs", {})
    made.images_kwargs = {**said, **{name: value for name, value in changed.items() if name in said}}
    return made


def _settings_of(part: Any) -> set[str]:
    """Names of what can be set of a processor, or of its part for images."""
    given = set(inspect.signature(type(part).__init__).parameters)
    # Molmo's part for images shares names of a call with all others, and reads few of them
    named = set(getattr(part, "settings", getattr(getattr(part, "valid_kwargs", None), "__annotations__", ())))
    parts: list[str] = getattr(part, "get_attributes", list)()
    return (given | named) - {"self", "args", "kwargs", "chat_template", *_NO_SETTINGS, *parts}


def _set_attention(model: PreTrainedModel, name: str | None) -> None:
    # not given to from_pretrained, where a configuration that makes its parts itself may lose it
    try:
        if name is not None:
            model.set_attn_implementation(name)
    except ImportError as error:
        raise ValueError(f"attn_implementation {name!r} is not available: {error}") from error


def _computing(dtype: Any, config: Any) -> torch.dtype:
    """Number format of what is not quantised."""
    found = getattr(config, "dtype", None) if dtype == "auto" else dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a model of this configuration."""
    return AutoModelForImageTextToText if _is_listed(config) else AutoModelForCausalLM


def _is_listed(config: Any) -> bool:
    return type(config) in AutoModelForImageTextToText._model_mapping


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Never ask on the terminal whether code may run, and say in a line what is wrong with a checkpoint's files."""
    # a processor loads its parts without saying whether their code is trusted, and then transformers would ask
    seconds, dynamic_module_utils.TIME_OUT_REMOTE_CODE = dynamic_module_utils.TIME_OUT_REMOTE_CODE, 0
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except SafetensorError as error:
        raise ValueError(f"checkpoint {source} is damaged: {error}") from error
    # what transformers raises of files that hold something else than it expects
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"checkpoint {source} needs code that comes with it, expected a model known to transformers or "
                "lit_depth: trust_remote_code true runs such code, which can do anything that you can"
            ) from error
        text = " ".join(str(error).split())
        what = text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
        raise ValueError(f"checkpoint {source} cannot be loaded: {what}") from error
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def _source(checkpoint: str) -> str:
    source = str(BUNDLED if checkpoint == "bundled" else Path(checkpoint).expanduser())
    _check_source(source)
    return source


def _check_source(source: str) -> None:
    folder = Path(source)
    # organisation/name is a hub id, unless the organisation is a folder here
    looks_like_a_path = folder.is_absolute() or source.count("/") != 1 or folder.parent.is_dir()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"expected a checkpoint folder with config.json, got {source} without one")
    elif looks_like_a_path:
        raise ValueError(f"expected a checkpoint, {source!r} does not exist (a hub id looks like 'organisation/name')")


def _check_report(source: str, report: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(kind) or ())
        if keys:
            shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
            raise ValueError(
                f"checkpoint {source} does not fit its config.json: {len(keys)} {kind.replace('_', ' ')}: {shown}"
            )
