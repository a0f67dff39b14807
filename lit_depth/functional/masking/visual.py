"""Skip a block for image tokens alone: their hidden states pass it by, and text tokens run it.

Two forms, for a block that a mask skips:

- ``visual``: text tokens attend to image tokens as before; the block makes keys and values of these from the hidden
  states that pass by. So the output is ``where(is_image, h, block(h))``. This is ShortV (Yuan et al. 2025,
  arXiv:2504.00502), whose "ineffective layers" freeze the visual tokens; there a score chooses them, here a mask.
- ``visual_drop``: text tokens do not attend to image tokens in such a block either: its keys and values of images do
  not exist. With the mask of a prefix this is VTW (Lin et al. 2024, arXiv:2405.05803), which withdraws all visual
  tokens from one block on; other masks let them come back. FastV (Chen et al. 2024, arXiv:2403.06764) drops the part of
  them that gets the least attention; here it is all or none. Positions of text tokens stay as they were in both.

What is computed: where a block is of a known form (`lit_depth.functional.masking.sublayers`) and its attention takes a
mask per query (``sdpa``, ``eager``), keys and values are made of all tokens, while queries, attention and MLP run for
text tokens alone. Any other block runs on all tokens, and the outputs of image tokens are put back: correct, not
faster.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from lit_depth.functional.masking.image_tokens import ImageTokens
from lit_depth.functional.masking.kv_cache import find_cache
from lit_depth.functional.masking.sublayers import HalfForward, find_halves
from lit_depth.functional.model_state import attention_of

# what else the blocks of a known form hand on to their attention, and which of it has an entry per query
_PER_QUERY = ("position_embeddings", "position_ids")
_COUNTED = ("cache_position",)
# attribute of a cache: which of its tokens are of an image
_COLUMNS = "_lit_depth_image_columns"
_CACHE_NAMES = ("cache", "past_key_values", "past_key_value")


class VisualForward:
    """Stands in for the ``forward`` of a block that image tokens skip.

    Args:
        replaced: The instance attribute whose place it takes; None = there was none.
        block: The block.
        block_idx: Its index, which is that of its cache layer.
        image_tokens: Where the image tokens are.
        drops: Whether text tokens do without the keys and values of image tokens, too.
    """

    def __init__(
        self, replaced: object, block: nn.Module, block_idx: int, image_tokens: ImageTokens, drops: bool
    ) -> None:
        block_forward = type(block).forward
        self.block_idx = block_idx
        self.replaced, self.block, self.image_tokens, self.drops = replaced, block, image_tokens, drops
        self.real: Callable[..., Any] = block_forward.__get__(block) if replaced is None else replaced  # type: ignore
        self.names = list(inspect.signature(block_forward).parameters)[2:]  # after self and hidden_states
        self.split = SplitBlock(block) if replaced is None and SplitBlock.fits(block) else None

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        is_image = self.image_tokens.of(hidden_states)
        arguments = dict(zip(self.names, args)) | kwargs
        columns = None
        if self.drops:
            columns = image_columns(find_cache((), arguments), self.block_idx, hidden_states, is_image)
        if columns is None and is_image is None:
            return self.real(hidden_states, *args, **kwargs)
        return visual_output(hidden_states, is_image, columns, arguments, self.real, self.split, self.block)


def visual_output(
    hidden_states: Tensor,
    is_image: Tensor | None,
    columns: Tensor | None,
    arguments: dict[str, Any],
    real: Callable[..., Any],
    split: SplitBlock | None,
    block: nn.Module,
) -> Any:
    """What a block gives where image tokens skip it, in the cheapest way that it allows.

    Args:
        hidden_states: ``[batch, seq, hidden]``.
        is_image: Bool ``[batch, seq]``; None = all of them are text.
        columns: Bool ``[batch, tokens so far]``: tokens whose keys and values nobody reads; None = all are read.
        arguments: The other arguments of the block, by name.
        real: The block's own forward.
        split: How the block runs for some tokens alone; None = it does not.
    """
    if is_image is not None and split is not None and not block.training:
        mask = split.attention_mask(hidden_states, arguments)
        if mask is not None and split.takes(hidden_states, arguments):
            if columns is not None:
                mask = hide_columns(mask, columns, is_image)
            return split(hidden_states, is_image, {**arguments, "attention_mask": mask})
    if columns is not None:
        mask = explicit_mask(block, hidden_states, arguments)
        if mask is None:
            raise ValueError(
                f"cannot drop image tokens from a {type(block).__name__}: expected attention by sdpa or eager with a "
                f"mask [batch, 1, seq, keys], got {_mask_in_words(arguments.get('attention_mask'))}; use skip_tokens "
                "image, or --model.attn_implementation sdpa"
            )
        arguments = {**arguments, "attention_mask": hide_columns(mask, columns, is_image)}
    output = real(hidden_states, **arguments)
    if is_image is None:
        return output
    passed_by = is_image.to(hidden_states.device)[..., None]
    if isinstance(output, Tensor):
        return torch.where(passed_by, hidden_states, output)
    return (torch.where(passed_by, hidden_states, output[0]), *output[1:])


class SplitBlock:
    """A block that makes keys and values of all tokens, and runs queries, attention and MLP for text tokens alone.

    The attention is called twice. The first call gets all tokens and ends as soon as it has given its keys and values
    to the cache; the second gets the text tokens, and the cache hands it the keys and values of all.

    Args:
        block: One that `fits`.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block: Any = block
        self.attend, self.apply_mlp = (HalfForward(None, block, keep_attention) for keep_attention in (True, False))
        attention: Any = self.block.self_attn
        parameters = _parameters(attention)
        self.cache_name = next(name for name in _CACHE_NAMES if name in parameters)

    @staticmethod
    def fits(block: nn.Module) -> bool:
        """Whether a block is of a known form, and its attention hands keys and values to a cache."""
        attention = getattr(block, "self_attn", None)
        if attention is None or find_halves(type(block).forward)[0] is None:
            return False
        parameters = _parameters(attention)
        return any(name in parameters for name in _CACHE_NAMES)

    def takes(self, hidden_states: Tensor, arguments: dict[str, Any]) -> bool:
        """Whether it is known which entry of every tensor among the arguments belongs to which token."""
        known = (*_PER_QUERY, *_COUNTED, "attention_mask")
        unknown = [value for name, value in arguments.items() if name not in known and _holds_tensors(value)]
        shape = hidden_states.shape[:2]
        return not unknown and all(_per_query(arguments.get(name), shape, name) is not None for name in _PER_QUERY)

    def attention_mask(self, hidden_states: Tensor, arguments: dict[str, Any]) -> Tensor | None:
        """See `explicit_mask`."""
        return explicit_mask(self.block, hidden_states, arguments)

    def __call__(self, hidden_states: Tensor, is_image: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Output ``[batch, seq, hidden]`` of the block; ``attention_mask`` has a row per query."""
        is_image = is_image.to(hidden_states.device)
        rows, is_real = text_positions(is_image)
        given = find_cache((), arguments)
        memory = _Memory(given)
        with _without(self.block.self_attn, "q_proj"), suppress(_KeysAreMade):
            self.attend(hidden_states, **{**arguments, self.cache_name: memory})
        if memory.states is None:
            raise ValueError(f"expected a {type(self.block.self_attn).__name__} that gives its keys to the cache")
        chosen = {
            name: _take(arguments[name], rows, name)
            for name in (*_PER_QUERY, *_COUNTED)
            if arguments.get(name) is not None
        }
        mask = _take_queries(arguments["attention_mask"], rows)
        index = rows[..., None].expand(-1, -1, hidden_states.shape[-1])
        text = hidden_states.gather(1, index)
        with _without(self.block.self_attn, "k_proj", "v_proj"):
            text = self.attend(text, **{**arguments, **chosen, "attention_mask": mask, self.cache_name: memory})
        text = self.apply_mlp(text)
        if is_real is None:
            return hidden_states.scatter(1, index, text)
        # rows of fewer text tokens are filled up with ones that are computed and put nowhere
        output = hidden_states.clone()
        output[~is_image] = text[is_real].to(output.dtype)
        return output


def _parameters(module: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(module).forward).parameters


class _KeysAreMade(Exception):
    """The first call of an attention has done what it was called for."""


class _Memory(Cache):
    """Stands in for the cache of one block in two calls of its attention.

    Args:
        cache: The cache that gets the keys and values; None = there is none.
    """

    def __init__(self, cache: Cache | None) -> None:
        super().__init__(layers=[])
        self.cache = cache
        self.states: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of the first call, and end it; hand them to the second."""
        if self.states is not None:
            return self.states
        states = key_states, value_states
        self.states = states if self.cache is None else self.cache.update(*states, *args, **kwargs)
        raise _KeysAreMade


@contextmanager
def _without(attention: Any, *names: str) -> Iterator[None]:
    """Zeros stand in for what these projections give, in a call after which nobody reads it."""
    with ExitStack() as stack:
        for name in names:
            projection = getattr(attention, name, None)
            if type(projection) is nn.Linear and "forward" not in projection.__dict__:
                projection.__dict__["forward"] = partial(_zeros, projection.out_features)
                stack.callback(projection.__dict__.pop, "forward")
        yield


def _zeros(width: int, hidden_states: Tensor) -> Tensor:
    return hidden_states.new_zeros(1).expand(*hidden_states.shape[:-1], width)


def text_positions(is_image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Positions of the text tokens of each row, long ``[batch, longest]``, and which of them are real.

    The second is None where all rows have as many; a shorter row is filled up with its last position.

    >>> text_positions(torch.tensor([[False, True, False], [True, True, False]]))
    (tensor([[0, 2],
            [2, 2]]), tensor([[ True,  True],
            [ True, False]]))
    """
    counts = (~is_image).sum(1)
    longest = max(1, int(counts.max()))
    # a stable order puts text tokens first and keeps their order
    order = is_image.int().argsort(dim=1, stable=True)[:, :longest]
    if bool((counts == longest).all()):
        return order, None
    is_real = torch.arange(longest, device=is_image.device) < counts[:, None]
    last = order.gather(1, (counts - 1).clamp(min=0)[:, None])
    return torch.where(is_real, order, last), is_real


def explicit_mask(block: Any, hidden_states: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    """The attention mask ``[batch or 1, heads or 1, seq, keys]`` of a call, also where it is left to the kernel.

    None where there is no such mask: flash and flex attention take others.
    """
    mask = arguments.get("attention_mask")
    attention = getattr(block, "self_attn", None)
    how = attention_of(getattr(attention, "config", None))
    seq = hidden_states.shape[1]
    if isinstance(mask, Tensor):
        fits = mask.ndim == 4 and mask.shape[-2] == seq and mask.shape[0] in (1, len(hidden_states))
        return mask if fits and how in ("sdpa", "eager") else None
    if mask is not None or how != "sdpa" or not getattr(attention, "is_causal", False):
        return None
    cache = find_cache((), arguments)
    past, num_keys, offset = key_sizes(cache, getattr(attention, "layer_idx", 0), seq)
    queries = torch.arange(past, past + seq, device=hidden_states.device)
    keys = torch.arange(offset, offset + num_keys, device=hidden_states.device)
    return (keys <= queries[:, None])[None, None]


def key_sizes(cache: Cache | None, block_idx: int, num_new: int) -> tuple[int, int, int]:
    """Tokens that a block's cache layer has seen, the keys that it will give back, and the position of their first."""
    if cache is None:
        return 0, num_new, 0
    past = int(cache.get_seq_length(block_idx))
    num_keys, offset = cache.get_mask_sizes(num_new, block_idx)
    return past, int(num_keys), int(offset)


def image_columns(cache: Cache | None, block_idx: int, hidden_states: Tensor, is_image: Tensor | None) -> Tensor | None:
    """Which of the tokens so far are image tokens, bool ``[batch, tokens]``; None where there are none.

    The cache remembers those of earlier forwards.

    Raises:
        ValueError: If the cache has got another number of rows meanwhile.
    """
    batch, seq = hidden_states.shape[:2]
    new = torch.zeros(batch, seq, dtype=torch.bool, device=hidden_states.device)
    new = new if is_image is None else is_image.to(hidden_states.device)
    if cache is None:
        return None if is_image is None else new
    past = int(cache.get_seq_length(block_idx))
    known: Tensor | None = cache.__dict__.get(_COLUMNS)
    if known is None:
        known = new.new_zeros(batch, 0)
    if len(known) != batch:
        raise ValueError(f"expected a KV cache of {len(known)} rows, whose image tokens are known, got {batch} rows")
    # blocks of one forward find what the first of them has noted
    known = nn.functional.pad(known[:, :past], (0, past - known[:, :past].shape[1]))
    known = torch.cat([known, new], dim=1)
    cache.__dict__[_COLUMNS] = known
    return known if known.any() else None


def hide_columns(mask: Tensor, columns: Tensor, is_image: Tensor | None) -> Tensor:
    """An attention mask ``[..., seq, keys]`` under which text tokens see no image token.

    Args:
        columns: Image tokens among those so far, bool ``[batch, tokens]``.
        is_image: Those of this forward; nobody reads what they get, and they go on to see themselves, so that it is a
            number. None = none.
    """
    num_keys, num_seen = mask.shape[-1], columns.shape[1]
    # columns are positions: they end with the newest token where layers grow or slide, begin at 0 where there is room
    columns = columns[:, num_seen - num_keys :] if num_keys < num_seen else columns
    hidden = nn.functional.pad(columns, (0, num_keys - columns.shape[1]))[:, None, None].to(mask.device)
    if is_image is not None:
        hidden = hidden & ~is_image[:, None, :, None].to(mask.device)
    if mask.is_floating_point():
        return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
    return mask & ~hidden


def _mask_in_words(mask: object) -> str:
    return f"one of {list(mask.shape)}" if isinstance(mask, Tensor) else "none" if mask is None else type(mask).__name__


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Cache):
        return False
    if isinstance(value, tuple | list | dict):
        return any(map(_holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor)


def _per_query(value: Any, shape: tuple[int, ...], name: str) -> bool | None:
    """True unless some tensor has no entry per token; None then."""
    if value is None:
        return True
    if isinstance(value, tuple | list):
        return True if all(_per_query(each, shape, name) for each in value) else None
    axes = 2 if name == "position_ids" else 3
    if not isinstance(value, Tensor) or value.ndim < axes:
        return None
    batch, seq = value.shape[-axes], value.shape[1 - axes]
    return True if seq == shape[1] and batch in (1, shape[0]) else None


def _take(value: Any, rows: Tensor, name: str) -> Any:
    """Entries of the tokens at positions ``[batch, tokens]``."""
    if isinstance(value, tuple | list):
        return type(value)(_take(each, rows, name) for each in value)
    if name in _COUNTED:
        return value[: rows.shape[1]]
    axis = -1 if name == "position_ids" else -2
    wanted = [*value.shape]
    wanted[axis - 1] = len(rows)
    value, wanted[axis] = value.expand(wanted), rows.shape[1]
    index = rows if axis == -1 else rows[..., None]
    return value.gather(value.ndim + axis, index.expand(wanted))


def _take_queries(mask: Tensor, rows: Tensor) -> Tensor:
    """Rows of an attention mask, of the tokens at positions ``[batch, tokens]``."""
    if len(mask) == 1 and len(rows) > 1 and bool((rows == rows[:1]).all()):
        return mask[:, :, rows[0]]
    mask = mask.expand(len(rows), -1, -1, -1)
    index = rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1])
    return mask.gather(2, index)
