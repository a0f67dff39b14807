"""Write a checkpoint without the blocks that a mask skips: blocks renumbered, settings of single blocks cut.

What belongs to a block is looked up by name: where a family's blocks stand among the names of the weights, and which
fields of its configuration speak of single blocks. Nothing is cut because it happens to have the right length.

Weights keep the names that they have in the source's files. Names go through transformers' conversion on loading
anyway, an engine that reads the source reads the result, and a file is copied tensor by tensor. A model that is in
memory alone is written under the names that ``save_pretrained`` gives it, which are those of its releases too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

import lit_depth.models.molmo  # noqa: F401  (registers Molmo with the Auto classes)
from lit_depth.functional.masks import Masks, MaskSet
from lit_depth.models.settings import checkpoint_files
from lit_depth.models.weight_files import INDEX, HeldWeights, StoredWeights, Weights, floating, write_weights

CONFIG = "config.json"
# of files beside the weights, those that say how a checkpoint may be used
_TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")

# where blocks stand in the names of weights: those of a model with its head first, then of the model without
_TEXT = ("model.layers", "layers")
# as transformers 5 names them, then 4, then those of the first releases
_BESIDE_A_TOWER = ("model.language_model.layers", "language_model.model.layers", "language_model.layers")
BLOCK_PATHS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2"), _TEXT),
    **dict.fromkeys(("gemma3_text", "phi3", "olmo", "olmo2", "olmo3", "olmoe", "smollm3", "granite", "gpt_oss"), _TEXT),
    **dict.fromkeys(("cohere", "cohere2", "phi4_multimodal"), _TEXT),
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "internvl", "paligemma"), _BESIDE_A_TOWER),
    **dict.fromkeys(("gemma3", "mistral3", "aya_vision", "cohere2_vision"), _BESIDE_A_TOWER),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "glm4v"), ("model.language_model.layers", "model.layers")),
    **dict.fromkeys(("smolvlm", "idefics3"), ("model.text_model.layers",)),
    "qwen3_vl": ("model.language_model.layers",),
    "gpt_neox": ("gpt_neox.layers", "layers"),
    "gpt2": ("transformer.h", "h"),
    "molmo": ("model.transformer.blocks", "transformer.blocks"),
    "molmo2": ("model.transformer.blocks", "model.language_model.layers"),
}


@dataclass(frozen=True)
class Fields:
    """Names of a configuration's fields that speak of single blocks, by what they hold.

    Args:
        count: The number of blocks.
        lists: One entry for each block.
        indices: Numbers of some blocks.
        first: A number n, where the first n blocks are of one kind and the others of another.
        rules: What gives a list where there is none, from the number of a block; with the list it is not read.
    """

    count: str = "num_hidden_layers"
    lists: tuple[str, ...] = ()
    indices: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


_WINDOW_BEHIND = Fields(lists=("layer_types",), first=("max_window_layers",))
# by the type of the text model; those that are missing have a number of blocks alone
FIELDS: Mapping[str, Fields] = {
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text"), _WINDOW_BEHIND),
    **dict.fromkeys(("gemma2", "olmo3", "gpt_oss"), Fields(lists=("layer_types",))),
    **dict.fromkeys(("gemma3_text", "cohere2"), Fields(lists=("layer_types",), rules=("sliding_window_pattern",))),
    "smollm3": Fields(lists=("no_rope_layers", "layer_types"), rules=("no_rope_layer_interval",)),
    "qwen3_moe": Fields(indices=("mlp_only_layers",), first=("max_window_layers",)),
    "molmo2_text": Fields(indices=("rope_scaling_layers",)),
    "gpt2": Fields(count="n_layer"),
}


@dataclass(frozen=True)
class Pruned:
    """What `prune_checkpoint` wrote.

    Args:
        skipped: Blocks of the source that are not there any more.
        num_blocks: Of the source.
        copied: Names of the files that are the source's, byte for byte.
    """

    skipped: tuple[int, ...]
    num_blocks: int
    copied: tuple[str, ...]


def prune_checkpoint(source: Path, mask: Masks, out: Path, weights: Weights | None = None) -> Pruned:
    """Write a standard checkpoint that has the active blocks of another one, and no others.

    Args:
        source: Folder of the whole checkpoint.
        mask: Bool ``[num_blocks]``, True = the block is kept.
        out: Folder to write to, which exists and is empty (see `new_folder`).
        weights: Of the whole model, where they are not those of the source's files; its configuration, processor and
            tokenizer are the source's all the same.

    Raises:
        ValueError: If the family is unknown, its blocks depend on their place, the mask does not fit, or files of the
            source are missing.
    """
    raw, config = read_config(source)
    num_blocks = text_config(config).num_hidden_layers
    masks = MaskSet.of(mask, num_blocks, "block")
    if len(masks) != 1:
        raise ValueError(f"expected one mask for all questions, got {len(masks)}: a checkpoint has one depth for all")
    active = masks.active[0]
    check_cuttable(config, active)
    weights = weights or StoredWeights(source)
    place = block_path(config.model_type, weights.sizes, num_blocks)
    if re.search(rf"\b{re.escape(place)}\.\d", json.dumps(raw.get("quantization_config"))):
        raise ValueError("cannot renumber blocks of weights whose quantization names single blocks: export them whole")
    names = renumber(weights.sizes, place, active)
    needed = sum(weights.sizes[name] for name in names)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise ValueError(f"expected {needed / 1e9:.2f} GB of free space for {out.parent}, got {free / 1e9:.2f} GB")
    cut = cut_config(raw, config, active)
    if isinstance(weights, HeldWeights):
        cut = with_dtype(cut, floating(weights.dtype))
    (out / CONFIG).write_text(json.dumps(cut, indent=2) + "\n", encoding="utf-8")
    check_cut(config, AutoConfig.from_pretrained(out, trust_remote_code=False), active)
    write_weights(weights, names, out)
    copied = files_to_copy(source)
    for name, path in copied.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    skipped = tuple(sorted(set(range(num_blocks)) - set(active)))
    return Pruned(skipped, num_blocks, tuple(copied))


def read_config(source: Path) -> tuple[dict[str, Any], PretrainedConfig]:
    """A checkpoint's ``config.json`` as it is written, and as transformers understands it."""
    return json.loads((source / CONFIG).read_text(encoding="utf-8")), AutoConfig.from_pretrained(
        source, trust_remote_code=False
    )


