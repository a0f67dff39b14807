"""Time the stages of a generation: vision, prefill, every decode step, total."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_depth.functional.blocks import find_blocks, find_decoder


class StageTimer:
    """Marks on one time line at the stages' boundaries: CUDA events on a GPU, ``perf_counter`` on the CPU.

    Neighbouring marks bound a stage, so the stages add up to the total and none is a difference of two measurements.
    Events are read once at the end; nothing waits for the device in between.

    The boundaries are found by hooks: the model's forward begins, its decoder begins (everything before it, which is
    the vision tower, the connector and the embedding, is the *vision* stage), its forward ends. The first forward is
    the prefill, each further one a decode step.

    Args:
        model: A Hugging Face decoder (text or vision-language).
        blocks: Dotted path of the decoder blocks, where they cannot be found.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes))
        >>> with StageTimer(model) as timer:
        ...     _ = model.generate(torch.tensor([[1, 2]]), max_new_tokens=3, min_new_tokens=3)
        >>> stages = timer.stages_ms()
        >>> sorted(stages), len(stages["decode_steps"])
        (['decode', 'decode_per_token', 'decode_steps', 'prefill', 'total', 'vision'], 2)
    """

    def __init__(self, model: nn.Module, blocks: str | None = None) -> None:
        self.model = model
        self.decoder = find_decoder(model, find_blocks(model, blocks)) or model
        self.cuda = next(model.parameters()).device.type == "cuda"
        self._marks: list[Any] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> StageTimer:
        self._marks = []
        self._hooks = [
            self.model.register_forward_pre_hook(self._mark),
            self.model.register_forward_hook(self._mark),
        ]
        if self.decoder is not self.model:
            self._hooks.append(self.decoder.register_forward_pre_hook(self._mark))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _mark(self, *_: Any) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def stages_ms(self) -> dict[str, Any]:
        """Milliseconds per stage of what ran inside the context.

        Returns:
            ``vision``, ``prefill``, ``decode`` (all steps with what lies between them), ``decode_per_token`` (None
            without a step), ``decode_steps`` (a list) and ``total`` = vision + prefill + decode.

        Raises:
            ValueError: If the model did not run, or did not finish.
        """
        per_forward = 3 if self.decoder is not self.model else 2
        if not self._marks or len(self._marks) % per_forward:
            raise ValueError(f"expected {per_forward} marks per finished forward, got {len(self._marks)} in all")
        if self.cuda:
            torch.cuda.synchronize()
            times = np.array([self._marks[0].elapsed_time(mark) for mark in self._marks])
        else:
            times = (np.array(self._marks) - self._marks[0]) * 1000.0
        forwards = times.reshape(-1, per_forward)
        steps = len(forwards) - 1
        decode = float(forwards[-1, -1] - forwards[0, -1])
        return {
            "vision": float(forwards[0, -2] - forwards[0, 0]),
            "prefill": float(forwards[0, -1] - forwards[0, -2]),
            "decode": decode,
            "decode_per_token": decode / steps if steps else None,
            "decode_steps": (forwards[1:, -1] - forwards[1:, 0]).tolist(),
            "total": float(forwards[-1, -1] - forwards[0, 0]),
        }


@torch.no_grad()
def time_generation(
    model: nn.Module, inputs: Mapping[str, Tensor], *, new_tokens: int, blocks: str | None = None
) -> dict[str, Any]:
    """Time a greedy generation of exactly ``new_tokens`` tokens; see `StageTimer.stages_ms` for the result."""
    with StageTimer(model, blocks) as timer:
        model.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            pad_token_id=0,
        )
    return timer.stages_ms()


def summarize(samples: list[float]) -> dict[str, float | None]:
    """Percentiles and moments of a list of times.

    >>> summarize([1.0, 2.0, 3.0])["P50"], summarize([1.0, 2.0, 3.0])["P99"]
    (2.0, None)

    Returns:
        ``P50``, ``P95``, ``P99``, ``mean``, ``std``, ``min`` and ``max``; ``P99`` is None for fewer than 10 samples,
        which say nothing about it.
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
