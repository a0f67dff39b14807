"""Time the stages of a generation: vision, prefill, every decode step, total."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from lit_depth.functional.engine.decoding_configuration import greedy_options
from lit_depth.functional.inputs import count_image_tokens
from lit_depth.functional.masking.blocks import find_blocks, find_decoder
from lit_depth.functional.masking.kv_cache import find_cache


class StageTimer:
    """Marks on one time line at the stages' boundaries: CUDA events on a GPU, ``perf_counter`` on the CPU.

    Neighbouring marks bound a stage, so the stages add up to the total and none is a difference of two measurements.
    Events are read once at the end; nothing waits for the device in between.

    The boundaries are found by hooks: the model's forward begins, its decoder begins (everything before it, which is
    the vision tower, the connector and the embedding, is the *vision* stage), its forward ends. A forward over more
    than one token per row, one with another cache than the last, and the first one of all, is a prefill and begins a
    request; each further one is a decode step of it. (A prompt given in several pieces therefore counts as several
    requests.) May be entered again: every time it starts anew.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        blocks: Dotted path of the decoder blocks, where they cannot be found.

    Raises:
        ValueError: If the blocks cannot be found.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes))
        >>> with StageTimer(model) as timer:
        ...     _ = model.generate(torch.tensor([[1, 2]]), max_new_tokens=3, min_new_tokens=3)
        >>> (request,) = timer.requests()
        >>> len(request["decode_steps"]), request["num_text_tokens"], request["num_output_tokens"]
        (2, 2, 3)
    """

    # set by `untimed`
    is_deaf = False

    def __init__(self, model: nn.Module, blocks: str | None = None) -> None:
        self.model = model
        self.decoder = find_decoder(model, find_blocks(model, blocks)) or model
        self.device = next(model.parameters()).device
        self.cuda = self.device.type == "cuda"
        self._forwards: list[_Forward] = []
        self._open: _Forward | None = None
        self._cache: Callable[[], Cache | None] = lambda: None  # of the last forward
        self._hooks: list[Any] = []

    def __enter__(self) -> StageTimer:
        self._forwards, self._open = [], None
        self._hooks = [
            # first and last of all hooks: what others do belongs to the forward
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True),
            self.decoder.register_forward_pre_hook(self._reach_decoder),
            self.model.register_forward_hook(self._end),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # one that an exception ended is left behind
        self._open = None
        if StageTimer.is_deaf:
            return
        self._open = _Forward(self._now(), args, kwargs)
        cache = find_cache(args, kwargs)
        if cache is not None:
            # tells a prompt of a single token from a decode step
            self._open.begins |= cache is not self._cache()
            self._cache = weakref.ref(cache)

    def _reach_decoder(self, *_: Any) -> None:
        if self._open is not None:
            self._open.decoder = self._now()

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._open is not None:
            # a cache that the model made for itself
            cache = find_cache((), output) if isinstance(output, Mapping) else None
            if cache is not None:
                self._cache = weakref.ref(cache)
            self._open.end = self._now()
            if self._forwards and not self._open.begins:
                self._open.inputs = {}  # only those of a request's first forward are read
            self._forwards.append(self._open)
            self._open = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """What runs inside is one decode step, whether it calls the model or repeats what was recorded of a call."""
        forward = _Forward(self._now(), (), {})
        forward.decoder = forward.start
        with untimed():
            yield
        forward.end = self._now()
        self._forwards.append(forward)

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def requests(self) -> list[dict[str, Any]]:
        """What each request that ran inside the context took, in milliseconds, and how many tokens it had.

        Returns:
            For each request ``vision``, ``prefill``, ``decode`` (all steps with what lies between them),
            ``decode_per_token`` (None without a step), ``decode_steps`` (a list), ``total`` = vision + prefill +
            decode, from the first forward's start to the last one's end; ``batch_size``, and over all rows
            ``num_text_tokens`` and ``num_vision_tokens`` of the prompts without padding, and ``num_output_tokens``.

        Raises:
            ValueError: The model was compiled before the timer was entered, so that its stages went by unseen.
        """
        groups: list[list[_Forward]] = []
        for forward in self._forwards:
            if not groups or forward.begins:
                groups.append([])
            groups[-1].append(forward)
        if self.cuda:
            torch.cuda.synchronize(self.device)
        if any(forward.decoder is None for forward in self._forwards):
            raise ValueError(
                "the decoder's hooks did not run: the model was compiled before the timer was entered, and its code "
                "goes on without them; enter the timer before the first call of the compiled model"
            )
        return [self._describe(group) for group in groups]

    def _describe(self, forwards: list[_Forward]) -> dict[str, Any]:
        first, last = forwards[0], forwards[-1]
        steps = len(forwards) - 1
        decode = self._ms(first.end, last.end)
        rows, text, vision = first.count_tokens(self.model)
        return {
            "vision": self._ms(first.start, first.decoder),
            "prefill": self._ms(first.decoder, first.end),
            "decode": decode,
            "decode_per_token": decode / steps if steps else None,
            "decode_steps": [self._ms(forward.start, forward.end) for forward in forwards[1:]],
            "total": self._ms(first.start, last.end),
            "batch_size": rows,
            "num_text_tokens": text,
            "num_vision_tokens": vision,
            "num_output_tokens": rows * len(forwards),
        }

    def _ms(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) if self.cuda else (end - start) * 1000.0


class _Forward:
    """Marks of one forward of the model, and the inputs that tell its tokens (looked at when all is over)."""

    def __init__(self, start: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.start, self.end = start, start
        self.decoder: Any = None
        tokens = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("input_ids")
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        self.batch_size, self.query_length = (1, 1) if tokens is None else tuple(tokens.shape[:2])
        self.begins = self.query_length > 1
        given = {**kwargs, "input_ids": args[0]} if args else kwargs
        # those that tell the tokens; pixels are not kept alive
        self.inputs = {
            name: value
            for name, value in given.items()
            if isinstance(value, Tensor) and (name == "attention_mask" or not value.is_floating_point())
        }

    def count_tokens(self, model: nn.Module) -> tuple[int, int, int]:
        """Rows, and text and vision tokens of all rows without padding."""
        ids, mask = self.inputs.get("input_ids"), self.inputs.get("attention_mask")
        real = self.batch_size * self.query_length if mask is None or mask.ndim != 2 else int((mask != 0).sum())
        own = getattr(model, "num_vision_tokens", None)  # of a family whose tokens are not told by their ids
        if ids is None:
            vision = 0
        else:
            found = count_image_tokens(getattr(model, "config", None), ids) if own is None else own(self.inputs)
            vision = int(found.sum())
        return self.batch_size, real - vision, vision


@contextmanager
def untimed() -> Iterator[None]:
    """Forwards inside are nobody's requests: no `StageTimer` listens."""
    was_deaf, StageTimer.is_deaf = StageTimer.is_deaf, True
    try:
        yield
    finally:
        StageTimer.is_deaf = was_deaf


@torch.no_grad()
def time_generation(
    model: nn.Module, inputs: Mapping[str, Tensor], *, new_tokens: int, blocks: str | None = None
) -> dict[str, Any]:
    """Time a greedy generation of exactly ``new_tokens`` tokens; see `StageTimer.requests` for the result."""
    with StageTimer(model, blocks) as timer:
        model.generate(**inputs, **greedy_options(new_tokens, eos=(), pad=0))  # type: ignore[operator]
    (request,) = timer.requests()
    return request


def summarize(samples: list[float]) -> dict[str, float | None]:
    """Percentiles and moments of a list of times.

    ``P99`` is None for fewer than 10 samples, which say nothing about it.

    >>> summarize([1.0, 2.0, 3.0])["P50"], summarize([1.0, 2.0, 3.0])["P99"]
    (2.0, None)
    """
    values = np.asarray(samples, dtype=float)
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    return {
        "P50": p50,
        "P95": p95,
        "P99": p99 if len(values) >= 10 else None,
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "min": float(values.min()),
        "max": float(values.max()),
    }
