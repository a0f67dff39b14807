"""Low-rank adapters in the blocks that run, merged into their weights at the end (Hu et al. 2022, arXiv:2106.09685).

The adapters are peft's, which is an extra. What gets one is found by type, not by name: every linear layer, and every
stack of experts' weights, of a block that the mask keeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import check_least, checked
from lit_depth.functional.healing.patch import check_own
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.functional.model_state import only_these_require_grad

INSTALL = "pip install 'lit_depth[lora]'"
# what an adapter adds is multiplied by this over its rank
_ALPHA_PER_RANK = 2


class Adapters(NamedTuple):
    """What was adapted.

    Attributes:
        weights: Their names in ``model.state_dict()``.
        num_parameters: Of all adapters together.
    """

    weights: tuple[str, ...]
    num_parameters: int


def check_peft() -> None:
    """Raise ImportError, which names the extra, where there is no peft."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError(f"low-rank adapters need the package peft: {INSTALL}") from error


@contextmanager
@checked
def adapted(
    model: nn.Module, mask: Tensor, *, blocks: str | None = None, rank: int = 16, seed: int = 0
) -> Iterator[Adapters]:
    """Trainable adapters in the kept blocks inside a ``with`` statement; leaving it merges them into the weights.

    Only they require a gradient inside. An exception takes them away unmerged: the weights are then what they were, bit
    for bit, as they are after no step, since an adapter begins as zero. In either case names of modules and weights are
    the model's own again.

    Args:
        model: Any module that holds a Hugging Face decoder.
        mask: bool ``[num_blocks]``, True = the block runs and is adapted.
        blocks: Dotted path of the block list where it cannot be found unambiguously.
        rank: Of each adapter; of stacked experts, of each expert's.
        seed: Of the adapters' first halves; the state of the global generator stays as it is.

    Raises:
        ValueError: A kept block without such a weight, or weights that are quantised, offloaded or shared.
        ImportError: No peft.
    """
    check_least(1, rank=rank)
    check_peft()
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    module_list = find_blocks(model, blocks)
    layers, stacks = _linear_layers(module_list, mask), _stacked_weights(module_list, mask)
    for block_idx in mask.nonzero().flatten().tolist():
        if not any(name.startswith(f"{block_idx}.") for name in (*layers, *stacks)):
            raise ValueError(
                f"cannot adapt a {type(module_list[block_idx]).__name__}: expected linear layers or experts in it, got "
                "none; train all of its weights instead"
            )
    chosen: list[Any] = [*(layer.weight for layer in layers.values()), *stacks.values()]
    check_own(model, chosen)
    names = {weight: name for name, weight in model.named_parameters()}
    config = LoraConfig(
        r=rank,
        lora_alpha=_ALPHA_PER_RANK * rank,
        # a pattern: names in a list would match as endings too
        target_modules="|".join(map(re.escape, layers)) or [],
        target_parameters=list(stacks) or None,
    )
    with only_these_require_grad(model, ()):
        with torch.random.fork_rng(), torch.inference_mode(False):
            torch.manual_seed(seed)
            tuner: Any = LoraModel(module_list, config, "healing")
        adapters = [weight for weight in module_list.parameters() if weight.requires_grad]
        try:
            yield Adapters(tuple(names[weight] for weight in chosen), sum(weight.numel() for weight in adapters))
            tuner.merge_and_unload()
        except BaseException:
            tuner.unload()
            raise


def _linear_layers(blocks: nn.ModuleList, mask: Tensor) -> dict[str, nn.Linear]:
    return {name: module for name, module in _kept_modules(blocks, mask) if isinstance(module, nn.Linear)}


def _stacked_weights(blocks: nn.ModuleList, mask: Tensor) -> dict[str, nn.Parameter]:
    """Weights of experts, which are no linear layers: one matrix for each expert, stacked."""
    return {
        f"{name}.{own}": weight
        for name, module in _kept_modules(blocks, mask)
        for own, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and not isinstance(module, nn.Conv1d)
    }


def _kept_modules(blocks: nn.ModuleList, mask: Tensor) -> Iterator[tuple[str, nn.Module]]:
    for name, module in blocks.named_modules():
        if name and mask[int(name.partition(".")[0])]:
            yield name, module