def text_config(config: PretrainedConfig) -> Any:
    """The part of a configuration that the decoder's blocks are made from."""
    return config.get_text_config(decoder=True)


def check_cuttable(config: PretrainedConfig, active: Sequence[int]) -> None:
    """Raise ValueError for a family that is not known, and for blocks that do something by their place.

    Args:
        active: Blocks that are kept.
    """
    kind = config.model_type
    if kind not in BLOCK_PATHS:
        raise ValueError(
            f"expected a family whose blocks are known by name ({', '.join(sorted(BLOCK_PATHS))}), got {kind}: "
            "add it to BLOCK_PATHS and FIELDS of lit_depth.models.export"
        )
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(f"cannot renumber blocks of this {kind}: each divides its attention by its place")
    # their features are added behind the first blocks of the text model, by place
    deep = len(getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ())
    lost = sorted(set(range(deep)) - set(active))
    if lost:
        raise ValueError(
            f"cannot remove block {lost[0]} of a {kind}: features of its vision tower are added behind blocks 0 to "
            f"{deep - 1} by their place, and would be added behind others; keep these blocks"
        )


def block_path(model_type: str, names: Iterable[str], num_blocks: int) -> str:
    """Where the blocks stand in the names of a checkpoint's weights.

    >>> block_path("gpt2", ["wte.weight", "h.0.ln_1.weight", "h.1.ln_1.weight"], 2)
    'h'

    Raises:
        ValueError: If they stand nowhere, in two places, or are not all there.
    """
    paths = BLOCK_PATHS[model_type]
    found = {path: {index for name in names if (index := _index(name, path)) is not None} for path in paths}
    there = [path for path in paths if found[path]]
    if len(there) != 1 or found[there[0]] != set(range(num_blocks)):
        counts = ", ".join(f"{len(found[path])} at {path}" for path in there) or f"none at {' or '.join(paths)}"
        raise ValueError(f"expected the weights of blocks 0 to {num_blocks - 1} at one place, got {counts}")
    return there[0]


