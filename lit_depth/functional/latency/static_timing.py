"""Time the stages of a generation on static buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lit_depth.functional.engine.static_decode import StaticDecoder
from lit_depth.functional.latency.stage_timer import StageTimer

Decoding = Literal["dynamic", "static"]


def time_static_generation(
    decoder: StaticDecoder, inputs: Mapping[str, Tensor], mask: Tensor | Sequence[bool], *, new_tokens: int
) -> dict[str, Any]:
    """Time a greedy generation of exactly ``new_tokens`` tokens; see `StageTimer.requests` for the result.

    The prompt is read by the model itself. To copy its keys and values into the buffers counts as decoding; to record a
    step does not: a request that a step had to be recorded for is answered again.
    """
    for _ in range(2):
        made = decoder.num_captures
        with StageTimer(decoder.model, decoder.path) as timer:
            decoder.generate(inputs, mask, new_tokens, around_step=timer.step)
        if decoder.num_captures == made:
            break
    (request,) = timer.requests()
    return request


def describe_decoding(decoding: Decoding, device: torch.device) -> str | None:
    """What is told of a way of decoding other than ``generate``'s own; None of that.

    >>> describe_decoding("static", torch.device("cpu"))
    'static buffers'
    """
    if decoding == "dynamic":
        return None
    return "static buffers, CUDA graphs" if device.type == "cuda" else "static buffers"
