"""Memory of a request, found without any: the decoder runs on the meta device, where tensors have sizes and no bytes.

Nothing is derived from a configuration's fields, so that whatever a family keeps (grouped or compressed keys and
values, sliding windows, recurrent states, experts) is counted as its own code makes it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lit_depth.functional.arguments import check_least, checked
from lit_depth.functional.masking.blocks import find_blocks, find_decoder
from lit_depth.functional.masking.kv_cache import find_cache


class WeightBytes(NamedTuple):
    """Bytes of a model's parameters and buffers; what several names share counts once."""

    blocks: tuple[int, ...]
    """Of each block."""
    text: int
    """Of the rest of the language model: embeddings, last norm, head."""
    vision: int
    """Of all else: vision tower and connector."""

    def total(self, active: Sequence[int]) -> int:
        """Of a model that has these blocks and no others."""
        return sum(self.blocks[block] for block in active) + self.text + self.vision


class RequestBytes(NamedTuple):
    """Bytes of a batch of requests beside the weights."""

    cache: tuple[int, ...]
    """What each block has in the cache when the last token is made."""
    activations: tuple[int, ...]
    """Most that is alive while a block runs on the prompt, without the cache."""
    outside: int
    """Most that is alive before and behind the blocks, such as logits."""

    def cache_total(self, active: Sequence[int]) -> int:
        """Of a mask with these active blocks: the others keep nothing."""
        return sum(self.cache[block] for block in active)

    def activations_peak(self, active: Sequence[int]) -> int:
        """Of a mask with these active blocks: what one frees, the next one takes."""
        return max(self.outside, *(self.activations[block] for block in active))


@checked
def weight_bytes(model: nn.Module, blocks: str | None = None, packed: dict[str, int] | None = None) -> WeightBytes:
    """Bytes of a model's parameters and buffers, by where they belong.

    Args:
        model: On any device, also on ``meta``.
        blocks: Dotted path of the blocks where they cannot be found.
        packed: Bytes of parameters that will be quantised, by name.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=3)
    >>> weight_bytes(LlamaForCausalLM(LlamaConfig(**sizes)))
    WeightBytes(blocks=(1856, 1856, 1856), text=560, vision=0)
    """
    module_list = find_blocks(model, blocks)
    decoder = find_decoder(model, module_list)
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    sizes: dict[int, int] = {}  # tied weights are one object
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        sizes[id(weight)] = (packed or {}).get(name, weight.numel() * weight.element_size())

    def taken(modules: Iterable[nn.Module | None]) -> int:
        inside = [
            id(weight)
            for module in modules
            if module is not None
            for weight in (*module.parameters(), *module.buffers())
        ]
        return sum(sizes.pop(each, 0) for each in inside)

    own = tuple(taken([block]) for block in module_list)
    inside = [each for each in (decoder.modules() if decoder is not None else ()) if isinstance(each, PreTrainedModel)]
    towers = taken(inside[1:])  # of a decoder that holds its vision tower; the first one is itself
    text = taken([decoder, head] if decoder is not None else [model])
    return WeightBytes(own, text, towers + sum(sizes.values()))


@checked
def request_bytes(
    model: nn.Module, batch_size: int, prompt_tokens: int, new_tokens: int, blocks: str | None = None
) -> RequestBytes:
    """Bytes that a batch of requests takes beside the weights, from a run of the decoder on the meta device.

    Attention by ``sdpa`` (and by flash kernels) keeps no weights; ``eager`` does. In a batch of more than one, prompts
    are padded, and so there is a mask ``[batch, 1, prompt, prompt]`` for each kind of block. Not counted are kernels'
    own workspaces, what an allocator keeps in reserve, and the activations of images.

    Args:
        model: On the meta device.
        batch_size: Requests answered together.
        prompt_tokens: Of each request, those of its images too.
        new_tokens: Generated for each; the last one is not fed back, and has no keys and values.
        blocks: Dotted path of the blocks where they cannot be found.

    Raises:
        ValueError: If a number is below 1, or the model cannot run on the meta device.
    """
    check_least(1, batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    module_list = find_blocks(model, blocks)
    decoder = find_decoder(model, module_list)
    if decoder is None or any(not weight.is_meta for weight in model.parameters()):
        raise ValueError(f"expected a Hugging Face model on the meta device, got a {type(model).__name__}")
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    try:
        with torch.no_grad():
            live = _prefill(decoder, module_list, head, batch_size, prompt_tokens)
            final = live.cache
            if new_tokens > 1:
                # the same as one token after another, but for what a window has dropped by then
                with _Shapes():
                    final = _step(decoder, _run(decoder, batch_size, prompt_tokens + new_tokens - 2))
    # a family's own code, on a device that it was not made for
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"cannot plan for a {type(decoder).__name__}, which fails without values: {why}") from error
    kept = [sum(_storages(layer).values()) for layer in final.layers]
    return RequestBytes(tuple(kept), tuple(live.peaks[: len(module_list)]), live.peaks[-1])


