"""What other tools are told of a mask: mergekit, llama.cpp's quantizer, and engines that leave out halves of blocks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from lit_depth.functional.masks import MaskSet
from lit_depth.models.export import is_uniform

# of which mergekit 0.1 writes what is written here, bit for bit; it leaves lists of single blocks in settings as they
# are, which transformers then refuses, and loses weights of other families
MERGEKIT = ("llama", "mistral", "phi3", "olmo2", "granite", "gpt2")
# whose text models llama.cpp converts
LLAMA_CPP = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "phi3", "olmo", "olmo2", "olmoe"),
    *("granite", "gpt_neox", "gpt2", "cohere", "llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "internvl"),
    *("idefics3", "smolvlm", "mistral3"),
)
# name of every file, and what it is for
FILES = {
    "block_configs.json": "block by block, whether attention and MLP do nothing (`block_configs` of Nemotron-NAS)",
    "mergekit.yaml": "a passthrough merge for `mergekit-yaml`, which makes the same weights",
    "llama_cpp.txt": "the list for `llama-quantize --prune-layers`",
}
# of a healed checkpoint
NONE_WHEN_HEALED = (
    "There are no files for mergekit or llama.cpp: they would take the source's weights, not healed ones."
)


def texts(model: str, config: PretrainedConfig, masks: MaskSet, dtype: str) -> dict[str, str]:
    """Content of each file of `FILES` that there is for a mask; of one that skips halves of blocks, the first alone.

    Args:
        model: Folder or hub id of the whole model.
        masks: The one mask.
        dtype: Number format of the weights.
    """
    blocks = json.dumps({"block_configs": block_configs(masks)}, indent=2)
    whole = masks.granularity == "block"
    merge, pruned = (mergekit(model, config, masks, dtype), llama_cpp(config, masks)) if whole else (None, None)
    found = {"block_configs.json": blocks, "mergekit.yaml": merge, "llama_cpp.txt": pruned}
    return {name: text.rstrip() + "\n" for name, text in found.items() if text is not None}


def mergekit(model: str, config: PretrainedConfig, masks: MaskSet, dtype: str) -> str | None:
    """A ``passthrough`` merge that keeps the active blocks; None = mergekit would not make the same weights.

    The form is that of https://github.com/arcee-ai/mergekit.

    Args:
        model: Folder or hub id of the whole model.
        masks: The one mask.
        dtype: Number format of the weights.
    """
    if config.model_type not in MERGEKIT:
        return None
    slices = [
        f"  - sources:\n      - model: {json.dumps(model)}\n        layer_range: [{start}, {end}]"
        for start, end in spans(masks.active[0])
    ]
    return "\n".join(["merge_method: passthrough", f"dtype: {dtype}", "slices:", *slices, ""])


def spans(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive blocks, each from its first to behind its last.

    >>> spans([0, 1, 3, 5, 6])
    [(0, 2), (3, 4), (5, 7)]
    """
    groups = itertools.groupby(enumerate(blocks), key=lambda item: item[1] - item[0])
    runs = [[block for _, block in group] for _, group in groups]
    return [(run[0], run[-1] + 1) for run in runs]


def llama_cpp(config: PretrainedConfig, masks: MaskSet) -> str | None:
    """What ``llama-quantize --prune-layers`` takes: the skipped blocks, counted from 0 as its tensors ``blk.N`` are.

    None where nothing is skipped, for families that llama.cpp does not know, and for those whose blocks differ in kind:
    it knows the kind of a block by its place, which pruning changes.

    >>> from transformers import LlamaConfig
    >>> llama_cpp(LlamaConfig(num_hidden_layers=4), MaskSet.of("1010"))
    '1,3'
    """
    skipped = [str(block) for block, runs in enumerate(masks[0].tolist()) if not runs]
    known = config.model_type in LLAMA_CPP and is_uniform(config)
    return ",".join(skipped) if skipped and known else None


def block_configs(masks: MaskSet) -> list[dict[str, Any]]:
    """Which halves of each block do nothing, in the form of Nemotron-NAS (``block_configs`` of DeciLM in vLLM).

    >>> block_configs(MaskSet.of("1101", granularity="sublayer"))
    [{'attention': {'no_op': False}, 'ffn': {'no_op': False}}, {'attention': {'no_op': True}, 'ffn': {'no_op': False}}]
    """
    bits = masks[0].tolist()
    halves = list(zip(bits[::2], bits[1::2])) if masks.granularity == "sublayer" else list(zip(bits, bits))
    return [{"attention": {"no_op": not attends}, "ffn": {"no_op": not has_mlp}} for attends, has_mlp in halves]