def _index(name: str, path: str) -> int | None:
    """Number of the block that a weight belongs to; None = to no block."""
    number = name.removeprefix(f"{path}.").partition(".")[0] if name.startswith(f"{path}.") else ""
    return int(number) if number.isdecimal() else None


def renumber(names: Iterable[str], path: str, active: Sequence[int]) -> dict[str, str]:
    """New name of every weight that stays, by its old one.

    >>> renumber(["layers.0.norm", "layers.2.norm", "norm"], "layers", active=[2])
    {'layers.2.norm': 'layers.0.norm', 'norm': 'norm'}
    """
    place = {block: index for index, block in enumerate(active)}
    new: dict[str, str] = {}
    for name in names:
        block = _index(name, path)
        if block is None:
            new[name] = name
        elif block in place:
            new[name] = f"{path}.{place[block]}{name.removeprefix(f'{path}.{block}')}"
    return new


def cut_config(raw: Mapping[str, Any], config: PretrainedConfig, active: Sequence[int]) -> dict[str, Any]:
    """A ``config.json`` for fewer blocks: the fields that speak of single blocks are cut, all others stay as they are.

    Fields of a text model that lies inside (``text_config``) are cut there; where older releases repeat them outside,
    there too.

    Args:
        raw: As it is written.
        config: As transformers understands it; a list that a rule gives is written out.
        active: Blocks that are kept.
    """
    new: dict[str, Any] = json.loads(json.dumps(raw))
    text, fields = text_config(config), fields_of(raw, config)
    nested = new.get("text_config")
    home = nested if isinstance(nested, dict) else new
    home |= {fields.count: len(active), **_cut_fields(text, fields, active)}
    for name in fields.first:
        if name in home:
            home[name] = sum(block < home[name] for block in active)
    if "decoder_sparse_step" in home:  # every so-manieth block has experts, by its number
        home["decoder_sparse_step"] = 1
    for name in fields.rules:
        home.pop(name, None)
    if home is not new:
        new |= {name: home[name] for name in (fields.count, *fields.lists, *fields.indices) if name in new}
    return new


def fields_of(raw: Mapping[str, Any], config: PretrainedConfig) -> Fields:
    """The fields of a configuration that speak of single blocks."""
    if config.model_type == "molmo" and not isinstance(raw.get("text_config"), dict):
        # the released layout, which has no lists: every block is of one kind
        return Fields(count="n_layers" if "n_layers" in raw else "num_hidden_layers")
    return FIELDS.get(text_config(config).model_type, Fields())


def cut_fields(raw: Mapping[str, Any], config: PretrainedConfig) -> list[str]:
    """Names of the fields of a text model that `cut_config` changes.

    Args:
        raw: As the configuration is written.
        config: As transformers understands it.
    """
    fields = fields_of(raw, config)
    of_text = FIELDS.get(text_config(config).model_type, Fields())
    several = [(each.count, *each.lists, *each.indices, *each.first, *each.rules) for each in (fields, of_text)]
    step = ["decoder_sparse_step"] if "mlp_only_layers" in of_text.indices else []
    return sorted({*several[0], *several[1], *step})