class _Shapes(TorchFunctionMode):
    """Kernels that keep no intermediate results return a result of their shape, and do nothing else.

    Without it they would be made of smaller ones on the meta device, or refuse a number format. What asks for the value
    of a tensor, as masks do that may be left out where nothing is padded, is told False.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__bool__":
            return False
        if name == "scaled_dot_product_attention":
            query, _, value, bias = (_argument(args, kwargs, *each) for each in enumerate(_ATTENTION))
            if bias is not None and bias.dtype is torch.bool:  # the kernels take numbers that are added
                self.pass_by(bias.numel() * query.element_size())
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        if name.endswith("grouped_mm") and args[0].ndim == 2 and args[1].ndim == 3:  # tokens by the experts' maps
            return args[0].new_empty(args[0].shape[0], args[1].shape[-1])
        return func(*args, **kwargs)

    def pass_by(self, size: int) -> None:
        """So many bytes are alive inside a kernel."""


_ATTENTION = ("query", "key", "value", "attn_mask")


def _argument(args: Sequence[Any], kwargs: Any, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


class _Live(_Shapes):
    """Bytes of the tensors that torch's functions have returned and that are alive, and their peak while a block runs.

    Weights are alive before, and do not count.
    """

    def __init__(self, model: nn.Module, num_blocks: int) -> None:
        super().__init__()
        weights = (*model.parameters(), *model.buffers())
        self.before = {id(storage): storage for storage in (weight.untyped_storage() for weight in weights)}
        self.now, self.seen = 0, set[int]()
        self.peaks = [0] * (num_blocks + 1)  # the last one is of no block
        self.stage, self.high = num_blocks, 0
        self.cache = Cache(layers=[])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = super().__torch_function__(func, types, args, kwargs)
        for tensor in [returned] if isinstance(returned, Tensor) else _tensors(returned):
            storage = tensor.untyped_storage()
            if id(storage) in self.before or id(storage) in self.seen:
                continue
            self.seen.add(id(storage))
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, id(storage), storage.nbytes())
        self.high = max(self.high, self.now)
        return returned

    def pass_by(self, size: int) -> None:
        self.high = max(self.high, self.now + size)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def enter(self, stage: int) -> None:
        """What follows is done by this block; -1 = by none. The cache so far counts to no block."""
        held = sum(sum(_storages(layer).values()) for layer in self.cache.layers)
        self.peaks[self.stage] = max(self.peaks[self.stage], self.high - held)
        self.stage, self.high = stage, self.now


def _prefill(decoder: Any, blocks: nn.ModuleList, head: Any, batch_size: int, prompt_tokens: int) -> _Live:
    """Run a prompt through the decoder and its last token through the head, and watch what is alive."""
    live = _Live(decoder, len(blocks))

    def begin(stage: int) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            live.cache = find_cache(args, kwargs) or live.cache
            live.enter(stage)

        return hook

    with ExitStack() as stack:
        for block_idx, block in enumerate(blocks):
            stack.enter_context(block.register_forward_pre_hook(begin(block_idx), with_kwargs=True))
            stack.enter_context(block.register_forward_hook(lambda *_: live.enter(-1)))
        with live:
            output = _run(decoder, batch_size, prompt_tokens)
            live.cache = _cache_of(output)
            if head is not None:
                # generate keeps a copy in float32
                logits = head(output[0][:, -1:]).float()
                del logits
        live.enter(-1)
    return live


def _run(decoder: Any, batch_size: int, length: int) -> Any:
    weight = decoder.get_input_embeddings().weight
    hidden = torch.empty(batch_size, length, weight.shape[1], dtype=weight.dtype, device="meta")
    padded = torch.empty(batch_size, length, dtype=torch.long, device="meta") if batch_size > 1 else None
    return decoder(inputs_embeds=hidden, attention_mask=padded, use_cache=True)


def _step(decoder: Any, output: Any) -> Cache:
    """The cache after one more token."""
    key = next(key for key, value in output.items() if isinstance(value, Cache))
    hidden = output[0][:, -1:]
    weight = decoder.get_input_embeddings().weight
    one = torch.empty(*hidden.shape[:2], weight.shape[1], dtype=weight.dtype, device="meta")
    return _cache_of(decoder(inputs_embeds=one, use_cache=True, **{key: output[key]}))


def _cache_of(output: Any) -> Cache:
    found = find_cache((), output)
    if found is None:
        raise NotImplementedError("it returns no cache")
    return found


def _storages(held: Any) -> dict[int, int]:
    """Bytes of what lies in memory behind an object's tensors, however deep; a slice keeps the whole alive."""
    storages = [each.untyped_storage() for each in _tensors(held)]
    return {id(storage): storage.nbytes() for storage in storages}


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
        return
    inner: Iterable[Any] = ()
    if isinstance(held, dict):
        inner = held.values()
    elif isinstance(held, (list, tuple)):
        inner = held
    elif hasattr(held, "__dict__") and not isinstance(held, (type, nn.Module)):
        inner = vars(held).values()
    for each in inner:
        yield from _tensors(each)
