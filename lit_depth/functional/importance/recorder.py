"""Record the blocks of a model during one forward: what each did to every token, and how it attended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_depth.functional.importance.methods import Method, double
from lit_depth.functional.model_state import attention_of


class BlockRecorder:
    """Hooks on the blocks during one forward, and what they saw: sums over the tokens that are not padding.

    ``attention_mask`` is ``[batch, seq]``, 0 = padding; methods of kind ``states``, ``last_state`` and ``attention``
    are taken.
    """

    def __init__(self, blocks: nn.ModuleList, attention_mask: Tensor, methods: Sequence[Method]) -> None:
        self.blocks = blocks
        self.of_states = [method for method in methods if method.kind in ("states", "last_state")]
        self.of_attention = [method for method in methods if method.kind == "attention"]
        real = attention_mask != 0
        self.shape = real.shape
        # a row's last token is the one with no further to its right
        last = real & (real.flip(1).cumsum(1).flip(1) == 1)
        self.tokens = real.flatten().nonzero().squeeze(1)
        self.is_last = last[real]
        self.sums: dict[int, dict[str, Tensor]] = {block_idx: {} for block_idx in range(len(blocks))}
        self.finite: dict[str, dict[int, Tensor]] = {"hidden states": {}, "attention weights": {}}
        self.seen: set[int] = set()
        self.hooks: list[Any] = []

    def __enter__(self) -> BlockRecorder:
        for block_idx, block in enumerate(self.blocks):
            self.hooks.append(block.register_forward_hook(self._block_hook(block_idx), with_kwargs=True))
            for child in block.children() if self.of_attention else ():
                self.hooks.append(child.register_forward_hook(self._attention_hook(block_idx)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _block_hook(self, block_idx: int) -> Callable[..., None]:
        @torch.no_grad()
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.seen.add(block_idx)
            if not self.of_states:
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
            # float64: late blocks turn a token by so little that 1 - cosine would lose half its digits in float32
            before, after = (double(state.flatten(0, 1)[tokens]) for state in (before, after))
            self.finite["hidden states"][block_idx] = before.isfinite().all() & after.isfinite().all()
            # two methods may average one function over different tokens
            functions = {method.function for method in self.of_states}
            values = {function: function(before=before, after=after) for function in functions}
            last = self.is_last.to(after.device)
            for method in self.of_states:
                value = check_values(method, values[method.function], after.shape[:1])
                self.sums[block_idx][method.name] = (value[last] if method.kind == "last_state" else value).sum()

        return hook

    def _attention_hook(self, block_idx: int) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            weights = _attention_weights(output, self.shape)
            if weights is None:
                return
            # of padding, weights may be NaN
            self.finite["attention weights"][block_idx] = self._by_token(weights.sum(-1)).isfinite().all()
            for method in self.of_attention:
                value = check_values(method, method.function(weights=weights), weights.shape[:3])
                self.sums[block_idx][method.name] = self._by_token(value).mean(1).sum()

        return hook

    def _by_token(self, values: Tensor) -> Tensor:
        """``[batch, heads, queries]`` -> ``[tokens, heads]``, of the tokens that are not padding."""
        return values.transpose(1, 2).flatten(0, 1)[self.tokens.to(values.device)]

    def check(self, decoder: PreTrainedModel | None) -> None:
        """Raise ValueError if a block did not run, gave NaN, or none gave attention weights that are needed."""
        missing = [block_idx for block_idx in range(len(self.blocks)) if block_idx not in self.seen]
        if missing:
            raise ValueError(
                f"expected hooks on every block to fire, blocks {missing} fired none: give the model that holds the "
                "blocks, not compiled"
            )
        for what, finite in self.finite.items():
            broken = [block_idx for block_idx, each in finite.items() if not each]
            if broken:
                raise ValueError(f"expected finite {what}, got NaN or infinite ones first from block {min(broken)}")
        if self.of_attention and not self.finite["attention weights"]:
            used = None if decoder is None else attention_of(decoder.config)
            names = ", ".join(method.name for method in self.of_attention)
            raise ValueError(
                f"{names} needs attention weights, which only eager attention returns, and "
                f"{type(decoder or self.blocks[0]).__name__} gave none (its attention is {used!r} and could not be "
                "switched): load the model with attn_implementation='eager', or leave this method out"
            )

    def totals(self) -> dict[str, Tensor]:
        """Name of a method -> ``[2, num_blocks]``: sums, and the number of tokens (or rows) that they are over."""
        counts = {"states": len(self.tokens), "last_state": int(self.is_last.sum()), "attention": len(self.tokens)}
        found: dict[str, Tensor] = {}
        for method in (*self.of_states, *self.of_attention):
            total = found[method.name] = torch.zeros(2, len(self.blocks), dtype=torch.float64)
            for block_idx, sums in self.sums.items():
                if method.name in sums:
                    total[0, block_idx] = sums[method.name]
                    total[1, block_idx] = counts[method.kind]
        return found


def check_values(method: Method, values: Any, shape: Sequence[int]) -> Tensor:
    """What a method gave, in float64; raise ValueError unless it is one number for each of what it was given."""
    if not isinstance(values, Tensor) or values.shape != torch.Size(shape):
        given = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{method.name}: expected a tensor of shape {list(shape)}, got {given}")
    return double(values)


def _attention_weights(output: Any, shape: torch.Size) -> Tensor | None:
    """The ``[batch, heads, seq, seq]`` tensor among what an attention module returned."""
    length = shape[1]
    for value in output if isinstance(output, tuple) else ():
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[::2] == shape and value.shape[3] == length:
            return value
    return None
