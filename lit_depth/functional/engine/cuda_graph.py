"""Run the same work again at once: recorded as a CUDA graph on a GPU, called as it is elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch

Step = Callable[[], None]
# takes a step and what brings its buffers back to the state before it; gives what runs the step
Capture = Callable[[Step, Step], Step]
# calls before a recording: libraries choose kernels and ask for their memory in the first ones
WARM_UPS = 3


def capture_for(device: torch.device) -> Capture:
    """How steps are repeated on a device: the only place that decides.

    >>> step = lambda: None
    >>> capture_for(torch.device("cpu"))(step, step) is step
    True
    """
    return CudaGraphs(device) if device.type == "cuda" else called


def called(step: Step, reset: Step) -> Step:
    """The step itself."""
    return step


class CudaGraphs:
    """Records steps as CUDA graphs whose intermediate results share one pool of memory.

    A step reads and writes tensors of fixed addresses that were allocated outside of it, and leaves nothing else
    behind. So graphs may run in any order, one after another: none of them reads what another one left in the pool.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step, reset: Step) -> Step:
        with torch.cuda.device(self.device):
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    reset()
                    step()
            current.wait_stream(side)
            reset()
            graph = torch.cuda.CUDAGraph()
            # other threads, such as those that pin memory for a data loader, may call CUDA meanwhile
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                step()
            reset()
            return graph.replay
