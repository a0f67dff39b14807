"""Record the blocks of a model during one forward: what each did to every token, and how it attended."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

STATE_METHODS = (
    "activation_magnitude",
    "relative_magnitude",
    "block_influence",
    "angular_distance",
    "angular_distance_last_token",
)
ENTROPY = "attention_entropy"


def compare_states(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """What a block did to each token, for the first four of :data:`STATE_METHODS`.

    A vector of zeros, such as the embedding of a padding token, has no direction, and nothing can be measured by its
    norm. A block that leaves it as it is changes nothing: all distances are 0. For one that makes something of it, or
    makes it of something, the cosine is 0 (as of `torch.nn.functional.cosine_similarity`: influence 1, angle 1/2), and
    the change is the whole of the state that is not zero: relative magnitude 1.

    Args:
        before: Hidden states that entered it, ``[tokens, hidden]``.
        after: Those that left it.

    Returns:
        Method -> float64 ``[tokens]``, finite for finite states; for ``block_influence`` 1 - cosine of each token.

    >>> x, y = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    >>> {method: value.item() for method, value in compare_states(x, y).items()}  # doctest: +NORMALIZE_WHITESPACE
    {'activation_magnitude': 4.0, 'relative_magnitude': 1.25, 'block_influence': 1.0, 'angular_distance': 0.5}
    >>> zero = torch.zeros(1, 2)
    >>> [compare_states(*states)["block_influence"].item() for states in ((zero, zero), (zero, y), (x, zero))]
    [0.0, 1.0, 1.0]
    """
    # float64: late blocks turn a token by so little that 1 - cosine would lose half its digits in float32
    before, after = _double(before), _double(after)
    norm, change = after.norm(dim=-1), (after - before).norm(dim=-1)
    norms = before.norm(dim=-1) * norm
    cosine = ((before * after).sum(-1) / norms).where(norms != 0, (change == 0).double())
    return {
        "activation_magnitude": norm,
        "relative_magnitude": (change / norm).where(norm != 0, (change != 0).double()),
        "block_influence": 1.0 - cosine,
        "angular_distance": cosine.clamp(-1.0, 1.0).arccos() / math.pi,
    }


def attention_entropy(weights: Tensor) -> Tensor:
    """Entropy of attention weights over their last dimension, in nats.

    Args:
        weights: ``[..., keys]``, from 0 and summing to 1, or to less where the rest goes to no key (an attention sink),
            down to the zeros of a query that sees no key: its entropy is 0.

    Returns:
        Float64 ``[...]``.

    >>> attention_entropy(torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]))
    tensor([0.6931, 1.0397], dtype=torch.float64)
    """
    # the smallest normal number stands in for 0, whose product with its logarithm is 0
    weights = at_least_float32(weights)
    logarithms = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
    return -_double(logarithms.mul_(weights)).sum(-1)


class BlockRecorder:
    """Hooks on the blocks during one forward, and what they saw: sums over the tokens that are not padding."""

    def __init__(self, blocks: nn.ModuleList, attention_mask: Tensor, methods: Sequence[str]) -> None:
        self.blocks = blocks
        self.methods = methods
        real = attention_mask != 0
        self.shape = real.shape
        # a row's last token is the one with no further to its right
        last = real & (real.flip(1).cumsum(1).flip(1) == 1)
        self.tokens = real.flatten().nonzero().squeeze(1)
        self.is_last = last[real]
        self.states: dict[int, Tensor] = {}
        self.entropies: dict[int, Tensor] = {}
        self.seen: set[int] = set()
        self.hooks: list[Any] = []

    def __enter__(self) -> BlockRecorder:
        for block_idx, block in enumerate(self.blocks):
            self.hooks.append(block.register_forward_hook(self._block_hook(block_idx), with_kwargs=True))
            if ENTROPY in self.methods:
                for child in block.children():
                    self.hooks.append(child.register_forward_hook(self._attention_hook(block_idx)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _block_hook(self, block_idx: int) -> Callable[..., None]:
        @torch.no_grad()
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.seen.add(block_idx)
            if set(self.methods).isdisjoint(STATE_METHODS):
                return
            after = output[0] if isinstance(output, tuple) else output
            # accelerate moves inputs behind the back of hooks
            before = (args[0] if args else kwargs["hidden_states"]).to(after.device)
            if before.shape[:2] != self.shape:
                raise ValueError(
                    f"block {block_idx} sees tokens of shape {list(before.shape[:2])}, the attention mask has "
                    f"{list(self.shape)}: padding cannot be told"
                )
            tokens = self.tokens.to(after.device)
            values = compare_states(*(state.flatten(0, 1)[tokens] for state in (before, after)))
            angles = values["angular_distance"]
            sums = [value.sum() for value in values.values()]
            self.states[block_idx] = torch.stack([*sums, angles[self.is_last.to(angles.device)].sum()])

        return hook

    def _attention_hook(self, block_idx: int) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            weights = _attention_weights(output, self.shape)
            if weights is not None:
                # [batch, heads, queries] -> [tokens, heads]
                entropy = attention_entropy(weights).transpose(1, 2).flatten(0, 1)
                self.entropies[block_idx] = entropy[self.tokens.to(entropy.device)].mean(1).sum()

        return hook

    def check(self, decoder: PreTrainedModel | None) -> None:
        """Raise ValueError if a block did not run, gave NaN, or none gave attention weights that are needed."""
        missing = [block_idx for block_idx in range(len(self.blocks)) if block_idx not in self.seen]
        if missing:
            raise ValueError(
                f"expected hooks on every block to fire, blocks {missing} fired none: give the model that holds the "
                "blocks, not compiled"
            )
        for what, seen in (("hidden states", self.states), ("attention weights", self.entropies)):
            broken = [block_idx for block_idx, sums in seen.items() if not sums.isfinite().all()]
            if broken:  # of finite values, every sum is finite
                raise ValueError(f"expected finite {what}, got NaN or infinite ones first from block {min(broken)}")
        if ENTROPY in self.methods and not self.entropies:
            used = None if decoder is None else decoder.config._attn_implementation
            raise ValueError(
                "attention_entropy needs attention weights, which only eager attention returns, and "
                f"{type(decoder or self.blocks[0]).__name__} gave none (its attention is {used!r} and could not be "
                "switched): load the model with attn_implementation='eager', or leave this method out"
            )

    def totals(self) -> dict[str, Tensor]:
        """Method -> ``[2, num_blocks]``: sums, and the number of tokens (or rows) that they are over."""
        num_tokens, num_rows = len(self.tokens), int(self.is_last.sum())
        found: dict[str, Tensor] = {}
        for block_idx in range(len(self.blocks)):
            values = dict(zip(STATE_METHODS, self.states[block_idx].tolist())) if block_idx in self.states else {}
            if block_idx in self.entropies:
                values[ENTROPY] = float(self.entropies[block_idx])
            for method in values.keys() & set(self.methods):
                total = found.setdefault(method, torch.zeros(2, len(self.blocks), dtype=torch.float64))
                total[0, block_idx] = values[method]
                total[1, block_idx] = num_rows if method == "angular_distance_last_token" else num_tokens
        return found


def _attention_weights(output: Any, shape: torch.Size) -> Tensor | None:
    """The ``[batch, heads, seq, seq]`` tensor among what an attention module returned."""
    length = shape[1]
    for value in output if isinstance(output, tuple) else ():
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[::2] == shape and value.shape[3] == length:
            return value
    return None


def at_least_float32(values: Tensor, copy: bool = False) -> Tensor:
    """Bfloat16 has too few digits for sums of many values."""
    return values.to(torch.promote_types(values.dtype, torch.float32), copy=copy)


def _double(values: Tensor) -> Tensor:
    # Apple's GPUs know no float64
    return (values.cpu() if values.device.type == "mps" else values).double()
