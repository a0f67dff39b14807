"""Floating-point operations of a request under a mask, counted by torch while the model runs, block by block.

Counted are products of matrices, convolutions and attention, two operations for each multiplication and addition;
attention counts all its keys, those that a causal mask hides too. What is not counted, such as norms and activations,
is small beside them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_depth.functional.arguments import check_least
from lit_depth.functional.engine.decoding_configuration import greedy_options
from lit_depth.functional.latency.stage_timer import untimed
from lit_depth.functional.masking.blocks import find_blocks, find_decoder

# as in `StageTimer`: before the decoder begins; the rest of the first forward; all later forwards
FLOP_STAGES = ("vision", "prefill", "decode")
_OUTSIDE = -1
Where = tuple[str, int]


@dataclass(frozen=True)
class RequestFlops:
    """Operations of one request by stage, from which those of any mask follow: blocks add up.

    Attributes:
        outside: What no block does.
        active: What each block does where it is active.
        skipped: What each block does where it is skipped: nothing, unless some tokens or one phase run it nevertheless.

    Example:
        >>> flops = RequestFlops({"prefill": 5}, {"prefill": (10, 10)}, {"prefill": (0, 4)})
        >>> flops.of_mask("11"), flops.of_mask("10")
        ({'prefill': 25, 'total': 25}, {'prefill': 19, 'total': 19})
    """

    outside: Mapping[str, int]
    active: Mapping[str, Sequence[int]]
    skipped: Mapping[str, Sequence[int]]

    def of_mask(self, mask: str) -> dict[str, int]:
        """Operations of each stage, and of all together (``total``), under a mask's id such as ``"1101"``."""
        found = {
            stage: outside
            + sum(pair[bit == "0"] for bit, *pair in zip(mask, self.active[stage], self.skipped[stage], strict=True))
            for stage, outside in self.outside.items()
        }
        return found | {"total": sum(found.values())}


@torch.no_grad()
def count_request(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    masked: Callable[[Tensor], AbstractContextManager[Any]],
    *,
    new_tokens: int,
    blocks: str | None = None,
) -> RequestFlops:
    """Count the operations of a greedy generation of exactly ``new_tokens`` tokens, with and without its blocks.

    The request is run three times: with all blocks, and twice with one block active, so that each is skipped once.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        inputs: One batch of prompts.
        masked: Makes the context in which a mask, bool ``[num_blocks]``, holds; see `lit_depth.functional.masked`.
        new_tokens: Of each prompt; end tokens are ignored.
        blocks: Dotted path of the decoder blocks, where they cannot be found.

    >>> from functools import partial
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from lit_depth.functional import masked
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    >>> flops = count_request(model, {"input_ids": torch.ones(1, 4, dtype=int)}, partial(masked, model), new_tokens=1)
    >>> flops.active["prefill"], flops.skipped["prefill"], flops.outside["prefill"]  # 4 x 448 x 2 + 4 x 4 x 16 x 2
    ((4096, 4096, 4096), (0, 0, 0), 128)
    """
    check_least(1, new_tokens=new_tokens)
    num_blocks = len(find_blocks(model, blocks))
    alone = torch.eye(num_blocks, dtype=torch.bool)[[0, -1]]
    counts = []
    for mask in (torch.ones(num_blocks, dtype=torch.bool), *alone):
        with masked(mask):
            counts.append(_count(model, inputs, new_tokens, blocks))
    full, first, last = counts
    return RequestFlops(
        {stage: full[stage, _OUTSIDE] for stage in FLOP_STAGES},
        {stage: tuple(full[stage, block] for block in range(num_blocks)) for stage in FLOP_STAGES},
        # the first block is skipped where the last one is active; of a single block that is never
        {stage: (last[stage, 0], *(first[stage, block] for block in range(1, num_blocks))) for stage in FLOP_STAGES},
    )


def _count(model: Any, inputs: Mapping[str, Tensor], new_tokens: int, path: str | None) -> Counter[Where]:
    """Operations of a generation by stage and block."""
    blocks = find_blocks(model, path)
    decoder = find_decoder(model, blocks) or model
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter, untimed(), ExitStack() as stack:
        ledger = _Ledger(counter)

        stack.enter_context(decoder.register_forward_pre_hook(lambda *_: ledger.reach_decoder()))
        stack.enter_context(model.register_forward_hook(lambda *_: ledger.end_forward()))
        for block_idx, block in enumerate(blocks):
            enter, leave = partial(ledger.enter, block_idx), partial(ledger.enter, _OUTSIDE)
            # what hooks of others do there belongs to the block
            stack.enter_context(block.register_forward_pre_hook(enter, prepend=True))
            stack.enter_context(block.register_forward_hook(leave))
        model.generate(**inputs, **greedy_options(new_tokens, eos=(), pad=0))
        ledger.close()
    return ledger.counts


class _Ledger:
    """Credits what a counter has counted since the last change of place to the place where it was counted."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter, self.counts = counter, Counter[Where]()
        self.stage, self.block, self.seen = FLOP_STAGES[0], _OUTSIDE, 0

    def close(self) -> None:
        total = self.counter.get_total_flops()
        self.counts[self.stage, self.block] += total - self.seen
        self.seen = total

    def enter(self, block: int, *_: Any) -> None:
        self.close()
        self.block = block

    def reach_decoder(self) -> None:
        if self.stage == FLOP_STAGES[0]:
            self.close()
            self.stage = FLOP_STAGES[1]

    def end_forward(self) -> None:
        self.close()
        self.stage, self.block = FLOP_STAGES[2], _OUTSIDE


def _formulas() -> dict[Any, Callable[..., int]]:
    """Of operations that torch's counter passes by: attention on the CPU, and products of experts with their tokens."""
    names: dict[str, Callable[..., int]] = {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_grouped_mm": _grouped,
    }
    aten: Any = torch.ops.aten
    return {getattr(aten, name): formula for name, formula in names.items() if hasattr(aten, name)}


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores and weighted values, for shapes ``[batch, heads, tokens, width]``."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _grouped(tokens: Sequence[int], maps: Sequence[int], *_: Any, **__: Any) -> int:
    """Each token ``[tokens, width]`` goes through one of the maps ``[experts, width, out]``."""
    return 2 * math.prod(tokens) * maps[-1]
