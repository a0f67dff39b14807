"""How many rows fit the memory, and how many groups of masks share a block call."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_depth.functional.shards import least_of_holders, own_part

# hidden states of one block call on a CPU
_CALL_BYTES = 2**21


def call_width(model: nn.Module, inputs: Mapping[str, Tensor]) -> int | None:
    """How many groups of masks share a block call; None = all.

    On a CPU a call whose states leave the caches loses what sharing wins, while at batch 1 wide calls are what wins;
    the best width was between 1 and 4 MiB of hidden states wherever it was measured. It follows from shapes alone,
    because kernels round differently at other widths, and no result may depend on the clock. On a GPU wider is never
    slower.
    """
    ids = inputs["input_ids"]
    if ids.device.type != "cpu":
        return None
    hidden_size = model.config.get_text_config(decoder=True).hidden_size  # type: ignore[operator,union-attr]
    return max(1, _CALL_BYTES // (ids.numel() * hidden_size * next(model.parameters()).element_size()))


def bytes_per_row(
    model: nn.Module, inputs: Mapping[str, Tensor], max_new_tokens: int, answer_ids: Tensor | None, num_active: int
) -> int:
    """Memory of one (mask, sample) row: keys and values of its active blocks, hidden states, logits.

    Where all masks share a block call, also what an MLP holds at its widest: for every expert of a token (one in a
    dense block) the input and output, and the gate, the up-projection and their product.
    """
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator,union-attr]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    answer_length = 0 if answer_ids is None else answer_ids.shape[1]
    length = inputs["input_ids"].shape[1] + max(max_new_tokens, answer_length)
    size = next(model.parameters()).element_size()
    width = 4 * config.hidden_size
    if max_new_tokens:
        width += num_active * 2 * heads * head_dim
    if call_width(model, inputs) is None:
        inner = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None)
        experts = getattr(config, "num_experts_per_tok", None) or 1
        width += experts * (2 * config.hidden_size + 3 * (inner or 4 * config.hidden_size))
    return length * width * size + logits_bytes(model, answer_ids)


def logits_bytes(model: nn.Module, answer_ids: Tensor | None) -> int:
    """Memory of the logits of one row: at the prompt's last token, and at those of its answer ``[batch, answer]``."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator,union-attr]
    return (1 + (0 if answer_ids is None else answer_ids.shape[1])) * config.vocab_size * 4


def affordable_bytes(model: nn.Module, one_mask: int = 0) -> int:
    """What the rows of one chunk may take, so that a sweep takes at most three times what one mask after another does.

    On a GPU half of the free memory, and twice what one mask takes with the model. On a CPU a third of what is free,
    and not much more than the model: block calls are narrow there, and larger chunks gain little. Where several
    processes hold the model together, what the fullest of them can take. The last chunk of masks may take an eighth
    more, if that saves another one.

    Args:
        one_mask: Bytes of the rows of one mask.
    """
    return least_of_holders(model, _affordable_here(model, one_mask))


def _affordable_here(model: nn.Module, one_mask: int) -> int:
    parameter = next(model.parameters())
    weights = sum(each.numel() * each.element_size() for each in map(own_part, model.parameters()))
    if parameter.device.type == "cuda":
        free = torch.cuda.mem_get_info(parameter.device)[0]
        # what torch holds for reuse is free for us
        free += torch.cuda.memory_reserved(parameter.device) - torch.cuda.memory_allocated(parameter.device)
        return min(free // 2, max(2**29, 2 * (weights + one_mask)))
    return min(_available_host_memory() // 3, max(2**29, weights * 3 // 2))


def _available_host_memory() -> int:
    """Free memory with what the page cache would give back; 4 GiB where the system does not say."""
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return 4 * 2**30
