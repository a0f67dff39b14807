"""What other tools are told of a mask: mergekit, llama.cpp's quantizer, and engines that leave out halves of blocks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from lit_depth.functional.masks import MaskSet
from lit_depth.models.export import is_uniform

# whose blocks mergekit 0.1 knows and writes under the names of their files
MERGEKIT = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3"),
    *("olmo2", "granite", "gpt_neox", "gpt2", "cohere", "cohere2"),
)
# whose text models llama.cpp converts
LLAMA_CPP = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "phi3", "olmo", "olmo2", "olmoe"),
    *("granite", "gpt_neox", "gpt2", "cohere", "llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "internvl"),
    *("idefics3", "smolvlm", "mistral3"),
)


def mergekit(model: str, config: PretrainedConfig, masks: MaskSet, dtype: str) -> str | None:
    """A ``passthrough`` merge that keeps the active blocks; None = mergekit does not know the family.

    The form is that of https://github.com/arcee-ai/mergekit.

    Args:
        model: Folder or hub id of the whole model.
        masks: The one mask.
        dtype: Number format of the weights.
    """
    if config.model_type not in MERGEKIT:
        return None
    slices = [
        f"  - sources:\n      - model: {model!r}\n        layer_range: [{start}, {end}]"
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
