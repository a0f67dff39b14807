"""Which blocks in a row turn the hidden state least: angular distance over spans of blocks (Gromov et al. 2024).

The distance of a span is the angle, in units of 180 degrees, between what enters its first block and what leaves its
last one, at the last token of each row, averaged over rows: arccos(cos(x_l, x_{l+n})) / pi (*The Unreasonable
Ineffectiveness of the Deeper Layers*, arXiv:2403.17887, equation 7). The span of n blocks with the smallest distance is
the one to drop. Unlike scores of single blocks, it knows that blocks in a row may turn the state there and back.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_depth.functional.arguments import check_range, checked, prompt_inputs
from lit_depth.functional.importance.methods import angular_distance, double
from lit_depth.functional.inputs import keep_last, with_positions
from lit_depth.functional.masking.blocks import find_blocks
from lit_depth.functional.model_state import evaluation_mode
from lit_depth.functional.search.ablations import Removed


@checked
@torch.no_grad()
def span_distances(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, blocks: str | nn.ModuleList | None = None
) -> Tensor:
    """Mean angular distance over every span of blocks, one forward per batch.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        batches: Model inputs each; ``attention_mask`` ``[batch, seq]``, 1 = real token, padding on either side.
        blocks: The blocks, or their dotted path, where they cannot be found.

    Returns:
        Float64 ``[num_blocks, num_blocks + 1]`` on the CPU: entry ``[l, n]`` is the distance over blocks l to
        l + n - 1, so 0 for n = 0, and NaN where there are fewer than n blocks from l on.

    Raises:
        ValueError: No row; a block that did not run; states that are NaN or infinite.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> found = span_distances(LlamaForCausalLM(LlamaConfig(**sizes)), [{"input_ids": torch.tensor([[1, 2, 3]])}])
    >>> list(found.shape), found.isnan().sum(1).tolist()
    ([3, 4], [0, 1, 2])
    """
    modules = blocks if isinstance(blocks, nn.ModuleList) else find_blocks(model, blocks)
    total = torch.zeros(len(modules), len(modules) + 1, dtype=torch.float64)
    num_rows = 0
    for inputs in batches:
        states = _last_states(model, modules, inputs)
        for first in range(len(modules)):
            for length in range(len(modules) + 1 - first):
                total[first, length] += angular_distance(states[first], states[first + length]).sum().cpu()
        num_rows += states.shape[1]
    if not num_rows:
        raise ValueError("expected at least one row to measure distances on, got none")
    lengths = torch.arange(len(modules) + 1)
    beyond = torch.arange(len(modules))[:, None] + lengths > len(modules)
    return (total / num_rows).masked_fill(beyond, torch.nan)


@checked
def least_turning_span(distances: Tensor, length: int) -> Removed:
    """The ``length`` blocks in a row with the smallest distance, of equal ones the first: what to drop.

    Raises:
        ValueError: A length outside 1..num_blocks-1.

    >>> least_turning_span(torch.tensor([[0.0, 0.3, 0.1], [0.0, 0.2, float("nan")]]), 1)
    (1,)
    """
    num_blocks = len(distances)
    check_range(1, num_blocks - 1, length=length)
    first = int(distances[: num_blocks - length + 1, length].argmin())
    return tuple(range(first, first + length))


@checked
def _last_states(model: nn.Module, blocks: nn.ModuleList, inputs: Mapping[str, Tensor]) -> Tensor:
    """The last real token's state before every block and behind the last: float64 ``[num_blocks + 1, rows, size]``."""
    inputs = prompt_inputs(model, {name: each for name, each in inputs.items() if name != "labels"})
    real = inputs["attention_mask"] != 0
    # a row's last token is the one with no further to its right
    last = (real & (real.flip(1).cumsum(1).flip(1) == 1)).long().argmax(1)
    found: dict[int, Tensor] = {}

    def hook(place: int, state: Tensor) -> None:
        found[place] = double(state[torch.arange(len(state), device=state.device), last.to(state.device)]).cpu()

    def before(place: int) -> Any:
        return lambda block, args, kwargs: hook(place, args[0] if args else kwargs["hidden_states"])

    def after(block: nn.Module, args: Any, output: Any) -> None:
        hook(len(blocks), output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_pre_hook(before(place), with_kwargs=True) for place, block in enumerate(blocks)]
    hooks.append(blocks[-1].register_forward_hook(after))
    try:
        with evaluation_mode(model):
            model(**with_positions(model, inputs), use_cache=False, **keep_last(model, 1))
    finally:
        for each in hooks:
            each.remove()
    missing = [place for place in range(len(blocks) + 1) if place not in found]
    if missing:
        raise ValueError(f"expected hooks on every block to fire, blocks {missing} fired none")
    states = torch.stack([found[place] for place in range(len(blocks) + 1)])
    if not states.isfinite().all():
        raise ValueError("expected finite hidden states, got NaN or infinite ones")
    return states