def _cut_fields(text: Any, fields: Fields, active: Sequence[int]) -> dict[str, Any]:
    lists = {name: getattr(text, name) for name in fields.lists}
    indices = {name: set(getattr(text, name)) for name in fields.indices}
    if "mlp_only_layers" in indices:  # two fields say together which blocks have no experts
        step = text.decoder_sparse_step
        dense = {block for block in range(text.num_hidden_layers) if (block + 1) % step or not text.num_experts}
        indices["mlp_only_layers"] |= dense
    return {
        **{name: [values[block] for block in active] for name, values in lists.items()},
        **{name: [new for new, block in enumerate(active) if block in chosen] for name, chosen in indices.items()},
    }


def check_cut(whole: PretrainedConfig, cut: PretrainedConfig, active: Sequence[int]) -> None:
    """Raise ValueError unless transformers reads from a cut configuration what was meant."""
    expected, after = fields_without(whole, active), text_config(cut)
    got = {name: getattr(after, name) for name in expected}
    if got != expected:
        raise ValueError(f"expected a configuration with {expected}, got {got}")


def fields_without(config: PretrainedConfig, active: Sequence[int]) -> dict[str, Any]:
    """What transformers is to read of single blocks from a configuration of the active blocks alone."""
    text = text_config(config)
    return {"num_hidden_layers": len(active), **_cut_fields(text, FIELDS.get(text.model_type, Fields()), active)}


def state_without(model: PreTrainedModel, blocks: nn.ModuleList, active: Sequence[int]) -> dict[str, Tensor]:
    """The weights of a model's active blocks, and of all that is no block, by their names in the smaller model."""
    place = next(name for name, module in model.named_modules() if module is blocks)
    state = model.state_dict()
    return {new: state[old] for old, new in renumber(state, place, active).items()}


def is_uniform(config: PretrainedConfig) -> bool:
    """Whether all blocks are of one kind, so that their place says nothing."""
    text = text_config(config)
    fields = FIELDS.get(text.model_type, Fields())
    lists = [getattr(text, name) for name in fields.lists]
    chosen = _cut_fields(text, fields, range(text.num_hidden_layers))
    counts = [len(chosen[name]) for name in fields.indices]
    return all(len(set(values)) == 1 for values in lists) and all(n in (0, text.num_hidden_layers) for n in counts)


def with_dtype(raw: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A ``config.json`` for weights of another number format, the parts' too."""
    parts = {
        name: with_dtype(part, dtype)
        for name, part in raw.items()
        if isinstance(part, dict) and part.keys() & {"dtype", "torch_dtype"}
    }
    return {name: value for name, value in raw.items() if name != "torch_dtype"} | parts | {"dtype": dtype}


def files_to_copy(source: Path) -> dict[str, Path]:
    """Files of a checkpoint that stay as they are: of processor, tokenizer and generation, templates, code, terms.

    Code that comes with it is copied and never run.
    """
    terms = {path.name: path for pattern in _TERMS for path in sorted(source.glob(pattern)) if path.is_file()}
    found = {**checkpoint_files(str(source)), **terms}
    return {
        name: path
        for name, path in found.items()
        if name not in (CONFIG, INDEX) and not name.endswith((".safetensors", ".index.json"))
    }


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that becomes it when the body ends without an exception, and else is gone.

    Raises:
        ValueError: If there is something at ``out`` already, or it cannot be written.
    """
    check_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {out.parent}: expected a writable folder ({error.strerror})") from error
    try:
        yield hidden
        hidden.chmod(0o777 & ~_umask())  # mkdtemp's own is for this user alone
        check_new(out)
        os.rename(hidden, out)
    except (OSError, SafetensorError) as error:  # such as a full disk
        raise ValueError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}; nothing is left") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def check_new(out: Path) -> None:
    """Raise ValueError if there is something at a path already; an empty folder is nothing."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ValueError(f"expected a new folder, {out} is there already: delete it, or give another --out")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
