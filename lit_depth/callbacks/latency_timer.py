"""Time the requests that a LightningModule answers: vision, prefill, decode steps, total."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lit_depth.callbacks.evaluation import AnyLoopCallback
from lit_depth.functional.arguments import check_least, checked
from lit_depth.functional.latency.stage_timer import StageTimer, summarize

STAGES = ("vision", "prefill", "decode", "decode_per_token", "total")


class LatencyTimer(AnyLoopCallback):
    """Measure every forward and ``generate`` of the Hugging Face model inside a module, in evaluation loops.

    The module need not cooperate: hooks on its model mark the stages' boundaries (see
    `lit_depth.functional.latency.stage_timer.StageTimer`), by CUDA events on a GPU, which are read when a batch is
    over. Used in validation, test and prediction; each process times itself. What other callbacks of this package run
    between two steps is not timed, and neither is a sanity check.

    After the loop :attr:`samples` holds one entry per request, with the indices of its ``batch`` and ``dataloader`` in
    front, and :attr:`summary` their percentiles (see `describe`).
    It logs, of what was measured:

    | key | unit |
    |---|---|
    | ``latency/<stage>_<statistic>_ms`` | milliseconds of a request; stages ``vision``, ``prefill``, ``decode``, \
``decode_per_token``, ``ttft`` and ``total``, statistics ``P50``, ``P95``, ``P99``, ``mean``, ``std``, ``min`` and \
``max`` |
    | ``latency/output_tokens_per_second`` | tokens per second, over all requests |
    | ``latency/peak_memory_bytes`` | most memory of the GPU since the loop began, weights included |

    Args:
        warmup_batches: Batches at the start of the loop that are run but not counted.
        blocks: Dotted path of the block list from the LightningModule, where it cannot be found.

    Raises:
        ValueError: If ``warmup_batches`` is negative. At the start of the loop: if no decoder blocks can be found.

    >>> LatencyTimer(warmup_batches=2).warmup_batches
    2
    """

    @checked
    def __init__(self, warmup_batches: int = 1, blocks: str | None = None) -> None:
        super().__init__(blocks)
        check_least(0, warmup_batches=warmup_batches)
        self.warmup_batches = warmup_batches
        self.samples: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self._seen = 0
        self._timer: StageTimer | None = None  # of the running loop

    def start(self, pl_module: LightningModule, model: nn.Module, path: str) -> None:
        self.samples, self.summary, self._seen = [], {}, 0
        # once: to find the model takes longer than to time it
        self._timer = StageTimer(model, path)
        if next(pl_module.parameters()).device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def before_batch(self) -> None:
        # in a sanity check too: a compiled model goes on without hooks that it has not seen
        assert self._timer is not None
        self._timer.__enter__()

    def after_batch(self) -> None:
        assert self._timer is not None
        self._timer.__exit__(None, None, None)

    def measure(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *place: int) -> bool:
        assert self._timer is not None
        self._seen += 1
        if self._seen > self.warmup_batches:
            where = dict(zip(("batch", "dataloader"), place))
            self.samples += [where | request for request in self._timer.requests()]
        return True

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        self.summary, self._timer = describe(self.samples), None
        if next(pl_module.parameters()).device.type == "cuda":
            self.summary["peak_memory_bytes"] = torch.cuda.max_memory_allocated(pl_module.device)
        flat = {
            f"latency/{stage}_{name}_ms": value
            for stage in (*STAGES, "ttft")
            for name, value in (self.summary.get(stage) or {}).items()
            if value is not None
        }
        for name in ("output_tokens_per_second", "peak_memory_bytes"):
            if self.samples and name in self.summary:
                flat[f"latency/{name}"] = float(self.summary[name])
        return flat

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._timer is not None:
            self._timer.__exit__(None, None, None)
            self._timer = None


def describe(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Percentiles of every stage in milliseconds, of the time to the first token, and tokens per second.

    A stage that no sample has is None; ``ttft`` is vision + prefill, ``output_tokens_per_second`` over all samples. No
    samples give only ``num_requests``.

    >>> describe([])
    {'num_requests': 0}
    """
    if not samples:
        return {"num_requests": 0}
    found: dict[str, Any] = {}
    for stage in STAGES:
        values = [sample[stage] for sample in samples if sample[stage] is not None]
        found[stage] = summarize(values) if values else None
    found["ttft"] = summarize([sample["vision"] + sample["prefill"] for sample in samples])
    seconds = sum(sample["total"] for sample in samples) / 1000
    found["output_tokens_per_second"] = sum(sample["num_output_tokens"] for sample in samples) / seconds
    return found | {"num_requests": len(samples)}
