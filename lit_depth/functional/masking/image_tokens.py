"""Which tokens of a prompt are image tokens, and how that reaches the blocks of a model, which see hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_depth.functional.arguments import checked
from lit_depth.functional.masking.kv_cache import find_cache


@checked
def image_token_mask(model: nn.Module, inputs: Mapping[str, Any], num_cached: int = 0) -> Tensor:
    """Which tokens carry the features of an image, bool ``[batch, seq]``: those that `StageTimer` counts as vision.

    They are the tokens of the id that the model's configuration names, or those that ``image_token_mask(inputs,
    num_cached)`` of a model tells, where its family has that method. Tokens around an image (its start, its end, its
    lines) are text.

    Args:
        model: A vision-language model, or a module that holds one.
        inputs: Its inputs, with ``input_ids`` ``[batch, seq]``.
        num_cached: Tokens of the sequence before these, which a KV cache holds.

    Raises:
        ValueError: If the model does not tell its image tokens.

    >>> from lit_depth import load_bundled
    >>> inputs = {"input_ids": torch.ones(1, 5), "image_input_idx": torch.tensor([[[1, 2, -1]]])}
    >>> image_token_mask(load_bundled()[0], inputs)
    tensor([[False,  True,  True, False, False]])
    """
    owner = language_model(model)
    own: Callable[[Mapping[str, Any], int], Tensor] | None = getattr(owner, "image_token_mask", None)
    if own is not None:
        return own(inputs, num_cached)
    check_image_tokens(owner)
    found: Tensor = torch.eq(inputs["input_ids"], _image_token(owner) or 0)
    return found


def check_image_tokens(model: nn.Module) -> None:
    """Raise ValueError for a model whose image tokens `image_token_mask` cannot know."""
    owner = language_model(model)
    if not hasattr(owner, "image_token_mask") and _image_token(owner) is None:
        raise ValueError(
            f"expected a model that tells its image tokens, got a {type(owner).__name__}, whose configuration has no "
            "image_token_id; skip blocks for all tokens, or give a vision-language model"
        )


def language_model(model: nn.Module) -> nn.Module:
    """The outermost Hugging Face model of a module; the module itself if it holds none."""
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)


def _image_token(owner: nn.Module) -> int | None:
    config = getattr(owner, "config", None)
    found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((token for token in found if token is not None), None)


class ImageTokens:
    """Which tokens of the forward that is under way are image tokens.

    Args:
        model: See `image_token_mask`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.owner = language_model(model)
        self.now: Tensor | None = None  # of this forward; None = outside of one, or no token is of an image

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Read the inputs of every forward of the model inside."""
        enter = self.owner.register_forward_pre_hook(self._enter, with_kwargs=True)
        leave = self.owner.register_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()
            self.now = None

    def of(self, hidden_states: Tensor) -> Tensor | None:
        """Bool ``[batch, seq]`` for the hidden states of a block; None where no token is of an image.

        Raises:
            ValueError: If these are not the tokens that the model was given.
        """
        if self.now is not None and self.now.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"expected hidden states of {list(self.now.shape)} tokens, whose ids the model was given, got "
                f"{list(hidden_states.shape[:2])}: its image tokens cannot be told"
            )
        return self.now

    def _enter(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("input_ids")
        self.now = None
        if ids is None:
            raise ValueError("expected input_ids, which tell the image tokens, got a forward without them")
        cache = find_cache(args, kwargs)
        # a token that the model has made is text, whatever its id
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        if ids.shape[1] == 1 and num_cached:
            return
        found = image_token_mask(owner, {**kwargs, "input_ids": ids}, num_cached)
        self.now = found if found.any() else None

    def _leave(self, *_: Any) -> None:
        self.now = None
